// Appends events as lines to a resource over HTTP, each exactly once.
//
// `GET url` answers 200 with the header `flumen-cursor`, or 404 if nothing was stored. `POST url` has lines and two headers: the
// server stores the lines and `flumen-cursor` in one step, if `flumen-after` is the cursor that it has.
package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"flumen"
	"flumen/http"
)

const options = `{
  "type": "object", "additionalProperties": false, "required": ["url"],
  "properties": {
    "url": {"type": "string", "pattern": "^https?://", "description": "The resource; egress.allow has to name its host and port."}
  }
}`

// Instead of a cursor, where there is none.
const none = "none"

type plugin struct {
	URL string `json:"url"`
	// What the server has, in hexadecimal.
	stored string
}

func (p *plugin) Open(config flumen.Config) (flumen.Reads, error) {
	if err := config.Parse(p); err != nil {
		return flumen.Reads{}, err
	}
	if p.URL == "" {
		return flumen.Reads{}, errors.New("config: the key `url` is missing; add it")
	}
	p.stored = none
	return flumen.Reads{Body: true}, nil
}

func (p *plugin) Recover() ([]byte, error) {
	answer, err := http.New("GET", p.URL).Send()
	if err != nil {
		return nil, err
	}
	cursor, has := answer.Header("flumen-cursor")
	switch {
	case answer.Status == 404:
		p.stored = none
		return nil, nil
	case answer.Status != 200 || !has:
		return nil, errors.New(unexpected(answer))
	}
	p.stored = strings.Clone(cursor)
	stored, err := hex.DecodeString(cursor)
	if err != nil {
		return nil, fmt.Errorf("the server's cursor %q is not hexadecimal", cursor)
	}
	return stored, nil
}

func (p *plugin) Deliver(batch *flumen.Batch, cursor []byte) (outcome flumen.Outcome, err error) {
	var lines []byte
	for event := range batch.Events {
		body := event.Body()
		if bytes.IndexByte(body, '\n') >= 0 {
			outcome.Reject(event.Row, "it has a line end in it, and a line cannot")
		}
		lines = append(append(lines, body...), '\n')
	}
	// Before anything is stored: the others come again without them.
	if outcome.Rejected() > 0 {
		return outcome, nil
	}
	next := hex.EncodeToString(cursor)
	request := http.New("POST", p.URL).Header("flumen-cursor", next).Header("flumen-after", p.stored)
	answer, err := request.Body(lines).Send()
	if err != nil {
		return outcome, err
	}
	switch {
	case answer.Status >= 200 && answer.Status < 300:
		p.stored = next
	case answer.Status == 429 || answer.Status == 503:
		outcome.Retry, outcome.After = unexpected(answer), answer.RetryAfter()
	default:
		err = errors.New(unexpected(answer))
	}
	return outcome, err
}

func unexpected(answer *http.Response) string {
	return fmt.Sprintf("the server says %d: %s", answer.Status, answer.Excerpt())
}

func init() {
	flumen.RegisterSink(flumen.About{
		Version: "0.1.0",
		Summary: "Appends events as lines to a resource over HTTP, each exactly once.",
		Options: options,
	}, &plugin{})
}

func main() {}
