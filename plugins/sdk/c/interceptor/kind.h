/* Interceptors: a batch in, the difference out. */
#ifndef FLUMEN_KIND_H
#define FLUMEN_KIND_H

/* Reads the configuration, and says which columns to pass. */
bool flumen_open(flumen_text config, flumen_reads *reads, flumen_error *error);

/* --- one event at a time: define this one --------------------------------------------------------------------- */

typedef struct flumen_edit flumen_edit;
void flumen_intercept(const flumen_event *event, flumen_edit *edit);

/* What happens to the event at hand; an event that nothing is said about goes on unchanged. */
void flumen_drop(flumen_edit *edit);
/* It cannot be worked with, for this reason; the pipeline says where such events go. */
void flumen_reject(flumen_edit *edit, const char *reason);
void flumen_set_body(flumen_edit *edit, flumen_text body);
void flumen_set_time(flumen_edit *edit, int64_t time);
/* The header with this number of flumen_reads. */
void flumen_set_header(flumen_edit *edit, size_t number, flumen_text value);
void flumen_remove_header(flumen_edit *edit, size_t number);
/* Sends the event on as it is now, and starts again from what came in: to make several events of one. */
void flumen_emit(flumen_edit *edit);

/* --- or the whole batch at once: this one ---------------------------------------------------------------------- */

bool flumen_process(const flumen_batch *batch, flumen_answer *answer, flumen_error *error);

#endif
