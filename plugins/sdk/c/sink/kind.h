/* Sinks: they deliver batches to a destination (http.h). */
#ifndef FLUMEN_KIND_H
#define FLUMEN_KIND_H

/* Reads the configuration, and says which columns to pass. `recovers`: flumen_deliver stores the cursor with the batch, in
 * one step, and flumen_recover gives it back; every event arrives exactly once. Else at least once. */
bool flumen_open(flumen_text config, flumen_reads *reads, bool *recovers, flumen_error *error);

/* The cursor that the destination has; without one `has_cursor` stays false. Only if it recovers: need not be defined. */
bool flumen_recover(flumen_bytes *cursor, bool *has_cursor, flumen_error *error);

/* What became of a batch: it arrived, but for rows that are refused, or it comes again. */
typedef struct flumen_outcome flumen_outcome;
/* This row will never arrive: it goes to quarantine. A sink that recovers refuses rows only if it stored nothing. */
void flumen_refuse(flumen_outcome *outcome, uint32_t row, const char *reason);
/* Nothing arrived: the same batch comes again. `after_ms`: when; 0: at the host's pace. */
void flumen_retry(flumen_outcome *outcome, const char *reason, uint32_t after_ms);

/* Delivers a batch. `cursor` stands for everything up to its end. After false nobody knows what arrived: a fresh instance
 * is opened, and asked for its cursor. */
bool flumen_deliver(const flumen_batch *batch, flumen_text cursor, flumen_outcome *outcome, flumen_error *error);

#endif
