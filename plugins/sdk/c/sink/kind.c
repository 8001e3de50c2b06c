/* What becomes of a batch, and the exports of sinks. */
#include "columns.h"

struct flumen_outcome {
    flumen_rejections refused;
    bool is_retry;
    uint32_t after_ms;
    wire_string_t reason;
};

void flumen_refuse(flumen_outcome *outcome, uint32_t row, const char *reason) {
    flumen_add_rejection(&outcome->refused, row, reason);
}

void flumen_retry(flumen_outcome *outcome, const char *reason, uint32_t after_ms) {
    if (!outcome->is_retry) {
        outcome->is_retry = true;
        outcome->after_ms = after_ms;
        outcome->reason = flumen_words(reason);
    }
}

__attribute__((weak)) bool flumen_recover(flumen_bytes *cursor, bool *has_cursor, flumen_error *error) {
    (void)cursor;
    (void)has_cursor;
    (void)error;
    return true;
}

bool exports_flumen_plugin_delivery_open(wire_string_t *config, exports_flumen_plugin_delivery_opened_t *out,
                                         wire_string_t *err) {
    flumen_error error = {0};
    flumen_reads reads = {0};
    bool recovers = false;
    bool is_open = flumen_open((flumen_text){config->ptr, config->len}, &reads, &recovers, &error) && !error.is_set;
    if (is_open) {
        *out = (exports_flumen_plugin_delivery_opened_t){flumen_take_reads(&reads), recovers};
    }
    free(config->ptr);
    return is_open || flumen_failed(&error, err);
}

bool exports_flumen_plugin_delivery_recover(wire_option_list_u8_t *out, wire_string_t *err) {
    flumen_error error = {0};
    flumen_bytes cursor = {0};
    bool has_cursor = false;
    if (!flumen_recover(&cursor, &has_cursor, &error) || error.is_set) {
        flumen_clear(&cursor);
        return flumen_failed(&error, err);
    }
    *out = (wire_option_list_u8_t){has_cursor, flumen_take(&cursor)};
    if (!has_cursor) {
        free(out->val.ptr);
    }
    return true;
}

bool exports_flumen_plugin_delivery_deliver(exports_flumen_plugin_delivery_batch_t *wire, wire_list_u8_t *cursor,
                                            exports_flumen_plugin_delivery_outcome_t *out, wire_string_t *err) {
    static flumen_batch batch;
    flumen_outcome outcome = {0};
    flumen_error error = {0};
    flumen_batch_of(wire, &batch);
    bool is_done = flumen_deliver(&batch, (flumen_text){cursor->ptr, cursor->len}, &outcome, &error) && !error.is_set;
    if (outcome.is_retry) {
        out->tag = EXPORTS_FLUMEN_PLUGIN_DELIVERY_OUTCOME_RETRY;
        out->val.retry.reason = outcome.reason;
        out->val.retry.after_ms = (wire_option_u32_t){outcome.after_ms > 0, outcome.after_ms};
    } else {
        out->tag = EXPORTS_FLUMEN_PLUGIN_DELIVERY_OUTCOME_DELIVERED;
        flumen_plugin_types_list_rejection_t refused = flumen_take_rejections(&outcome.refused);
        out->val.delivered.ptr = refused.ptr;
        out->val.delivered.len = refused.len;
    }
    if (!is_done) {
        flumen_failed(&error, err);
    }
    flumen_plugin_types_batch_free(wire);
    wire_list_u8_free(cursor);
    return is_done;
}
