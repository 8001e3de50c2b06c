/* Appends events as lines to a resource over HTTP, each exactly once.
 *
 * `GET url` answers 200 with the header `flumen-cursor`, or 404 if nothing was stored. `POST url` has lines and two headers:
 * the server stores the lines and `flumen-cursor` in one step, if `flumen-after` is the cursor that it has. */
#include "flumen.h"
#include "http.h"

#include <string.h>

const flumen_about FLUMEN_ABOUT = {
    .version = "0.1.0",
    .summary = "Appends events as lines to a resource over HTTP, each exactly once.",
    .options = "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"url\"],\"properties\":{"
               "\"url\":{\"type\":\"string\",\"pattern\":\"^https?://\","
               "\"description\":\"The resource; `egress.allow` has to name its host and port.\"}}}",
};

static const char *const KEYS[] = {"url", NULL};
static flumen_text url;
/* What the server has, in hexadecimal; `none`: nothing. */
static flumen_bytes stored;

static void remember(flumen_text cursor) {
    stored.len = 0;
    flumen_append(&stored, cursor);
}

static flumen_text what_is_stored(void) {
    return (flumen_text){stored.ptr, stored.len};
}

bool flumen_open(flumen_text config, flumen_reads *reads, bool *recovers, flumen_error *error) {
    flumen_config_known(config, KEYS, error);
    if (!flumen_config_text(config, "url", &url, error)) {
        return flumen_fail(error, "config: the key `url` is missing; add it");
    }
    reads->body = true;
    *recovers = true;
    remember(flumen_str("none"));
    return true;
}

static void to_hex(flumen_text bytes, flumen_bytes *hex) {
    for (size_t i = 0; i < bytes.len; i++) {
        const char *digits = "0123456789abcdef";
        uint8_t pair[2] = {(uint8_t)digits[bytes.ptr[i] >> 4], (uint8_t)digits[bytes.ptr[i] & 15]};
        flumen_append(hex, (flumen_text){pair, 2});
    }
}

static int digit(uint8_t byte) {
    if (byte >= '0' && byte <= '9') return byte - '0';
    if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
    return -1;
}

static bool from_hex(flumen_text hex, flumen_bytes *bytes, flumen_error *error) {
    bool is_hex = hex.len % 2 == 0;
    for (size_t i = 0; is_hex && i < hex.len; i += 2) {
        int high = digit(hex.ptr[i]), low = digit(hex.ptr[i + 1]);
        uint8_t byte = (uint8_t)(high << 4 | low);
        is_hex = high >= 0 && low >= 0;
        flumen_append(bytes, (flumen_text){&byte, 1});
    }
    return is_hex || flumen_fail(error, "the server's cursor \"%.*s\" is not hexadecimal", (int)hex.len, hex.ptr);
}

/* The beginning of the answer stands in the reason. */
static bool unexpected(const flumen_response *answer, flumen_error *error) {
    int shown = answer->body.len < 200 ? (int)answer->body.len : 200;
    return flumen_fail(error, "the server says %d: %.*s", answer->status, shown, answer->body.ptr);
}

bool flumen_recover(flumen_bytes *cursor, bool *has_cursor, flumen_error *error) {
    flumen_request request = {.method = flumen_str("GET"), .url = url};
    flumen_response answer;
    if (!flumen_send(&request, &answer, error)) {
        return false;
    }
    flumen_text hex;
    *has_cursor = answer.status == 200 && flumen_response_header(&answer, "flumen-cursor", &hex);
    if (*has_cursor) {
        remember(hex);
        from_hex(hex, cursor, error);
    } else if (answer.status == 404) {
        remember(flumen_str("none"));
    } else {
        unexpected(&answer, error);
    }
    flumen_response_free(&answer);
    return !error->is_set;
}

/* Whether the lines were stored: true too if they come again. */
static bool answered(const flumen_response *answer, flumen_text cursor, flumen_outcome *outcome, flumen_error *error) {
    if (answer->status >= 200 && answer->status < 300) {
        remember(cursor);
        return true;
    }
    if (answer->status == 429 || answer->status == 503) {
        flumen_error reason = {0};
        unexpected(answer, &reason);
        flumen_retry(outcome, reason.text, flumen_retry_after_ms(answer));
        return true;
    }
    return unexpected(answer, error);
}

bool flumen_deliver(const flumen_batch *batch, flumen_text cursor, flumen_outcome *outcome, flumen_error *error) {
    flumen_bytes lines = {0}, hex = {0};
    bool is_whole = true;
    FLUMEN_EACH(event, batch) {
        flumen_text body = flumen_body(&event);
        if (body.len > 0 && memchr(body.ptr, '\n', body.len) != NULL) {
            flumen_refuse(outcome, event.row, "it has a line end in it, and a line cannot");
            is_whole = false;
        }
        flumen_append(&lines, body);
        flumen_append(&lines, flumen_str("\n"));
    }
    flumen_response answer = {0};
    to_hex(cursor, &hex);
    flumen_text hex_text = {hex.ptr, hex.len};
    flumen_request request = {.method = flumen_str("POST"), .url = url, .body = {lines.ptr, lines.len}};
    flumen_request_header(&request, "flumen-cursor", hex_text);
    flumen_request_header(&request, "flumen-after", what_is_stored());
    /* What is refused is refused before anything is stored: the others come again without it. */
    bool is_done = !is_whole ||
                   (flumen_send(&request, &answer, error) && answered(&answer, hex_text, outcome, error));
    flumen_response_free(&answer);
    flumen_clear(&lines);
    flumen_clear(&hex);
    return is_done;
}
