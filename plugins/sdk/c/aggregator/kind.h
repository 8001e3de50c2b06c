/* Aggregators: interceptors that also make events of their own, from what they keep in the state (state.h). */
#ifndef FLUMEN_KIND_H
#define FLUMEN_KIND_H

/* Reads the configuration; says which columns to pass, and how often time passes (`tick_ms`; 0: never). */
bool flumen_open(flumen_text config, flumen_reads *reads, uint32_t *tick_ms, flumen_error *error);

/* What becomes of the batch's rows, and new events. What is between two calls is in the state and nowhere else. */
bool flumen_process(const flumen_batch *batch, flumen_answer *answer, flumen_events *events, flumen_error *error);

/* Time passes, also when no event comes. `now` is nanoseconds since the Unix epoch, UTC. Need not be defined. */
bool flumen_tick(int64_t now, flumen_events *events, flumen_error *error);

#endif
