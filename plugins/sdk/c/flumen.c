/* Texts, columns, batches: what plugins of all kinds need. */
#include "columns.h"

#include <stdarg.h>

/* --- texts ---------------------------------------------------------------------------------------------------- */

flumen_text flumen_str(const char *string) {
    return (flumen_text){(const uint8_t *)string, strlen(string)};
}

bool flumen_equal(flumen_text a, flumen_text b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

flumen_text flumen_copy(flumen_text text) {
    uint8_t *bytes = flumen_grown(NULL, text.len);
    if (text.len > 0) {
        memcpy(bytes, text.ptr, text.len);
    }
    return (flumen_text){bytes, text.len};
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

/* Bytes of the character that begins here; 0: it is none. */
static size_t character(const uint8_t *at, size_t left) {
    size_t len = at[0] < 0x80 ? 1 : at[0] >= 0xC2 && at[0] < 0xE0 ? 2 : at[0] >= 0xE0 && at[0] < 0xF0 ? 3 : at[0] >= 0xF0 && at[0] < 0xF5 ? 4 : 0;
    if (len > left) {
        return 0;
    }
    for (size_t i = 1; i < len; i++) {
        if ((at[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    /* Longer than they need be, surrogates, and beyond the last character. */
    bool is_wrong = len > 2 && ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] > 0x9F) ||
                                (at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] > 0x8F));
    return is_wrong ? 0 : len;
}

wire_string_t flumen_words(const char *text) {
    wire_string_t words = flumen_owned(flumen_str(text));
    for (size_t i = 0; i < words.len;) {
        size_t len = character(words.ptr + i, words.len - i);
        if (len == 0) {
            words.ptr[i] = '?';
            len = 1;
        }
        i += len;
    }
    return words;
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

/* --- bytes and columns that are written --------------------------------------------------------------------------- */

void flumen_append(flumen_bytes *to, flumen_text text) {
    flumen_add(to, text.ptr, text.len);
}

void flumen_clear(flumen_bytes *bytes) {
    free(bytes->ptr);
    *bytes = (flumen_bytes){NULL, 0, 0};
}

flumen_builder *flumen_column_new(void) {
    flumen_builder *builder = flumen_grown(NULL, sizeof *builder);
    memset(builder, 0, sizeof *builder);
    flumen_start(builder);
    return builder;
}

void flumen_column_free(flumen_builder *builder) {
    flumen_clear(&builder->offsets);
    flumen_clear(&builder->data);
    flumen_clear(&builder->present);
    free(builder);
}

uint32_t flumen_column_rows(const flumen_builder *builder) {
    return builder->rows;
}

void flumen_push(flumen_builder *builder, flumen_text value) {
    flumen_push_row(builder, value, true);
}

void flumen_push_absent(flumen_builder *builder) {
    flumen_push_row(builder, (flumen_text){NULL, 0}, false);
}

void flumen_add_rejection(flumen_rejections *to, uint32_t row, const char *reason) {
    if (to->len == to->capacity) {
        to->capacity = to->capacity * 2 + 16;
        to->rows = flumen_grown(to->rows, to->capacity * sizeof *to->rows);
    }
    to->rows[to->len++] = (flumen_plugin_types_rejection_t){row, flumen_words(reason)};
}

flumen_plugin_types_list_rejection_t flumen_take_rejections(flumen_rejections *from) {
    flumen_plugin_types_list_rejection_t out = {from->rows, from->len};
    *from = (flumen_rejections){NULL, 0, 0};
    return out;
}

/* --- what the host passes ----------------------------------------------------------------------------------------- */

flumen_plugin_types_reads_t flumen_take_reads(const flumen_reads *reads) {
    flumen_plugin_types_reads_t out = {.body = reads->body, .time = reads->time, .identity = reads->identity};
    if (reads->header_count > 0) {
        out.headers.ptr = flumen_grown(NULL, reads->header_count * sizeof *out.headers.ptr);
        out.headers.len = reads->header_count;
    }
    for (size_t i = 0; i < reads->header_count; i++) {
        out.headers.ptr[i] = flumen_owned(reads->headers[i]);
    }
    return out;
}

static flumen_column column_of(uint32_t rows, wire_list_u8_t offsets, wire_list_u8_t data) {
    return (flumen_column){rows, (const flumen_u32 *)offsets.ptr, data.ptr, NULL};
}

void flumen_batch_of(const flumen_plugin_types_batch_t *wire, flumen_batch *batch) {
    memset(batch, 0, sizeof *batch);
    batch->rows = wire->rows;
    if (wire->body.is_some) {
        batch->body = column_of(wire->rows, wire->body.val.offsets, wire->body.val.data);
    }
    if (wire->time.is_some) {
        batch->time = (const flumen_i64 *)wire->time.val.ptr;
    }
    if (wire->identity.is_some) {
        batch->stream = (const flumen_u64 *)wire->identity.val.stream.ptr;
        batch->position = (const flumen_u64 *)wire->identity.val.position.ptr;
    }
    for (size_t i = 0; i < wire->headers.len && i < FLUMEN_HEADERS_MAX; i++) {
        const flumen_plugin_types_header_column_t *header = &wire->headers.ptr[i];
        batch->headers[i] = column_of(wire->rows, header->offsets, header->data);
        batch->headers[i].present = header->present.is_some ? header->present.val.ptr : NULL;
        batch->names[i] = (flumen_text){header->name.ptr, header->name.len};
        batch->header_count++;
    }
}

bool flumen_failed(const flumen_error *error, wire_string_t *out) {
    const char *text = error->is_set ? error->text : "the plugin failed without a reason";
    *out = flumen_words(text);
    return false;
}

void exports_flumen_plugin_about_describe(exports_flumen_plugin_about_description_t *out) {
    out->version = flumen_owned(flumen_str(FLUMEN_ABOUT.version));
    out->summary = flumen_owned(flumen_str(FLUMEN_ABOUT.summary));
    out->options = flumen_owned(flumen_str(FLUMEN_ABOUT.options));
}

/* wit-bindgen's way to make sure that the types of the world are linked in; `flumen plugin build` adds them. */
void __component_type_object_force_link_wire(void) {}
