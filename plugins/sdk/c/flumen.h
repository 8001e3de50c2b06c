/* Flumen plugins in C.
 *
 * A plugin includes this header and defines what its kind asks for:
 *
 *     const flumen_about FLUMEN_ABOUT = {"0.1.0", "Keeps what matters.", ""};
 *     bool flumen_open(flumen_text config, flumen_reads *reads, flumen_error *error);
 *     void flumen_intercept(const flumen_event *event, flumen_edit *edit);      // an interceptor
 *
 * `kind.h`, in the directory of its kind, says what that is. Memory that the host passes is read in place and gone when the
 * call returns; what is given to an answer is copied. Host powers are in state.h and http.h; those and the rest (log, metrics,
 * clock, random, tcp) are functions of wire.h: what is called is imported, and the pipeline has to grant it.
 */
#ifndef FLUMEN_H
#define FLUMEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that somebody else owns. */
typedef struct {
    const uint8_t *ptr;
    size_t len;
} flumen_text;

/* A text from a string of C. */
flumen_text flumen_str(const char *string);
bool flumen_equal(flumen_text a, flumen_text b);
/* A copy that stays, for what `flumen_open` keeps of its configuration. */
flumen_text flumen_copy(flumen_text text);

/* Bytes that grow. Begin with {0}; `flumen_clear` gives the memory back. */
typedef struct {
    uint8_t *ptr;
    size_t len, capacity;
} flumen_bytes;
void flumen_append(flumen_bytes *to, flumen_text text);
void flumen_clear(flumen_bytes *bytes);

/* What the plugin says of itself. `options` is the JSON Schema of its configuration, or "". */
typedef struct {
    const char *version;
    const char *summary;
    const char *options;
} flumen_about;
extern const flumen_about FLUMEN_ABOUT;

/* The columns to look at and to change. Others never cross the sandbox. */
#define FLUMEN_HEADERS_MAX 64
typedef struct {
    bool body;
    bool time;
    bool identity;
    size_t header_count;
    flumen_text headers[FLUMEN_HEADERS_MAX];
} flumen_reads;
/* Adds a header; its number is the one that the functions below take. The name `*` alone: all that a batch has. */
size_t flumen_read_header(flumen_reads *reads, flumen_text name);

