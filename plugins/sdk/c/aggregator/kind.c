/* The exports of aggregators. */
#include "columns.h"

__attribute__((weak)) bool flumen_tick(int64_t now, flumen_events *events, flumen_error *error) {
    (void)now;
    (void)events;
    (void)error;
    return true;
}

bool exports_flumen_plugin_aggregation_open(wire_string_t *config, exports_flumen_plugin_aggregation_opened_t *out,
                                            wire_string_t *err) {
    flumen_error error = {0};
    flumen_reads reads = {0};
    uint32_t tick_ms = 0;
    bool is_open = flumen_open((flumen_text){config->ptr, config->len}, &reads, &tick_ms, &error) && !error.is_set;
    if (is_open) {
        *out = (exports_flumen_plugin_aggregation_opened_t){flumen_take_reads(&reads), tick_ms};
    }
    free(config->ptr);
    return is_open || flumen_failed(&error, err);
}

bool exports_flumen_plugin_aggregation_process(exports_flumen_plugin_aggregation_batch_t *wire,
                                               exports_flumen_plugin_aggregation_aggregate_t *out, wire_string_t *err) {
    static flumen_batch batch;
    static flumen_answer answer;
    static flumen_events events;
    flumen_error error = {0};
    flumen_batch_of(wire, &batch);
    memset(&answer, 0, sizeof answer);
    answer.batch = &batch;
    answer.is_plain = true;
    bool is_done = flumen_process(&batch, &answer, &events, &error) && !error.is_set;
    out->emitted.is_some = events.rows > 0;
    out->emitted.val = flumen_take_events(&events);
    out->rows = flumen_take_answer(&answer);
    if (!is_done || !out->emitted.is_some) {
        flumen_plugin_types_events_free(&out->emitted.val);
    }
    if (!is_done) {
        flumen_plugin_types_difference_free(&out->rows);
        flumen_failed(&error, err);
    }
    flumen_plugin_types_batch_free(wire);
    return is_done;
}

bool exports_flumen_plugin_aggregation_tick(int64_t now, exports_flumen_plugin_aggregation_option_events_t *out,
                                            wire_string_t *err) {
    static flumen_events events;
    flumen_error error = {0};
    bool is_done = flumen_tick(now, &events, &error) && !error.is_set;
    out->is_some = events.rows > 0;
    out->val = flumen_take_events(&events);
    if (!is_done || !out->is_some) {
        flumen_plugin_types_events_free(&out->val);
    }
    return is_done || flumen_failed(&error, err);
}
