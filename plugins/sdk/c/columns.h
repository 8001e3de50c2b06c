/* What the files of the SDK share. A plugin needs flumen.h only. */
#ifndef FLUMEN_COLUMNS_H
#define FLUMEN_COLUMNS_H

#include "flumen.h"
#include "wire.h"

#include <stdlib.h>
#include <string.h>

/* Memory that ends is a trap: the host makes a fresh instance. */
static inline void *flumen_grown(void *memory, size_t bytes) {
    void *out = realloc(memory, bytes == 0 ? 1 : bytes);
    if (out == NULL) {
        abort();
    }
    return out;
}

static inline void flumen_add(flumen_bytes *to, const void *bytes, size_t len) {
    if (len == 0) {
        return;
    }
    if (to->len + len > to->capacity) {
        to->capacity = (to->len + len) * 2 + 64;
        to->ptr = flumen_grown(to->ptr, to->capacity);
    }
    memcpy(to->ptr + to->len, bytes, len);
    to->len += len;
}

/* Gives the bytes to an answer, whose reader frees them. */
static inline wire_list_u8_t flumen_take(flumen_bytes *from) {
    flumen_bytes bytes = *from;
    *from = (flumen_bytes){NULL, 0, 0};
    if (bytes.len == 0) {
        free(bytes.ptr);
        return (wire_list_u8_t){NULL, 0};
    }
    return (wire_list_u8_t){bytes.ptr, bytes.len};
}

/* Strings of an answer are freed by its reader. */
static inline wire_string_t flumen_owned(flumen_text text) {
    if (text.len == 0) {
        return (wire_string_t){NULL, 0};
    }
    text = flumen_copy(text);
    return (wire_string_t){(uint8_t *)text.ptr, text.len};
}

/* A reason for a person, which has to be UTF-8: what is not is a question mark. */
wire_string_t flumen_words(const char *text);

struct flumen_builder {
    bool is_used;
    flumen_text name;
    flumen_bytes offsets, data, present;
    uint32_t rows;
    bool is_sparse;
    /* One value for every output row: the rows are written at the end. */
    bool is_constant;
    flumen_text constant;
};

static inline void flumen_start(flumen_builder *builder) {
    if (!builder->is_used) {
        uint32_t zero = 0;
        builder->is_used = true;
        flumen_add(&builder->offsets, &zero, sizeof zero);
    }
}

static inline void flumen_end_row(flumen_builder *builder, bool is_present) {
    flumen_start(builder);
    uint32_t end = (uint32_t)builder->data.len;
    flumen_add(&builder->offsets, &end, sizeof end);
    if (builder->rows % 8 == 0) {
        flumen_add(&builder->present, "", 1);
    }
    builder->present.ptr[builder->rows / 8] |= (uint8_t)((is_present ? 1 : 0) << builder->rows % 8);
    builder->is_sparse |= !is_present;
    builder->rows++;
}

static inline void flumen_push_row(flumen_builder *builder, flumen_text value, bool is_present) {
    flumen_add(&builder->data, value.ptr, value.len);
    flumen_end_row(builder, is_present);
}

/* Gives the column to an answer. */
static inline flumen_plugin_types_bytes_column_t flumen_take_column(flumen_builder *builder) {
    flumen_start(builder);
    free(builder->present.ptr);
    builder->present = (flumen_bytes){NULL, 0, 0};
    return (flumen_plugin_types_bytes_column_t){flumen_take(&builder->offsets), flumen_take(&builder->data)};
}

static inline flumen_plugin_types_header_column_t flumen_take_header(flumen_builder *builder) {
    flumen_plugin_types_header_column_t column = {0};
    column.name = (wire_string_t){(uint8_t *)builder->name.ptr, builder->name.len};
    column.offsets = flumen_take(&builder->offsets);
    column.data = flumen_take(&builder->data);
    column.present.is_some = builder->is_sparse;
    if (builder->is_sparse) {
        column.present.val = flumen_take(&builder->present);
    } else {
        free(builder->present.ptr);
        builder->present = (flumen_bytes){NULL, 0, 0};
    }
    return column;
}

/* Rejected rows. */
typedef struct {
    flumen_plugin_types_rejection_t *rows;
    size_t len, capacity;
} flumen_rejections;

void flumen_add_rejection(flumen_rejections *to, uint32_t row, const char *reason);
flumen_plugin_types_list_rejection_t flumen_take_rejections(flumen_rejections *from);

/* New events. */
struct flumen_events {
    uint32_t rows;
    flumen_builder body;
    flumen_bytes time;
    flumen_builder headers[FLUMEN_HEADERS_MAX];
    size_t header_count;
};

flumen_plugin_types_events_t flumen_take_events(flumen_events *events);

/* The answer to a batch of an interceptor or an aggregator. */
struct flumen_answer {
    const flumen_batch *batch;
    bool is_plain;
    flumen_bytes rows;
    flumen_builder body;
    flumen_bytes time;
    flumen_builder headers[FLUMEN_HEADERS_MAX];
    size_t header_count;
    flumen_text removed[FLUMEN_HEADERS_MAX];
    size_t removed_count;
    flumen_rejections rejected;
};

flumen_plugin_types_difference_t flumen_take_answer(flumen_answer *answer);

/* The columns to pass, for the host. */
flumen_plugin_types_reads_t flumen_take_reads(const flumen_reads *reads);
/* A batch of the host, read in place. */
void flumen_batch_of(const flumen_plugin_types_batch_t *wire, flumen_batch *batch);
/* The error of a call. Always false. */
bool flumen_failed(const flumen_error *error, wire_string_t *out);

#endif
