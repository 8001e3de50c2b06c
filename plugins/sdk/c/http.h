/* HTTP and HTTPS, through the host. The pipeline grants `http` and names the hosts: egress = { allow = ["host:port"] }.
 *
 * The host owns the connections, speaks TLS, keeps to its list and to its limits. Redirects are not followed. A secret is a
 * name: the host puts the value where the name stands.
 */
#ifndef FLUMEN_HTTP_H
#define FLUMEN_HTTP_H

#include "flumen.h"

#define FLUMEN_REQUEST_HEADERS_MAX 16

/* A request. Its texts are lent: they have to stay until it is sent. Begin with a method and an address, the rest {0}. */
typedef struct {
    flumen_text method;
    flumen_text url;
    flumen_text body;
    /* 0: the pipeline's limit. */
    uint32_t timeout_ms;
    size_t header_count;
    struct {
        flumen_text name, value, secret;
    } headers[FLUMEN_REQUEST_HEADERS_MAX];
} flumen_request;
void flumen_request_header(flumen_request *request, const char *name, flumen_text value);
/* A header whose value ends with a secret: (request, "authorization", "Bearer ", "token"). */
void flumen_request_secret(flumen_request *request, const char *name, const char *before, const char *secret);

/* An answer with any status. `flumen_response_free` gives its memory back. */
typedef struct {
    uint16_t status;
    flumen_text body;
    void *wire;
} flumen_response;
/* Sends it and waits for the whole answer. False, with an error, if there is none. */
bool flumen_send(const flumen_request *request, flumen_response *response, flumen_error *error);
/* The first header of this name, in lower case. */
bool flumen_response_header(const flumen_response *response, const char *name, flumen_text *value);
/* Milliseconds until the server wants to be asked again, if it says so in seconds; else 0. */
uint32_t flumen_retry_after_ms(const flumen_response *response);
void flumen_response_free(flumen_response *response);

#endif