/* For a person. Written once: the first reason stays. */
typedef struct {
    bool is_set;
    char text[512];
} flumen_error;
/* As printf, with %s, %d and %.*s for texts: flumen_fail(error, "config: `%.*s`", (int)t.len, t.ptr). Always false. */
bool flumen_fail(flumen_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- configuration ------------------------------------------------------------------------------------------ */

/* The value of a key of the configuration, which is a JSON object: true if it is there and a string. The value is
 * unescaped and stays. `error` is set if the key is there and no string, or if the text is no JSON object. */
bool flumen_config_text(flumen_text config, const char *key, flumen_text *value, flumen_error *error);
/* The same for whole numbers, and for true and false. */
bool flumen_config_integer(flumen_text config, const char *key, int64_t *value, flumen_error *error);
bool flumen_config_bool(flumen_text config, const char *key, bool *value, flumen_error *error);
/* False, with an error that names it, if there is a key that is not in this list, which ends with NULL. */
bool flumen_config_known(flumen_text config, const char *const *keys, flumen_error *error);

/* --- the batch ---------------------------------------------------------------------------------------------- */

typedef uint32_t flumen_u32 __attribute__((aligned(1), may_alias));
typedef int64_t flumen_i64 __attribute__((aligned(1), may_alias));
typedef uint64_t flumen_u64 __attribute__((aligned(1), may_alias));

/* Row `i` is `data[offsets[i] .. offsets[i + 1]]`. `present` is NULL if every row has a value, else one bit per row. */
typedef struct {
    uint32_t rows;
    const flumen_u32 *offsets;
    const uint8_t *data;
    const uint8_t *present;
} flumen_column;

/* A table of events, one column per field. What flumen_reads did not name is absent: NULL, or no rows. */
typedef struct {
    uint32_t rows;
    flumen_column body;
    const flumen_i64 *time;
    const flumen_u64 *stream;
    const flumen_u64 *position;
    size_t header_count;
    flumen_column headers[FLUMEN_HEADERS_MAX];
    /* In the order of flumen_reads. */
    flumen_text names[FLUMEN_HEADERS_MAX];
} flumen_batch;

static inline flumen_text flumen_get(const flumen_column *column, uint32_t row) {
    if (row >= column->rows) {
        return (flumen_text){NULL, 0};
    }
    uint32_t begin = column->offsets[row];
    return (flumen_text){column->data + begin, column->offsets[row + 1] - begin};
}

static inline bool flumen_is_present(const flumen_column *column, uint32_t row) {
    return row < column->rows && (column->present == NULL || (column->present[row / 8] >> (row % 8) & 1));
}

/* One of its rows. */

typedef struct {
    const flumen_batch *batch;
    uint32_t row;
} flumen_event;

static inline flumen_text flumen_body(const flumen_event *event) {
    return flumen_get(&event->batch->body, event->row);
}
/* Nanoseconds since the Unix epoch, UTC; 0 if the time was not asked for. */
static inline int64_t flumen_time(const flumen_event *event) {
    return event->batch->time == NULL ? 0 : event->batch->time[event->row];
}
/* The header with this number of flumen_reads; false if the event does not have it. */
static inline bool flumen_header(const flumen_event *event, size_t number, flumen_text *value) {
    if (number >= event->batch->header_count) {
        return false;
    }
    const flumen_column *column = &event->batch->headers[number];
    *value = flumen_get(column, event->row);
    return flumen_is_present(column, event->row);
}

/* Events of a batch: FLUMEN_EACH(event, batch) { ... flumen_body(&event) ... } */
#define FLUMEN_EACH(event, of) for (flumen_event event = {(of), 0}; event.row < (of)->rows; event.row++)

/* Where `needle` begins in `text`, or SIZE_MAX. Sixteen bytes at a time. */
size_t flumen_find(flumen_text text, flumen_text needle);
/* The next row at or behind `from` that holds the needle, or UINT32_MAX: one search over the data of all rows. */
uint32_t flumen_find_row(const flumen_column *column, flumen_text needle, uint32_t from);

/* --- columns that are written --------------------------------------------------------------------------------- */

/* A column that is built row by row. */
typedef struct flumen_builder flumen_builder;
flumen_builder *flumen_column_new(void);
void flumen_column_free(flumen_builder *builder);
uint32_t flumen_column_rows(const flumen_builder *builder);
void flumen_push(flumen_builder *builder, flumen_text value);
void flumen_push_absent(flumen_builder *builder);

/* --- what becomes of a batch ---------------------------------------------------------------------------------- */

/* The answer to a batch: what is not said stays as it is. Columns have one row for each output row. */
typedef struct flumen_answer flumen_answer;
/* The next output row comes from this input row. Once this was called, only rows that are named go on. */
void flumen_keep(flumen_answer *answer, uint32_t row);
/* No row goes on but those that flumen_keep names. */
void flumen_keep_only(flumen_answer *answer);
void flumen_reject_row(flumen_answer *answer, uint32_t row, const char *reason);
/* Columns of the answer: they stay valid until the batch is answered. */
flumen_builder *flumen_answer_body(flumen_answer *answer);
flumen_builder *flumen_answer_header(flumen_answer *answer, flumen_text name);
/* Sets the header to one value on every output row, whatever these will be. */
void flumen_set_all(flumen_answer *answer, flumen_text name, flumen_text value);
void flumen_remove_all(flumen_answer *answer, flumen_text name);

/* --- new events ------------------------------------------------------------------------------------------------ */

/* Events that an aggregator makes, or a decoder finds. */
typedef struct flumen_events flumen_events;
/* Adds an event: nanoseconds since the Unix epoch, and a body. */
void flumen_add_event(flumen_events *events, int64_t time, flumen_text body);
/* Adds a header to the event that was added last. The second of the same name is left out. */
void flumen_add_header(flumen_events *events, flumen_text name, flumen_text value);

#include "kind.h"

#endif
