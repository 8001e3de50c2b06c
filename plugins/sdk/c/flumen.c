/* The answer to a batch, and the exports. */
#include "flumen.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* --- texts ---------------------------------------------------------------------------------------------------- */

flumen_text flumen_str(const char *string) {
    return (flumen_text){(const uint8_t *)string, strlen(string)};
}

bool flumen_equal(flumen_text a, flumen_text b) {
    return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

/* Memory that ends is a trap: the host makes a fresh instance. */
static void *grown(void *memory, size_t bytes) {
    void *out = realloc(memory, bytes == 0 ? 1 : bytes);
    if (out == NULL) {
        abort();
    }
    return out;
}

flumen_text flumen_copy(flumen_text text) {
    uint8_t *bytes = grown(NULL, text.len);
    memcpy(bytes, text.ptr, text.len);
    return (flumen_text){bytes, text.len};
}

/* Strings of an answer are freed by its reader. */
static interceptor_string_t owned(flumen_text text) {
    if (text.len == 0) {
        return (interceptor_string_t){NULL, 0};
    }
    text = flumen_copy(text);
    return (interceptor_string_t){(uint8_t *)text.ptr, text.len};
}

static void put(flumen_error *error, size_t *at, const char *text, size_t len) {
    for (size_t i = 0; i < len && *at + 1 < sizeof error->text; i++) {
        error->text[(*at)++] = text[i];
    }
}

static void put_number(flumen_error *error, size_t *at, long number) {
    char digits[24];
    size_t left = sizeof digits;
    unsigned long rest = number < 0 ? 0ul - (unsigned long)number : (unsigned long)number;
    do {
        digits[--left] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest != 0);
    if (number < 0) {
        digits[--left] = '-';
    }
    put(error, at, digits + left, sizeof digits - left);
}

/* The C library's printf would bring its files along, and with them imports that nobody has. */
bool flumen_fail(flumen_error *error, const char *format, ...) {
    if (error->is_set) {
        return false;
    }
    error->is_set = true;
    size_t at = 0;
    va_list arguments;
    va_start(arguments, format);
    for (const char *c = format; *c != 0; c++) {
        if (c[0] == '%' && c[1] == 's') {
            const char *text = va_arg(arguments, const char *);
            put(error, &at, text, strlen(text));
            c++;
        } else if (c[0] == '%' && c[1] == 'd') {
            put_number(error, &at, va_arg(arguments, int));
            c++;
        } else if (c[0] == '%' && c[1] == '.' && c[2] == '*' && c[3] == 's') {
            int len = va_arg(arguments, int);
            put(error, &at, va_arg(arguments, const char *), len < 0 ? 0 : (size_t)len);
            c += 3;
        } else {
            put(error, &at, c, 1);
        }
    }
    va_end(arguments);
    error->text[at] = 0;
    return false;
}

size_t flumen_read_header(flumen_reads *reads, flumen_text name) {
    for (size_t i = 0; i < reads->header_count; i++) {
        if (flumen_equal(reads->headers[i], name)) {
            return i;
        }
    }
    if (reads->header_count == FLUMEN_HEADERS_MAX) {
        abort();
    }
    reads->headers[reads->header_count] = name;
    return reads->header_count++;
}

/* --- columns that are written ------------------------------------------------------------------------------------ */

typedef struct {
    uint8_t *bytes;
    size_t len, capacity;
} buffer;

static void append(buffer *to, const void *bytes, size_t len) {
    if (to->len + len > to->capacity) {
        to->capacity = (to->len + len) * 2 + 64;
        to->bytes = grown(to->bytes, to->capacity);
    }
    memcpy(to->bytes + to->len, bytes, len);
    to->len += len;
}

static interceptor_list_u8_t take_list(buffer *from) {
    if (from->len == 0) {
        free(from->bytes);
        return (interceptor_list_u8_t){NULL, 0};
    }
    return (interceptor_list_u8_t){from->bytes, from->len};
}

struct flumen_builder {
    bool is_used;
    flumen_text name;
    buffer offsets, data, present;
    uint32_t rows;
    bool is_sparse;
    /* One value for every output row: the rows are written at the end. */
    bool is_constant;
    flumen_text constant;
};

static void start(flumen_builder *builder) {
    if (!builder->is_used) {
        uint32_t zero = 0;
        builder->is_used = true;
        append(&builder->offsets, &zero, sizeof zero);
    }
}

static void push(flumen_builder *builder, flumen_text value, bool is_present) {
    start(builder);
    append(&builder->data, value.ptr, value.len);
    uint32_t end = (uint32_t)builder->data.len;
    append(&builder->offsets, &end, sizeof end);
    if (builder->rows % 8 == 0) {
        append(&builder->present, "", 1);
    }
    builder->present.bytes[builder->rows / 8] |= (uint8_t)((is_present ? 1 : 0) << builder->rows % 8);
    builder->is_sparse |= !is_present;
    builder->rows++;
}

void flumen_push(flumen_builder *builder, flumen_text value) {
    push(builder, value, true);
}

void flumen_push_absent(flumen_builder *builder) {
    push(builder, (flumen_text){NULL, 0}, false);
}

/* --- the answer ---------------------------------------------------------------------------------------------------- */

struct flumen_answer {
    const flumen_batch *batch;
    bool is_plain;
    buffer rows;
    flumen_builder body;
    buffer time;
    flumen_builder headers[FLUMEN_HEADERS_MAX];
    size_t header_count;
    flumen_text removed[FLUMEN_HEADERS_MAX];
    size_t removed_count;
    flumen_plugin_types_rejection_t *rejected;
    size_t rejected_count, rejected_capacity;
};

static uint32_t rows_of(const flumen_answer *answer) {
    return (uint32_t)(answer->rows.len / 4);
}

void flumen_keep_only(flumen_answer *answer) {
    answer->is_plain = false;
}

void flumen_keep(flumen_answer *answer, uint32_t row) {
    answer->is_plain = false;
    append(&answer->rows, &row, sizeof row);
}

void flumen_reject_row(flumen_answer *answer, uint32_t row, const char *reason) {
    if (answer->rejected_count == answer->rejected_capacity) {
        answer->rejected_capacity = answer->rejected_capacity * 2 + 16;
        answer->rejected = grown(answer->rejected, answer->rejected_capacity * sizeof *answer->rejected);
    }
    answer->rejected[answer->rejected_count++] =
        (flumen_plugin_types_rejection_t){row, owned(flumen_str(reason))};
}

flumen_builder *flumen_answer_body(flumen_answer *answer) {
    start(&answer->body);
    return &answer->body;
}

flumen_builder *flumen_answer_header(flumen_answer *answer, flumen_text name) {
    if (answer->header_count == FLUMEN_HEADERS_MAX) {
        abort();
    }
    flumen_builder *builder = &answer->headers[answer->header_count++];
    start(builder);
    builder->name = flumen_copy(name);
    return builder;
}

void flumen_set_all(flumen_answer *answer, flumen_text name, flumen_text value) {
    flumen_builder *builder = flumen_answer_header(answer, name);
    builder->is_constant = true;
    builder->constant = value;
}

void flumen_remove_all(flumen_answer *answer, flumen_text name) {
    if (answer->removed_count == FLUMEN_HEADERS_MAX) {
        abort();
    }
    answer->removed[answer->removed_count++] = flumen_copy(name);
}

static void finish(flumen_answer *answer, exports_flumen_plugin_guest_difference_t *out) {
    uint32_t rows = rows_of(answer);
    if (answer->is_plain) {
        rows = answer->batch->rows - (uint32_t)answer->rejected_count;
    }
    *out = (exports_flumen_plugin_guest_difference_t){0};
    out->rows_from = (interceptor_option_list_u8_t){!answer->is_plain, take_list(&answer->rows)};
    if (answer->body.is_used) {
        out->body.is_some = true;
        out->body.val = (flumen_plugin_types_bytes_column_t){take_list(&answer->body.offsets), take_list(&answer->body.data)};
        free(answer->body.present.bytes);
    }
    out->time = (interceptor_option_list_u8_t){answer->time.len > 0, take_list(&answer->time)};
    if (answer->header_count > 0) {
        out->set_headers.ptr = grown(NULL, answer->header_count * sizeof *out->set_headers.ptr);
        out->set_headers.len = answer->header_count;
    }
    for (size_t i = 0; i < answer->header_count; i++) {
        flumen_builder *builder = &answer->headers[i];
        while (builder->is_constant && builder->rows < rows) {
            push(builder, builder->constant, true);
        }
        flumen_plugin_types_header_column_t *column = &out->set_headers.ptr[i];
        column->name = (interceptor_string_t){(uint8_t *)builder->name.ptr, builder->name.len};
        column->offsets = take_list(&builder->offsets);
        column->data = take_list(&builder->data);
        column->present.is_some = builder->is_sparse;
        column->present.val = take_list(&builder->present);
        if (!builder->is_sparse && builder->rows > 0) {
            free(builder->present.bytes);
        }
    }
    if (answer->removed_count > 0) {
        out->remove_headers.ptr = grown(NULL, answer->removed_count * sizeof *out->remove_headers.ptr);
        out->remove_headers.len = answer->removed_count;
    }
    for (size_t i = 0; i < answer->removed_count; i++) {
        out->remove_headers.ptr[i] =
            (interceptor_string_t){(uint8_t *)answer->removed[i].ptr, answer->removed[i].len};
    }
    out->rejected = (flumen_plugin_types_list_rejection_t){answer->rejected, answer->rejected_count};
}

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

static void push_old(flumen_builder *to, const flumen_column *from, uint32_t row) {
    push(to, flumen_get(from, row), flumen_is_present(from, row));
}

/* Input row of an output row that was written before. */
static uint32_t source_of(const flumen_answer *answer, uint32_t row) {
    uint32_t from;
    memcpy(&from, answer->rows.bytes + row * 4, 4);
    return from;
}

static void emit_time(flumen_edit *edit) {
    flumen_answer *answer = edit->answer;
    if (edit->has_time && answer->time.len == 0) {
        for (uint32_t row = 0; row < rows_of(answer); row++) {
            int64_t old = edit->batch->time[source_of(answer, row)];
            append(&answer->time, &old, sizeof old);
        }
    }
    if (edit->has_time || answer->time.len > 0) {
        int64_t time = edit->has_time ? edit->time : edit->batch->time[edit->row];
        append(&answer->time, &time, sizeof time);
    }
}

static void emit_header(flumen_edit *edit, size_t i) {
    flumen_answer *answer = edit->answer;
    const flumen_column *input = &edit->batch->headers[i];
    const change *changed = &edit->headers[i];
    if (changed->is_set && edit->columns[i] == NULL) {
        edit->columns[i] = &answer->headers[i];
        start(edit->columns[i]);
        for (uint32_t row = 0; row < rows_of(answer); row++) {
            push_old(edit->columns[i], input, source_of(answer, row));
        }
    }
    if (edit->columns[i] == NULL) {
        return;
    }
    if (changed->is_set) {
        push(edit->columns[i], changed->value, !changed->is_removed);
    } else {
        push_old(edit->columns[i], input, edit->row);
    }
}

void flumen_emit(flumen_edit *edit) {
    flumen_answer *answer = edit->answer;
    if (edit->body.is_set && !answer->body.is_used) {
        start(&answer->body);
        for (uint32_t row = 0; row < rows_of(answer); row++) {
            push_old(&answer->body, &edit->batch->body, source_of(answer, row));
        }
    }
    if (edit->body.is_set) {
        push(&answer->body, edit->body.value, true);
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
    append(&answer->rows, &edit->row, sizeof edit->row);
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

void exports_flumen_plugin_about_describe(exports_flumen_plugin_about_description_t *out) {
    out->version = owned(flumen_str(FLUMEN_ABOUT.version));
    out->summary = owned(flumen_str(FLUMEN_ABOUT.summary));
    out->options = owned(flumen_str(FLUMEN_ABOUT.options));
}

static bool failed(const flumen_error *error, interceptor_string_t *out) {
    const char *text = error->is_set ? error->text : "the plugin failed without a reason";
    *out = owned(flumen_str(text));
    return false;
}

bool exports_flumen_plugin_guest_open(interceptor_string_t *config, exports_flumen_plugin_guest_reads_t *out,
                                      interceptor_string_t *err) {
    flumen_error error = {0};
    flumen_reads reads = {0};
    bool is_open = flumen_open((flumen_text){config->ptr, config->len}, &reads, &error);
    if (!is_open || error.is_set) {
        free(config->ptr);
        return failed(&error, err);
    }
    *out = (exports_flumen_plugin_guest_reads_t){.body = reads.body, .time = reads.time, .identity = reads.identity};
    if (reads.header_count > 0) {
        out->headers.ptr = grown(NULL, reads.header_count * sizeof *out->headers.ptr);
        out->headers.len = reads.header_count;
    }
    for (size_t i = 0; i < reads.header_count; i++) {
        header_names[i] = flumen_copy(reads.headers[i]);
        out->headers.ptr[i] = owned(reads.headers[i]);
    }
    free(config->ptr);
    return true;
}

static flumen_column column_of(uint32_t rows, interceptor_list_u8_t offsets, interceptor_list_u8_t data) {
    return (flumen_column){rows, (const flumen_u32 *)offsets.ptr, data.ptr, NULL};
}

bool exports_flumen_plugin_guest_process(exports_flumen_plugin_guest_batch_t *wire,
                                         exports_flumen_plugin_guest_difference_t *out, interceptor_string_t *err) {
    static flumen_batch batch;
    static flumen_answer answer;
    flumen_error error = {0};
    memset(&batch, 0, sizeof batch);
    memset(&answer, 0, sizeof answer);
    batch.rows = wire->rows;
    if (wire->body.is_some) {
        batch.body = column_of(wire->rows, wire->body.val.offsets, wire->body.val.data);
    }
    if (wire->time.is_some) {
        batch.time = (const flumen_i64 *)wire->time.val.ptr;
    }
    if (wire->identity.is_some) {
        batch.stream = (const flumen_u64 *)wire->identity.val.stream.ptr;
        batch.position = (const flumen_u64 *)wire->identity.val.position.ptr;
    }
    batch.header_count = wire->headers.len;
    for (size_t i = 0; i < wire->headers.len && i < FLUMEN_HEADERS_MAX; i++) {
        const flumen_plugin_types_header_column_t *header = &wire->headers.ptr[i];
        batch.headers[i] = column_of(wire->rows, header->offsets, header->data);
        batch.headers[i].present = header->present.is_some ? header->present.val.ptr : NULL;
    }
    answer.batch = &batch;
    answer.is_plain = true;
    bool is_done = flumen_process(&batch, &answer, &error) && !error.is_set;
    finish(&answer, out);
    if (!is_done) {
        exports_flumen_plugin_guest_difference_t unused = *out;
        flumen_plugin_types_difference_free(&unused);
        failed(&error, err);
    }
    flumen_plugin_types_batch_free(wire);
    return is_done;
}

/* wit-bindgen's way to make sure that the types of the world are linked in; `flumen plugin build` adds them. */
void __component_type_object_force_link_interceptor(void) {}
