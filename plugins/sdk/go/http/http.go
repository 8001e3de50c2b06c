// Package http is HTTP and HTTPS, through the host. The pipeline grants it and names the hosts:
// egress = { allow = ["host:port"] }.
//
// The host owns the connections, speaks TLS, keeps to its list and to its limits. Redirects are not followed. A secret is a
// name: the host puts the value where the name stands.
package http

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"flumen/imports/flumen_plugin_egress"
	host "flumen/imports/flumen_plugin_http"
	wit "flumen/wit/types"
)

// Request is one that is being put together.
type Request struct{ wire host.Request }

// New begins a request: "GET", "POST", ...
func New(method, url string) *Request {
	return &Request{host.Request{Method: method, Url: url, TimeoutMs: wit.None[uint32]()}}
}

// Header adds a header.
func (r *Request) Header(name, value string) *Request {
	return r.header(name, flumen_plugin_egress.MakePartText(value))
}

// SecretHeader adds a header whose value ends with a secret: ("authorization", "Bearer ", "token").
func (r *Request) SecretHeader(name, before, secret string) *Request {
	return r.header(name, flumen_plugin_egress.MakePartText(before), flumen_plugin_egress.MakePartSecret(secret))
}

func (r *Request) header(name string, value ...flumen_plugin_egress.Part) *Request {
	r.wire.Headers = append(r.wire.Headers, host.Header{Name: name, Value: value})
	return r
}

// Body adds bytes to the body.
func (r *Request) Body(bytes []byte) *Request {
	r.wire.Body = append(r.wire.Body, flumen_plugin_egress.MakePartBytes(bytes))
	return r
}

// Timeout is less time than the pipeline allows.
func (r *Request) Timeout(after time.Duration) *Request {
	r.wire.TimeoutMs = wit.Some(uint32(after.Milliseconds()))
	return r
}

// Response is an answer with any status.
type Response struct {
	Status int
	Body   []byte

	headers []wit.Tuple2[string, string]
}

// Send sends it and waits for the whole answer. An answer with any status is no error.
func (r *Request) Send() (*Response, error) {
	result := host.Send(r.wire)
	if result.IsErr() {
		return nil, explain(result.Err())
	}
	answer := result.Ok()
	return &Response{Status: int(answer.Status), Body: answer.Body, headers: answer.Headers}, nil
}

// Header is the first header of this name, in lower case.
func (r *Response) Header(name string) (string, bool) {
	for _, header := range r.headers {
		if header.F0 == name {
			return header.F1, true
		}
	}
	return "", false
}

// RetryAfter is the time until the server wants to be asked again, if it says so in seconds; else 0.
func (r *Response) RetryAfter() time.Duration {
	text, _ := r.Header("retry-after")
	seconds, err := strconv.ParseUint(text, 10, 20)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// Excerpt is the beginning of the body, for an error.
func (r *Response) Excerpt() string { return string(r.Body[:min(len(r.Body), 200)]) }

func explain(failure flumen_plugin_egress.Failure) error {
	switch failure.Tag() {
	case flumen_plugin_egress.Failure_Denied:
		return fmt.Errorf("not allowed: %s", failure.Denied())
	case flumen_plugin_egress.Failure_Invalid:
		return fmt.Errorf("the request is wrong: %s", failure.Invalid())
	case flumen_plugin_egress.Failure_Unreachable:
		return fmt.Errorf("%s", failure.Unreachable())
	case flumen_plugin_egress.Failure_TooLarge:
		return fmt.Errorf("the answer has more than %d bytes", failure.TooLarge())
	}
	return errors.New("no answer in time")
}
