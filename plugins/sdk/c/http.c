/* The power `http`, in the terms of flumen.h. */
#include "http.h"

#include "columns.h"

static wire_string_t string(flumen_text text) {
    return (wire_string_t){(uint8_t *)text.ptr, text.len};
}

static void add_header(flumen_request *request, flumen_text name, flumen_text value, flumen_text secret) {
    if (request->header_count == FLUMEN_REQUEST_HEADERS_MAX) {
        abort();
    }
    request->headers[request->header_count].name = name;
    request->headers[request->header_count].value = value;
    request->headers[request->header_count++].secret = secret;
}

void flumen_request_header(flumen_request *request, const char *name, flumen_text value) {
    add_header(request, flumen_str(name), value, (flumen_text){NULL, 0});
}

void flumen_request_secret(flumen_request *request, const char *name, const char *before, const char *secret) {
    add_header(request, flumen_str(name), flumen_str(before), flumen_str(secret));
}

static bool failed(flumen_error *error, flumen_plugin_http_failure_t *failure) {
    /* Of the three that have a text it is in the same place. */
    wire_string_t text = failure->val.denied;
    switch (failure->tag) {
    case FLUMEN_PLUGIN_EGRESS_FAILURE_DENIED:
        flumen_fail(error, "not allowed: %.*s", (int)text.len, text.ptr);
        break;
    case FLUMEN_PLUGIN_EGRESS_FAILURE_INVALID:
        flumen_fail(error, "the request is wrong: %.*s", (int)text.len, text.ptr);
        break;
    case FLUMEN_PLUGIN_EGRESS_FAILURE_UNREACHABLE: flumen_fail(error, "%.*s", (int)text.len, text.ptr); break;
    case FLUMEN_PLUGIN_EGRESS_FAILURE_TIMED_OUT: flumen_fail(error, "no answer in time"); break;
    default: flumen_fail(error, "the answer is larger than its limit");
    }
    flumen_plugin_http_failure_free(failure);
    return false;
}

bool flumen_send(const flumen_request *request, flumen_response *response, flumen_error *error) {
    flumen_plugin_http_header_t headers[FLUMEN_REQUEST_HEADERS_MAX];
    flumen_plugin_http_part_t parts[FLUMEN_REQUEST_HEADERS_MAX][2];
    for (size_t i = 0; i < request->header_count; i++) {
        bool has_secret = request->headers[i].secret.len > 0;
        parts[i][0] = (flumen_plugin_http_part_t){.tag = FLUMEN_PLUGIN_EGRESS_PART_TEXT,
                                                  .val.text = string(request->headers[i].value)};
        parts[i][1] = (flumen_plugin_http_part_t){.tag = FLUMEN_PLUGIN_EGRESS_PART_SECRET,
                                                  .val.secret = string(request->headers[i].secret)};
        headers[i] = (flumen_plugin_http_header_t){string(request->headers[i].name), {parts[i], has_secret ? 2 : 1}};
    }
    flumen_plugin_http_part_t body = {.tag = FLUMEN_PLUGIN_EGRESS_PART_BYTES,
                                      .val.bytes = {(uint8_t *)request->body.ptr, request->body.len}};
    flumen_plugin_http_request_t wire = {.method = string(request->method),
                                         .url = string(request->url),
                                         .headers = {headers, request->header_count},
                                         .body = {&body, 1},
                                         .timeout_ms = {request->timeout_ms > 0, request->timeout_ms}};
    flumen_plugin_http_response_t *answer = flumen_grown(NULL, sizeof *answer);
    flumen_plugin_http_failure_t failure;
    *response = (flumen_response){0};
    if (!flumen_plugin_http_send(&wire, answer, &failure)) {
        free(answer);
        return failed(error, &failure);
    }
    *response = (flumen_response){answer->status, {answer->body.ptr, answer->body.len}, answer};
    return true;
}

bool flumen_response_header(const flumen_response *response, const char *name, flumen_text *value) {
    const flumen_plugin_http_response_t *answer = response->wire;
    for (size_t i = 0; answer != NULL && i < answer->headers.len; i++) {
        wire_string_t is = answer->headers.ptr[i].f0, has = answer->headers.ptr[i].f1;
        if (flumen_equal((flumen_text){is.ptr, is.len}, flumen_str(name))) {
            *value = (flumen_text){has.ptr, has.len};
            return true;
        }
    }
    return false;
}

uint32_t flumen_retry_after_ms(const flumen_response *response) {
    flumen_text text;
    uint32_t seconds = 0;
    if (!flumen_response_header(response, "retry-after", &text) || text.len > 6) {
        return 0;
    }
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] < '0' || text.ptr[i] > '9') {
            return 0;
        }
        seconds = seconds * 10 + (text.ptr[i] - '0');
    }
    return seconds * 1000;
}

void flumen_response_free(flumen_response *response) {
    if (response->wire != NULL) {
        flumen_plugin_http_response_free(response->wire);
        free(response->wire);
    }
    *response = (flumen_response){0};
}
