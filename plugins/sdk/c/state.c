/* The power `state`, in the terms of flumen.h. */
#include "state.h"

#include "columns.h"

static wire_list_u8_t list(flumen_text bytes) {
    return (wire_list_u8_t){(uint8_t *)bytes.ptr, bytes.len};
}

/* The column is lent, not given. */
static flumen_plugin_state_bytes_column_t lent(const flumen_builder *column) {
    return (flumen_plugin_state_bytes_column_t){{column->offsets.ptr, column->offsets.len},
                                                {column->data.ptr, column->data.len}};
}

static bool refused(flumen_error *error, wire_string_t *reason) {
    flumen_fail(error, "%.*s", (int)reason->len, reason->ptr);
    wire_string_free(reason);
    return false;
}

static flumen_column column(wire_list_u8_t offsets, wire_list_u8_t data) {
    uint32_t rows = offsets.len < 4 ? 0 : (uint32_t)(offsets.len / 4 - 1);
    return (flumen_column){rows, (const flumen_u32 *)offsets.ptr, data.ptr, NULL};
}

void flumen_found_free(flumen_found *found) {
    for (size_t i = 0; i < sizeof found->memory / sizeof *found->memory; i++) {
        free(found->memory[i]);
    }
    *found = (flumen_found){0};
}

bool flumen_state_get(const flumen_builder *keys, flumen_found *found, flumen_error *error) {
    flumen_plugin_state_bytes_column_t wire_keys = lent(keys);
    flumen_plugin_state_values_t values;
    wire_string_t reason;
    *found = (flumen_found){0};
    if (!flumen_plugin_state_get_many(&wire_keys, &values, &reason)) {
        return refused(error, &reason);
    }
    found->values = column(values.offsets, values.data);
    found->values.present = values.present.ptr;
    found->memory[0] = values.offsets.len > 0 ? values.offsets.ptr : NULL;
    found->memory[1] = values.data.len > 0 ? values.data.ptr : NULL;
    found->memory[2] = values.present.len > 0 ? values.present.ptr : NULL;
    return true;
}

bool flumen_state_put(const flumen_builder *keys, const flumen_builder *values, uint64_t ttl_ms, flumen_error *error) {
    flumen_plugin_state_bytes_column_t wire_keys = lent(keys), wire_values = lent(values);
    wire_string_t reason;
    return flumen_plugin_state_put_many(&wire_keys, &wire_values, ttl_ms == 0 ? NULL : &ttl_ms, &reason) ||
           refused(error, &reason);
}

bool flumen_state_insert(const flumen_builder *keys, const flumen_builder *values, uint64_t ttl_ms, flumen_found *found,
                         flumen_error *error) {
    flumen_plugin_state_bytes_column_t wire_keys = lent(keys), wire_values;
    if (values != NULL) {
        wire_values = lent(values);
    }
    wire_list_u8_t bits;
    wire_string_t reason;
    *found = (flumen_found){0};
    if (!flumen_plugin_state_insert_if_absent(&wire_keys, values == NULL ? NULL : &wire_values,
                                              ttl_ms == 0 ? NULL : &ttl_ms, &bits, &reason)) {
        return refused(error, &reason);
    }
    found->values = (flumen_column){.rows = keys->rows, .present = bits.ptr};
    found->memory[0] = bits.len > 0 ? bits.ptr : NULL;
    return true;
}

bool flumen_state_remove(const flumen_builder *keys, flumen_error *error) {
    flumen_plugin_state_bytes_column_t wire_keys = lent(keys);
    wire_string_t reason;
    return flumen_plugin_state_remove_many(&wire_keys, &reason) || refused(error, &reason);
}

bool flumen_state_scan(flumen_text prefix, const flumen_text *after, uint32_t limit, flumen_found *found,
                       flumen_error *error) {
    wire_list_u8_t wire_prefix = list(prefix), wire_after;
    if (after != NULL) {
        wire_after = list(*after);
    }
    flumen_plugin_state_entries_t entries;
    wire_string_t reason;
    *found = (flumen_found){0};
    if (!flumen_plugin_state_scan(&wire_prefix, after == NULL ? NULL : &wire_after, limit, &entries, &reason)) {
        return refused(error, &reason);
    }
    found->keys = column(entries.keys.offsets, entries.keys.data);
    found->values = column(entries.values.offsets, entries.values.data);
    const wire_list_u8_t lists[] = {entries.keys.offsets, entries.keys.data, entries.values.offsets, entries.values.data};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        found->memory[i] = lists[i].len > 0 ? lists[i].ptr : NULL;
    }
    return true;
}
