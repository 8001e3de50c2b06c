/* The answer to a batch: what interceptors and aggregators say of its rows. */
#include "columns.h"

void flumen_keep_only(flumen_answer *answer) {
    answer->is_plain = false;
}

void flumen_keep(flumen_answer *answer, uint32_t row) {
    answer->is_plain = false;
    flumen_add(&answer->rows, &row, sizeof row);
}

void flumen_reject_row(flumen_answer *answer, uint32_t row, const char *reason) {
    flumen_add_rejection(&answer->rejected, row, reason);
}

flumen_builder *flumen_answer_body(flumen_answer *answer) {
    flumen_start(&answer->body);
    return &answer->body;
}

flumen_builder *flumen_answer_header(flumen_answer *answer, flumen_text name) {
    if (answer->header_count == FLUMEN_HEADERS_MAX) {
        abort();
    }
    flumen_builder *builder = &answer->headers[answer->header_count++];
    flumen_start(builder);
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

flumen_plugin_types_difference_t flumen_take_answer(flumen_answer *answer) {
    uint32_t rows = (uint32_t)(answer->rows.len / 4);
    if (answer->is_plain) {
        rows = answer->batch->rows - (uint32_t)answer->rejected.len;
    }
    flumen_plugin_types_difference_t out = {0};
    out.rows_from = (wire_option_list_u8_t){!answer->is_plain, flumen_take(&answer->rows)};
    if (answer->body.is_used) {
        out.body.is_some = true;
        out.body.val = flumen_take_column(&answer->body);
    }
    out.time.is_some = answer->time.len > 0;
    out.time.val = flumen_take(&answer->time);
    if (answer->header_count > 0) {
        out.set_headers.ptr = flumen_grown(NULL, answer->header_count * sizeof *out.set_headers.ptr);
        out.set_headers.len = answer->header_count;
    }
    for (size_t i = 0; i < answer->header_count; i++) {
        flumen_builder *builder = &answer->headers[i];
        while (builder->is_constant && builder->rows < rows) {
            flumen_push_row(builder, builder->constant, true);
        }
        out.set_headers.ptr[i] = flumen_take_header(builder);
    }
    if (answer->removed_count > 0) {
        out.remove_headers.ptr = flumen_grown(NULL, answer->removed_count * sizeof *out.remove_headers.ptr);
        out.remove_headers.len = answer->removed_count;
    }
    for (size_t i = 0; i < answer->removed_count; i++) {
        out.remove_headers.ptr[i] = (wire_string_t){(uint8_t *)answer->removed[i].ptr, answer->removed[i].len};
    }
    out.rejected = flumen_take_rejections(&answer->rejected);
    return out;
}
