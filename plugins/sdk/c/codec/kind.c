/* What decoders find, what encoders make, and the exports of codecs. */
#include "columns.h"

/* --- bytes to events ------------------------------------------------------------------------------------------------ */

struct flumen_decoded {
    flumen_events events;
    flumen_bytes ends;
    size_t consumed;
    bool has_times;
    exports_flumen_plugin_decoding_bad_bytes_t *bad;
    size_t bad_count, bad_capacity;
};

void flumen_decoded_consume(flumen_decoded *decoded, size_t end) {
    decoded->consumed = end > decoded->consumed ? end : decoded->consumed;
}

void flumen_decoded_event(flumen_decoded *decoded, size_t end, flumen_text body) {
    uint32_t wire_end = (uint32_t)end;
    flumen_add_event(&decoded->events, 0, body);
    flumen_add(&decoded->ends, &wire_end, sizeof wire_end);
    flumen_decoded_consume(decoded, end);
}

void flumen_decoded_time(flumen_decoded *decoded, int64_t time) {
    if (decoded->events.rows == 0) {
        abort();
    }
    decoded->has_times = true;
    memcpy(decoded->events.time.ptr + decoded->events.time.len - sizeof time, &time, sizeof time);
}

void flumen_decoded_header(flumen_decoded *decoded, flumen_text name, flumen_text value) {
    flumen_add_header(&decoded->events, name, value);
}

void flumen_decoded_bad(flumen_decoded *decoded, size_t begin, size_t end, const char *reason) {
    if (decoded->bad_count == decoded->bad_capacity) {
        decoded->bad_capacity = decoded->bad_capacity * 2 + 16;
        decoded->bad = flumen_grown(decoded->bad, decoded->bad_capacity * sizeof *decoded->bad);
    }
    decoded->bad[decoded->bad_count++] = (exports_flumen_plugin_decoding_bad_bytes_t){
        (uint32_t)begin, (uint32_t)end, flumen_words(reason)};
    flumen_decoded_consume(decoded, end);
}

__attribute__((weak)) bool flumen_open_decoder(flumen_text config, flumen_error *error) {
    (void)config;
    return flumen_fail(error, "this codec reads nothing: it is for sinks");
}

__attribute__((weak)) bool flumen_decode(flumen_text input, bool is_last, flumen_decoded *decoded, flumen_error *error) {
    (void)input;
    (void)is_last;
    (void)decoded;
    return flumen_fail(error, "this codec reads nothing");
}

bool exports_flumen_plugin_decoding_open(wire_string_t *config, wire_string_t *err) {
    flumen_error error = {0};
    bool is_open = flumen_open_decoder((flumen_text){config->ptr, config->len}, &error) && !error.is_set;
    free(config->ptr);
    return is_open || flumen_failed(&error, err);
}

bool exports_flumen_plugin_decoding_decode(wire_list_u8_t *input, bool is_last,
                                           exports_flumen_plugin_decoding_decoded_t *out, wire_string_t *err) {
    static flumen_decoded decoded;
    flumen_error error = {0};
    memset(&decoded, 0, sizeof decoded);
    bool is_done = flumen_decode((flumen_text){input->ptr, input->len}, is_last, &decoded, &error) && !error.is_set;
    out->consumed = (uint32_t)decoded.consumed;
    if (!decoded.has_times) {
        flumen_clear(&decoded.events.time);
    }
    out->events = flumen_take_events(&decoded.events);
    out->events.time.is_some = decoded.has_times;
    out->ends = flumen_take(&decoded.ends);
    out->bad = (exports_flumen_plugin_decoding_list_bad_bytes_t){decoded.bad, decoded.bad_count};
    if (!is_done) {
        exports_flumen_plugin_decoding_decoded_free(out);
        flumen_failed(&error, err);
    }
    wire_list_u8_free(input);
    return is_done;
}

