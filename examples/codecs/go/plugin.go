// Frames: four bytes with the length of a body, the highest first, then the body.
package main

import (
	"encoding/binary"
	"fmt"

	"flumen"
)

const options = `{
  "type": "object", "additionalProperties": false,
  "properties": {
    "max_bytes": {"type": "integer", "minimum": 1, "maximum": 67108864, "default": 1048576, "description": "Bytes of the longest body."}
  }
}`

type settings struct {
	MaxBytes int `json:"max_bytes"`
}

func (s *settings) parse(config flumen.Config) error {
	s.MaxBytes = 1 << 20
	return config.Parse(s)
}

type reader struct{ settings }

func (r *reader) Open(config flumen.Config) error { return r.parse(config) }

func (r *reader) Decode(input []byte, isLast bool, out *flumen.Decoded) error {
	start := 0
	for len(input)-start >= 4 {
		length := int(binary.BigEndian.Uint32(input[start:]))
		if uint32(length) > uint32(r.MaxBytes) {
			// Nothing tells where the next one begins.
			out.Bad(start, len(input), fmt.Sprintf("a frame of %d bytes is longer than max_bytes", uint32(length)))
			return nil
		}
		if len(input)-start-4 < length {
			break
		}
		body := input[start+4 : start+4+length]
		start += 4 + length
		out.Event(start, body)
	}
	if isLast && start < len(input) {
		out.Bad(start, len(input), "the last frame is not whole")
	}
	return nil
}

type writer struct{ settings }

func (w *writer) Open(config flumen.Config) (flumen.Reads, error) {
	return flumen.Reads{Body: true}, w.parse(config)
}

func (w *writer) Encode(batch *flumen.Batch, _ *uint64, out *flumen.Payloads) error {
	for event := range batch.Events {
		body := event.Body()
		if len(body) > w.MaxBytes {
			out.Reject(event.Row, fmt.Sprintf("a body of %d bytes is longer than max_bytes", len(body)))
			continue
		}
		out.Add(binary.BigEndian.AppendUint32(nil, uint32(len(body))))
		out.Add(body)
		out.End()
	}
	return nil
}

func init() {
	flumen.RegisterCodec(flumen.About{
		Version: "0.1.0",
		Summary: "Frames: four bytes with the length of a body, then the body.",
		Options: options,
	}, &reader{}, &writer{})
}

func main() {}
