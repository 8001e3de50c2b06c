/* Counts events by the value of a header, in windows of event time.
 *
 * In the state: under the end of a window (so that keys are in the order in which windows close) and the value, the count.
 * A window closes when an event behind its end comes, or when the clock is a whole window behind its end. What comes later
 * still is counted anew: the counts of a window and a value add up to its events. */
#include "flumen.h"
#include "state.h"

#include <stdlib.h>
#include <string.h>

const flumen_about FLUMEN_ABOUT = {
    .version = "0.1.0",
    .summary = "Counts events by the value of a header, in windows of event time.",
    .options = "{\"type\":\"object\",\"additionalProperties\":false,\"required\":[\"by\"],\"properties\":{"
               "\"by\":{\"type\":\"string\",\"minLength\":1,\"description\":\"The header whose values are counted.\"},"
               "\"window_s\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":86400,\"default\":60,"
               "\"description\":\"Seconds of a window.\"}}}",
};

/* Windows that are looked at in one go. */
#define SCAN_MAX 1000
/* Events that are made in one go: what is left follows with the next batch or tick. A batch has at most 65,536. */
#define EVENTS_MAX 32768
/* A key of the state has at most 1,024 bytes. */
#define VALUE_BYTES_MAX 1000
#define KEY_BYTES_MAX (8 + VALUE_BYTES_MAX)

static const char *const KEYS[] = {"by", "window_s", NULL};
static flumen_text by;
static size_t by_header;
static int64_t window_ns;

bool flumen_open(flumen_text config, flumen_reads *reads, uint32_t *tick_ms, flumen_error *error) {
    int64_t window_s = 60;
    flumen_config_known(config, KEYS, error);
    flumen_config_integer(config, "window_s", &window_s, error);
    if (!flumen_config_text(config, "by", &by, error)) {
        return flumen_fail(error, "config: the key `by` is missing; add it");
    }
    reads->time = true;
    by_header = flumen_read_header(reads, by);
    window_ns = window_s * 1000000000;
    /* Ten times in a window, and at least every ten seconds. */
    *tick_ms = window_s < 100 ? (uint32_t)window_s * 100 : 10000;
    return true;
}

/* --- keys: the end of a window, in an order that its bytes have, and the value -------------------------------- */

static int64_t end_of(int64_t time) {
    int64_t number = time / window_ns - (time % window_ns < 0), end;
    return __builtin_mul_overflow(number + 1, window_ns, &end) ? INT64_MAX : end;
}

static size_t write_key(uint8_t *key, int64_t end, flumen_text value) {
    uint64_t sortable = (uint64_t)end ^ 1ull << 63;
    for (int i = 0; i < 8; i++) {
        key[i] = (uint8_t)(sortable >> (56 - 8 * i));
    }
    size_t len = value.len < VALUE_BYTES_MAX ? value.len : VALUE_BYTES_MAX;
    /* Between characters. */
    while (len < value.len && len > 0 && (value.ptr[len] & 0xC0) == 0x80) {
        len--;
    }
    memcpy(key + 8, value.ptr, len);
    return 8 + len;
}

static int64_t end_in(flumen_text key) {
    uint64_t sortable = 0;
    for (int i = 0; i < 8; i++) {
        sortable = sortable << 8 | key.ptr[i];
    }
    return (int64_t)(sortable ^ 1ull << 63);
}

/* --- the counts of a batch: a table of as many places as a power of two, less than half of them taken ----------- */

typedef struct {
    uint32_t row_of_key; /* and 1: 0 is a free place */
    uint64_t count;
} place;

typedef struct {
    flumen_bytes keys;
    uint32_t *begins;
    uint32_t rows;
    place *places;
    uint32_t mask;
} table;

static flumen_text key_at(const table *t, uint32_t row) {
    return (flumen_text){t->keys.ptr + t->begins[row], t->begins[row + 1] - t->begins[row]};
}

static void count(table *t, flumen_text key) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < key.len; i++) {
        hash = (hash ^ key.ptr[i]) * 16777619u;
    }
    uint32_t at = hash & t->mask;
    while (t->places[at].row_of_key != 0 && !flumen_equal(key_at(t, t->places[at].row_of_key - 1), key)) {
        at = (at + 1) & t->mask;
    }
    if (t->places[at].row_of_key == 0) {
        flumen_append(&t->keys, key);
        t->begins[++t->rows] = (uint32_t)t->keys.len;
        t->places[at].row_of_key = t->rows;
    }
    t->places[at].count++;
}

