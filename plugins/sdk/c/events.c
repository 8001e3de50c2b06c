/* New events: what aggregators make, and decoders find. */
#include "columns.h"

void flumen_add_event(flumen_events *events, int64_t time, flumen_text body) {
    flumen_push(&events->body, body);
    flumen_add(&events->time, &time, sizeof time);
    events->rows++;
}

void flumen_add_header(flumen_events *events, flumen_text name, flumen_text value) {
    size_t i = 0;
    while (i < events->header_count && !flumen_equal(events->headers[i].name, name)) {
        i++;
    }
    if (i == FLUMEN_HEADERS_MAX || events->rows == 0) {
        abort();
    }
    flumen_builder *header = &events->headers[i];
    if (i == events->header_count) {
        events->header_count++;
        header->name = flumen_copy(name);
    }
    while (header->rows + 1 < events->rows) {
        flumen_push_absent(header);
    }
    if (header->rows < events->rows) {
        flumen_push(header, value);
    }
}

flumen_plugin_types_events_t flumen_take_events(flumen_events *events) {
    flumen_plugin_types_events_t out = {.rows = events->rows, .body = flumen_take_column(&events->body)};
    out.time = (wire_option_list_u8_t){true, flumen_take(&events->time)};
    if (events->header_count > 0) {
        out.headers.ptr = flumen_grown(NULL, events->header_count * sizeof *out.headers.ptr);
        out.headers.len = events->header_count;
    }
    for (size_t i = 0; i < events->header_count; i++) {
        flumen_builder *header = &events->headers[i];
        while (header->rows < events->rows) {
            flumen_push_absent(header);
        }
        out.headers.ptr[i] = flumen_take_header(header);
    }
    memset(events, 0, sizeof *events);
    return out;
}
