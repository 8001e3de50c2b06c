/* Frames: four bytes with the length of a body, the highest first, then the body. */
#include "flumen.h"

const flumen_about FLUMEN_ABOUT = {
    .version = "0.1.0",
    .summary = "Frames: four bytes with the length of a body, then the body.",
    .options = "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{"
               "\"max_bytes\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":67108864,\"default\":1048576,"
               "\"description\":\"Bytes of the longest body.\"}}}",
};

static const char *const KEYS[] = {"max_bytes", NULL};
static size_t max_bytes = 1 << 20;

static bool open(flumen_text config, flumen_error *error) {
    int64_t number = (int64_t)max_bytes;
    flumen_config_known(config, KEYS, error);
    flumen_config_integer(config, "max_bytes", &number, error);
    max_bytes = (size_t)number;
    return !error->is_set;
}

static void too_long(flumen_error *reason, const char *what, size_t bytes) {
    flumen_fail(reason, "%s of %d bytes is longer than max_bytes", what, (int)bytes);
}

bool flumen_open_decoder(flumen_text config, flumen_error *error) {
    return open(config, error);
}

bool flumen_decode(flumen_text input, bool is_last, flumen_decoded *out, flumen_error *error) {
    (void)error;
    size_t start = 0;
    while (input.len - start >= 4) {
        const uint8_t *at = input.ptr + start;
        size_t length = (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | at[3];
        if (length > max_bytes) {
            /* Nothing tells where the next one begins. */
            flumen_error reason = {0};
            too_long(&reason, "a frame", length);
            flumen_decoded_bad(out, start, input.len, reason.text);
            return true;
        }
        if (input.len - start - 4 < length) {
            break;
        }
        start += 4 + length;
        flumen_decoded_event(out, start, (flumen_text){at + 4, length});
    }
    if (is_last && start < input.len) {
        flumen_decoded_bad(out, start, input.len, "the last frame is not whole");
    }
    return true;
}

bool flumen_open_encoder(flumen_text config, flumen_reads *reads, flumen_error *error) {
    reads->body = true;
    return open(config, error);
}

bool flumen_encode(const flumen_batch *batch, const uint64_t *file, flumen_payloads *out, flumen_error *error) {
    (void)file;
    (void)error;
    FLUMEN_EACH(event, batch) {
        flumen_text body = flumen_body(&event);
        if (body.len > max_bytes) {
            flumen_error reason = {0};
            too_long(&reason, "a body", body.len);
            flumen_payload_reject(out, event.row, reason.text);
            continue;
        }
        uint8_t length[4] = {(uint8_t)(body.len >> 24), (uint8_t)(body.len >> 16), (uint8_t)(body.len >> 8), (uint8_t)body.len};
        flumen_payload_add(out, (flumen_text){length, sizeof length});
        flumen_payload_add(out, body);
        flumen_payload_end(out);
    }
    return true;
}
