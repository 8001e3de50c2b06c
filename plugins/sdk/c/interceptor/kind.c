/* One event at a time, and the exports of interceptors. */
#include "columns.h"

/* --- one event at a time ------------------------------------------------------------------------------------------- */

typedef struct {
    bool is_set, is_removed;
    flumen_text value;
} change;

struct flumen_edit {
    flumen_answer *answer;
    const flumen_batch *batch;
    flumen_error *error;
    uint32_t row;
    bool is_settled, is_emitted;
    change body, headers[FLUMEN_HEADERS_MAX];
    bool has_changes, has_time;
    int64_t time;
    /* The column of a header of flumen_reads, once it was changed. */
    flumen_builder *columns[FLUMEN_HEADERS_MAX];
};

static void set(flumen_edit *edit, change *to, flumen_text value, bool is_removed) {
    if (to->is_set) {
        free((void *)to->value.ptr);
    }
    *to = (change){true, is_removed, is_removed ? (flumen_text){NULL, 0} : flumen_copy(value)};
    edit->has_changes = true;
}

static void forget(flumen_edit *edit) {
    if (!edit->has_changes) {
        return;
    }
    free((void *)edit->body.value.ptr);
    edit->body = (change){0};
    for (size_t i = 0; i < edit->batch->header_count; i++) {
        free((void *)edit->headers[i].value.ptr);
        edit->headers[i] = (change){0};
    }
    edit->has_changes = edit->has_time = false;
}

void flumen_set_body(flumen_edit *edit, flumen_text body) {
    if (edit->batch->body.offsets == NULL) {
        flumen_fail(edit->error, "a mistake in the plugin: the body is changed but not read: set reads->body");
        return;
    }
    set(edit, &edit->body, body, false);
}

void flumen_set_time(flumen_edit *edit, int64_t time) {
    if (edit->batch->time == NULL) {
        flumen_fail(edit->error, "a mistake in the plugin: the time is changed but not read: set reads->time");
        return;
    }
    edit->time = time;
    edit->has_time = edit->has_changes = true;
}

static bool is_header(flumen_edit *edit, size_t number) {
    return number < edit->batch->header_count ||
           flumen_fail(edit->error, "a mistake in the plugin: header number %d is changed but not read: "
                                    "use what flumen_read_header gave", (int)number);
}

void flumen_set_header(flumen_edit *edit, size_t number, flumen_text value) {
    if (is_header(edit, number)) {
        set(edit, &edit->headers[number], value, false);
    }
}

void flumen_remove_header(flumen_edit *edit, size_t number) {
    if (is_header(edit, number)) {
        set(edit, &edit->headers[number], (flumen_text){NULL, 0}, true);
    }
}

void flumen_drop(flumen_edit *edit) {
    forget(edit);
    edit->answer->is_plain = false;
    edit->is_settled = true;
}

void flumen_reject(flumen_edit *edit, const char *reason) {
    if (edit->is_emitted) {
        flumen_fail(edit->error, "a mistake in the plugin: an event is rejected after a part of it was emitted");
        return;
    }
    forget(edit);
    if (!edit->is_settled) {
        flumen_reject_row(edit->answer, edit->row, reason);
    }
    edit->is_settled = true;
}

static uint32_t rows_of(const flumen_answer *answer) {
    return (uint32_t)(answer->rows.len / 4);
}

static void push_old(flumen_builder *to, const flumen_column *from, uint32_t row) {
    flumen_push_row(to, flumen_get(from, row), flumen_is_present(from, row));
}

/* Input row of an output row that was written before. */
static uint32_t source_of(const flumen_answer *answer, uint32_t row) {
    uint32_t from;
    memcpy(&from, answer->rows.ptr + row * 4, 4);
    return from;
}

static void emit_time(flumen_edit *edit) {
    flumen_answer *answer = edit->answer;
    if (edit->has_time && answer->time.len == 0) {
        for (uint32_t row = 0; row < rows_of(answer); row++) {
            int64_t old = edit->batch->time[source_of(answer, row)];
            flumen_add(&answer->time, &old, sizeof old);
        }
    }
    if (edit->has_time || answer->time.len > 0) {
        int64_t time = edit->has_time ? edit->time : edit->batch->time[edit->row];
        flumen_add(&answer->time, &time, sizeof time);
    }
}