/* --- events to bytes ------------------------------------------------------------------------------------------------ */

struct flumen_payloads {
    flumen_builder column;
    flumen_rejections rejected;
};

void flumen_payload_add(flumen_payloads *payloads, flumen_text part) {
    flumen_append(&payloads->column.data, part);
}

void flumen_payload_end(flumen_payloads *payloads) {
    flumen_end_row(&payloads->column, true);
}

void flumen_payload_reject(flumen_payloads *payloads, uint32_t row, const char *reason) {
    flumen_add_rejection(&payloads->rejected, row, reason);
}

__attribute__((weak)) bool flumen_open_encoder(flumen_text config, flumen_reads *reads, flumen_error *error) {
    (void)config;
    (void)reads;
    return flumen_fail(error, "this codec writes nothing: it is for sources");
}

__attribute__((weak)) bool flumen_encode(const flumen_batch *batch, const uint64_t *file, flumen_payloads *payloads,
                                         flumen_error *error) {
    (void)batch;
    (void)file;
    (void)payloads;
    return flumen_fail(error, "this codec writes nothing");
}

__attribute__((weak)) bool flumen_file_begin(uint64_t seed, flumen_bytes *bytes, flumen_error *error) {
    (void)seed;
    (void)bytes;
    (void)error;
    return true;
}

__attribute__((weak)) bool flumen_file_end(uint64_t seed, flumen_bytes *bytes, flumen_error *error) {
    (void)seed;
    (void)bytes;
    (void)error;
    return true;
}

bool exports_flumen_plugin_encoding_open(wire_string_t *config, exports_flumen_plugin_encoding_reads_t *out,
                                         wire_string_t *err) {
    flumen_error error = {0};
    flumen_reads reads = {0};
    bool is_open = flumen_open_encoder((flumen_text){config->ptr, config->len}, &reads, &error) && !error.is_set;
    if (is_open) {
        *out = flumen_take_reads(&reads);
    }
    free(config->ptr);
    return is_open || flumen_failed(&error, err);
}

bool exports_flumen_plugin_encoding_encode(exports_flumen_plugin_encoding_batch_t *wire, uint64_t *maybe_file,
                                           exports_flumen_plugin_encoding_encoded_t *out, wire_string_t *err) {
    static flumen_batch batch;
    flumen_payloads payloads = {0};
    flumen_error error = {0};
    flumen_batch_of(wire, &batch);
    bool is_done = flumen_encode(&batch, maybe_file, &payloads, &error) && !error.is_set;
    out->payloads = flumen_take_column(&payloads.column);
    flumen_plugin_types_list_rejection_t rejected = flumen_take_rejections(&payloads.rejected);
    out->rejected.ptr = rejected.ptr;
    out->rejected.len = rejected.len;
    if (!is_done) {
        exports_flumen_plugin_encoding_encoded_free(out);
        flumen_failed(&error, err);
    }
    flumen_plugin_types_batch_free(wire);
    return is_done;
}

static bool around(bool is_done, flumen_bytes *bytes, const flumen_error *error, wire_list_u8_t *out, wire_string_t *err) {
    if (!is_done || error->is_set) {
        flumen_clear(bytes);
        return flumen_failed(error, err);
    }
    *out = flumen_take(bytes);
    return true;
}

bool exports_flumen_plugin_encoding_begin(uint64_t seed, wire_list_u8_t *out, wire_string_t *err) {
    flumen_error error = {0};
    flumen_bytes bytes = {0};
    bool is_done = flumen_file_begin(seed, &bytes, &error);
    return around(is_done, &bytes, &error, out, err);
}

bool exports_flumen_plugin_encoding_end(uint64_t seed, wire_list_u8_t *out, wire_string_t *err) {
    flumen_error error = {0};
    flumen_bytes bytes = {0};
    bool is_done = flumen_file_end(seed, &bytes, &error);
    return around(is_done, &bytes, &error, out, err);
}