/* Adds to what was counted before. */
static bool store(const table *t, flumen_error *error) {
    flumen_builder *keys = flumen_column_new(), *sums = flumen_column_new();
    uint64_t *counts = calloc(t->rows, sizeof *counts);
    for (uint32_t at = 0; at <= t->mask; at++) {
        if (t->places[at].row_of_key != 0) {
            counts[t->places[at].row_of_key - 1] = t->places[at].count;
        }
    }
    for (uint32_t row = 0; row < t->rows; row++) {
        flumen_push(keys, key_at(t, row));
    }
    flumen_found before;
    bool is_done = flumen_state_get(keys, &before, error);
    for (uint32_t row = 0; is_done && row < t->rows; row++) {
        flumen_text old = flumen_get(&before.values, row);
        uint64_t sum = 0;
        if (flumen_is_present(&before.values, row) && old.len == sizeof sum) {
            memcpy(&sum, old.ptr, sizeof sum);
        }
        sum += counts[row];
        flumen_push(sums, (flumen_text){(const uint8_t *)&sum, sizeof sum});
    }
    is_done = is_done && flumen_state_put(keys, sums, 0, error);
    flumen_found_free(&before);
    flumen_column_free(keys);
    flumen_column_free(sums);
    free(counts);
    return is_done;
}

/* --- windows that close --------------------------------------------------------------------------------------- */

static flumen_text decimal(uint64_t number, uint8_t digits[20]) {
    size_t at = 20;
    do {
        digits[--at] = (uint8_t)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    return (flumen_text){digits + at, 20 - at};
}

/* Emits the counts of all windows that end at a time or before it. */
static bool close(int64_t time, flumen_events *events, flumen_error *error) {
    uint32_t made = 0, closes = SCAN_MAX;
    bool is_done = true;
    while (is_done && closes == SCAN_MAX && made < EVENTS_MAX) {
        flumen_found found;
        if (!flumen_state_scan(flumen_str(""), NULL, SCAN_MAX, &found, error)) {
            return false;
        }
        flumen_builder *closed = flumen_column_new();
        for (closes = 0; closes < found.keys.rows; closes++) {
            flumen_text key = flumen_get(&found.keys, closes), value = flumen_get(&found.values, closes);
            uint64_t sum;
            uint8_t digits[20];
            if (key.len < 8 || value.len != sizeof sum) {
                return flumen_fail(error, "what it remembers is not what it wrote");
            }
            if (end_in(key) > time) {
                break;
            }
            memcpy(&sum, value.ptr, sizeof sum);
            flumen_add_event(events, end_in(key), decimal(sum, digits));
            flumen_add_header(events, by, (flumen_text){key.ptr + 8, key.len - 8});
            flumen_push(closed, key);
        }
        is_done = closes == 0 || flumen_state_remove(closed, error);
        made += closes;
        flumen_column_free(closed);
        flumen_found_free(&found);
    }
    return is_done;
}

bool flumen_process(const flumen_batch *batch, flumen_answer *answer, flumen_events *events, flumen_error *error) {
    table t = {.begins = calloc(batch->rows + 1, sizeof *t.begins), .mask = 1};
    while (t.mask < 2 * batch->rows) {
        t.mask = t.mask * 2 + 1;
    }
    t.places = calloc(t.mask + 1, sizeof *t.places);
    int64_t latest = INT64_MIN;
    FLUMEN_EACH(event, batch) {
        uint8_t key[KEY_BYTES_MAX];
        flumen_text value;
        if (!flumen_header(&event, by_header, &value)) {
            value = flumen_str("-");
        }
        count(&t, (flumen_text){key, write_key(key, end_of(flumen_time(&event)), value)});
        latest = flumen_time(&event) > latest ? flumen_time(&event) : latest;
    }
    bool is_done = store(&t, error) && close(latest, events, error);
    flumen_clear(&t.keys);
    free(t.begins);
    free(t.places);
    /* The counts go on in place of the events. */
    flumen_keep_only(answer);
    return is_done;
}

bool flumen_tick(int64_t now, flumen_events *events, flumen_error *error) {
    return close(now < INT64_MIN + window_ns ? INT64_MIN : now - window_ns, events, error);
}
