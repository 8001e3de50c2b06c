/* Codecs: bytes of a stream to events, events to payloads or to the bytes of files. One that works in one direction only
 * leaves the other one out. A codec keeps nothing between two calls. */
#ifndef FLUMEN_KIND_H
#define FLUMEN_KIND_H

/* --- bytes to events ------------------------------------------------------------------------------------------- */

/* What a decoder finds. Everything up to the end of the last event or bad bytes is consumed. */
typedef struct flumen_decoded flumen_decoded;
/* An event whose bytes end at `end` in the input. Several events of the same bytes have the same end. */
void flumen_decoded_event(flumen_decoded *decoded, size_t end, flumen_text body);
/* The time of the event that was added last: give every event one, or none (then it is when it was read). */
void flumen_decoded_time(flumen_decoded *decoded, int64_t time);
/* A header of the event that was added last. The second of the same name is left out. */
void flumen_decoded_header(flumen_decoded *decoded, flumen_text name, flumen_text value);
/* Bytes that are no event: they go to quarantine with the reason. */
void flumen_decoded_bad(flumen_decoded *decoded, size_t begin, size_t end, const char *reason);
/* Bytes up to here are done with, also if there is no event at their end. */
void flumen_decoded_consume(flumen_decoded *decoded, size_t end);

bool flumen_open_decoder(flumen_text config, flumen_error *error);
/* Decodes what is whole in `input`; the rest comes again, with more behind it. `is_last`: nothing will follow. */
bool flumen_decode(flumen_text input, bool is_last, flumen_decoded *decoded, flumen_error *error);

/* --- events to bytes ------------------------------------------------------------------------------------------- */

/* A payload for each row, in order, or a rejection of it. */
typedef struct flumen_payloads flumen_payloads;
/* Adds to the payload that flumen_payload_end ends. */
void flumen_payload_add(flumen_payloads *payloads, flumen_text part);
void flumen_payload_end(flumen_payloads *payloads);
/* This row has no payload: it goes to quarantine with the reason. */
void flumen_payload_reject(flumen_payloads *payloads, uint32_t row, const char *reason);

bool flumen_open_encoder(flumen_text config, flumen_reads *reads, flumen_error *error);
/* `file`: the seed of the file that it goes to; NULL: messages. In a file payloads follow each other with nothing between. */
bool flumen_encode(const flumen_batch *batch, const uint64_t *file, flumen_payloads *payloads, flumen_error *error);
/* What stands at the beginning and at the end of a file. Need not be defined. */
bool flumen_file_begin(uint64_t seed, flumen_bytes *bytes, flumen_error *error);
bool flumen_file_end(uint64_t seed, flumen_bytes *bytes, flumen_error *error);

#endif
