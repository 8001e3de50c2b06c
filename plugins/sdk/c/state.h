/* What a plugin remembers: keys and values that survive restarts, crashes and swaps. The pipeline grants `state`.
 *
 * The writes of a batch are in the same commit as its events. Every call takes a whole column, because a call costs more than
 * a row. Keys have 1 to 1,024 bytes, values up to 1 MiB. Every function is false, with an error, if the host refuses.
 */
#ifndef FLUMEN_STATE_H
#define FLUMEN_STATE_H

#include "flumen.h"

/* What the state answered. `flumen_found_free` gives its memory back. */
typedef struct {
    flumen_column keys;
    flumen_column values;
    void *memory[5];
} flumen_found;
void flumen_found_free(flumen_found *found);

/* The values of these keys: rows of `found->values`, of which flumen_is_present tells whether there is one. */
bool flumen_state_get(const flumen_builder *keys, flumen_found *found, flumen_error *error);
/* Sets keys to values. `ttl_ms`: they are forgotten so much later; 0: never. */
bool flumen_state_put(const flumen_builder *keys, const flumen_builder *values, uint64_t ttl_ms, flumen_error *error);
/* Sets each key that has no value yet; without `values` (NULL) to an empty one. Rows of `found->values` are present if they
 * were set now; of equal keys the first. */
bool flumen_state_insert(const flumen_builder *keys, const flumen_builder *values, uint64_t ttl_ms, flumen_found *found,
                         flumen_error *error);
/* Forgets keys. */
bool flumen_state_remove(const flumen_builder *keys, flumen_error *error);
/* Keys that begin with `prefix` and come after `after` (NULL: from the first), at most `limit`, in byte order. */
bool flumen_state_scan(flumen_text prefix, const flumen_text *after, uint32_t limit, flumen_found *found,
                       flumen_error *error);

#endif