static void emit_header(flumen_edit *edit, size_t i) {
    flumen_answer *answer = edit->answer;
    const flumen_column *input = &edit->batch->headers[i];
    const change *changed = &edit->headers[i];
    if (changed->is_set && edit->columns[i] == NULL) {
        edit->columns[i] = &answer->headers[i];
        flumen_start(edit->columns[i]);
        for (uint32_t row = 0; row < rows_of(answer); row++) {
            push_old(edit->columns[i], input, source_of(answer, row));
        }
    }
    if (edit->columns[i] == NULL) {
        return;
    }
    if (changed->is_set) {
        flumen_push_row(edit->columns[i], changed->value, !changed->is_removed);
    } else {
        push_old(edit->columns[i], input, edit->row);
    }
}

void flumen_emit(flumen_edit *edit) {
    flumen_answer *answer = edit->answer;
    if (edit->body.is_set && !answer->body.is_used) {
        flumen_start(&answer->body);
        for (uint32_t row = 0; row < rows_of(answer); row++) {
            push_old(&answer->body, &edit->batch->body, source_of(answer, row));
        }
    }
    if (edit->body.is_set) {
        flumen_push_row(&answer->body, edit->body.value, true);
    } else if (answer->body.is_used) {
        push_old(&answer->body, &edit->batch->body, edit->row);
    }
    emit_time(edit);
    for (size_t i = 0; i < edit->batch->header_count; i++) {
        emit_header(edit, i);
    }
    if (edit->is_emitted) {
        answer->is_plain = false;
    }
    flumen_add(&answer->rows, &edit->row, sizeof edit->row);
    edit->is_settled = edit->is_emitted = true;
    forget(edit);
}

__attribute__((weak)) void flumen_intercept(const flumen_event *event, flumen_edit *edit) {
    (void)event;
    (void)edit;
}

static flumen_text header_names[FLUMEN_HEADERS_MAX];

__attribute__((weak)) bool flumen_process(const flumen_batch *batch, flumen_answer *answer, flumen_error *error) {
    static flumen_edit edit;
    memset(&edit, 0, sizeof edit);
    edit = (flumen_edit){.answer = answer, .batch = batch, .error = error};
    FLUMEN_EACH(event, batch) {
        edit.row = event.row;
        edit.is_settled = edit.is_emitted = false;
        flumen_intercept(&event, &edit);
        if (!edit.is_settled) {
            flumen_emit(&edit);
        }
        forget(&edit);
    }
    /* Columns that were changed move together; the others are left out. */
    answer->header_count = 0;
    for (size_t i = 0; i < batch->header_count; i++) {
        if (edit.columns[i] != NULL) {
            flumen_builder changed = answer->headers[i];
            changed.name = flumen_copy(header_names[i]);
            if (answer->header_count != i) {
                memset(&answer->headers[i], 0, sizeof answer->headers[i]);
            }
            answer->headers[answer->header_count++] = changed;
        }
    }
    return !error->is_set;
}

/* --- the exports ---------------------------------------------------------------------------------------------------- */

bool exports_flumen_plugin_guest_open(wire_string_t *config, exports_flumen_plugin_guest_reads_t *out, wire_string_t *err) {
    flumen_error error = {0};
    flumen_reads reads = {0};
    bool is_open = flumen_open((flumen_text){config->ptr, config->len}, &reads, &error) && !error.is_set;
    if (is_open) {
        *out = flumen_take_reads(&reads);
        for (size_t i = 0; i < reads.header_count; i++) {
            header_names[i] = flumen_copy(reads.headers[i]);
        }
    }
    free(config->ptr);
    return is_open || flumen_failed(&error, err);
}

bool exports_flumen_plugin_guest_process(exports_flumen_plugin_guest_batch_t *wire,
                                         exports_flumen_plugin_guest_difference_t *out, wire_string_t *err) {
    static flumen_batch batch;
    static flumen_answer answer;
    flumen_error error = {0};
    flumen_batch_of(wire, &batch);
    memset(&answer, 0, sizeof answer);
    answer.batch = &batch;
    answer.is_plain = true;
    bool is_done = flumen_process(&batch, &answer, &error) && !error.is_set;
    *out = flumen_take_answer(&answer);
    if (!is_done) {
        flumen_plugin_types_difference_t unused = *out;
        flumen_plugin_types_difference_free(&unused);
        flumen_failed(&error, err);
    }
    flumen_plugin_types_batch_free(wire);
    return is_done;
}
