/* Keeps the events whose body holds a text, and marks them with a header. */
#include "flumen.h"

const flumen_about FLUMEN_ABOUT = {
    .version = "0.1.0",
    .summary = "Keeps the events whose body holds a text, and marks them with a header.",
    .options = "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"contains\"],\"properties\":{"
               "\"contains\":{\"type\":\"string\",\"minLength\":1,\"description\":\"What the body has to hold.\"},"
               "\"header\":{\"type\":\"string\",\"minLength\":1,\"default\":\"matched\",\"description\":\"The header that is set.\"}}}",
};

static const char *const KEYS[] = {"contains", "header", NULL};
static flumen_text contains;
static size_t header;

bool flumen_open(flumen_text config, flumen_reads *reads, flumen_error *error) {
    flumen_text name = flumen_str("matched");
    flumen_config_known(config, KEYS, error);
    flumen_config_text(config, "header", &name, error);
    if (!flumen_config_text(config, "contains", &contains, error) || contains.len == 0) {
        return flumen_fail(error, "config: the key `contains` is missing; add it");
    }
    reads->body = true;
    header = flumen_read_header(reads, name);
    return true;
}

void flumen_intercept(const flumen_event *event, flumen_edit *edit) {
    if (flumen_find(flumen_body(event), contains) == SIZE_MAX) {
        flumen_drop(edit);
    } else {
        flumen_set_header(edit, header, contains);
    }
}
