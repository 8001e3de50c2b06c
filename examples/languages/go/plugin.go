// Keeps the events whose body holds a text, and marks them with a header.
package main

import (
	"errors"

	"flumen"
)

const options = `{
  "type": "object", "additionalProperties": false, "required": ["contains"],
  "properties": {
    "contains": {"type": "string", "minLength": 1, "description": "What the body has to hold."},
    "header": {"type": "string", "minLength": 1, "default": "matched", "description": "The header that is set."}
  }
}`

type plugin struct {
	Contains string `json:"contains"`
	Header   string `json:"header"`
	needle   []byte
}

func (p *plugin) Open(config flumen.Config) (flumen.Reads, error) {
	p.Header = "matched"
	if err := config.Parse(p); err != nil {
		return flumen.Reads{}, err
	}
	if p.Contains == "" {
		return flumen.Reads{}, errors.New("config: the key `contains` is missing; add it")
	}
	p.needle = []byte(p.Contains)
	return flumen.Reads{Body: true, Headers: []string{p.Header}}, nil
}

func (p *plugin) Intercept(event flumen.Event, edit *flumen.Edit) error {
	if event.Contains(p.needle) {
		edit.SetHeader(p.Header, p.Contains)
	} else {
		edit.Drop()
	}
	return nil
}

func init() {
	flumen.Register(flumen.About{
		Version: "0.1.0",
		Summary: "Keeps the events whose body holds a text, and marks them with a header.",
		Options: options,
	}, &plugin{})
}

func main() {}
