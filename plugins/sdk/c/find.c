/* Substring search, sixteen bytes at a time: positions where the first and the last byte of the needle fit are
 * candidates, and only those are compared. */
#include "flumen.h"

#include <string.h>
#ifdef __wasm_simd128__
#include <wasm_simd128.h>
#endif

size_t flumen_find(flumen_text text, flumen_text needle) {
    size_t n = text.len, k = needle.len;
    if (k == 0) {
        return 0;
    }
    if (k > n) {
        return SIZE_MAX;
    }
    const uint8_t *h = text.ptr;
    size_t i = 0, last = n - k;
#ifdef __wasm_simd128__
    const v128_t first_byte = wasm_u8x16_splat(needle.ptr[0]), last_byte = wasm_u8x16_splat(needle.ptr[k - 1]);
    /* Each round reads up to h[i + k - 1 + 31]. */
    while (i + 31 <= last) {
        v128_t a = wasm_v128_and(wasm_i8x16_eq(wasm_v128_load(h + i), first_byte),
                                 wasm_i8x16_eq(wasm_v128_load(h + i + k - 1), last_byte));
        v128_t b = wasm_v128_and(wasm_i8x16_eq(wasm_v128_load(h + i + 16), first_byte),
                                 wasm_i8x16_eq(wasm_v128_load(h + i + 16 + k - 1), last_byte));
        if (wasm_v128_any_true(wasm_v128_or(a, b))) {
            uint32_t mask = wasm_i8x16_bitmask(a) | (uint32_t)wasm_i8x16_bitmask(b) << 16;
            for (; mask != 0; mask &= mask - 1) {
                size_t at = i + (size_t)__builtin_ctz(mask);
                if (memcmp(h + at, needle.ptr, k) == 0) {
                    return at;
                }
            }
        }
        i += 32;
    }
#endif
    for (; i <= last; i++) {
        if (h[i] == needle.ptr[0] && memcmp(h + i, needle.ptr, k) == 0) {
            return i;
        }
    }
    return SIZE_MAX;
}

uint32_t flumen_find_row(const flumen_column *column, flumen_text needle, uint32_t from) {
    if (from >= column->rows) {
        return UINT32_MAX;
    }
    if (needle.len == 0) {
        return from;
    }
    uint32_t row = from;
    size_t start = column->offsets[row], end = column->offsets[column->rows];
    for (;;) {
        flumen_text rest = {column->data + start, end - start};
        size_t hit = flumen_find(rest, needle);
        if (hit == SIZE_MAX) {
            return UINT32_MAX;
        }
        hit += start;
        while (column->offsets[row + 1] <= hit) {
            row++;
        }
        /* A hit that spans the border between two rows does not count; nothing more in this row can. */
        if (hit + needle.len <= column->offsets[row + 1]) {
            return row;
        }
        start = column->offsets[row + 1];
        row++;
        if (row >= column->rows) {
            return UINT32_MAX;
        }
    }
}
