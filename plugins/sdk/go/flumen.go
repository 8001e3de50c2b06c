// Package flumen is for plugins of the Flumen log agent, written in Go.
//
// A plugin is a type with two methods, registered in init:
//
//	type keep struct{ text string }
//
//	func (k *keep) Open(config flumen.Config) (flumen.Reads, error)        { ... }
//	func (k *keep) Intercept(event flumen.Event, edit *flumen.Edit) error  { ... }
//
//	func init() { flumen.Register(flumen.About{Version: "0.1.0"}, &keep{}) }
//	func main() {}
//
// Implement BatchInterceptor instead of Interceptor to see the columns of a whole batch at once. The other kinds are
// Aggregator, Decoder and Encoder, and Sink. Host powers are the packages flumen/state and flumen/http, and those below
// flumen/imports: what is used must be granted by the pipeline.
package flumen

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	about "flumen/exports/export_flumen_plugin_about"
	guest "flumen/exports/export_flumen_plugin_guest"
	_ "flumen/exports/wit_exports"
	wire "flumen/imports/flumen_plugin_types"
)

// About is what the plugin says of itself. Options is the JSON Schema of its configuration, or empty.
type About struct {
	Version string
	Summary string
	Options string
}

// Reads names the columns to look at and to change. Others never cross the sandbox. The header "*" alone: all that a batch
// has.
type Reads struct {
	Body     bool
	Time     bool
	Identity bool
	Headers  []string
}

// Config is the plugin's configuration.
type Config struct{ json string }

// Parse fills a struct from the configuration. A key that the struct does not have is an error.
func (c Config) Parse(into any) error {
	decoder := json.NewDecoder(strings.NewReader(c.json))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Errorf("config.%s: found %s; write %s", wrong.Field, wrong.Value, wrong.Type)
	}
	if err != nil {
		// `json: unknown field "x"`
		text := strings.TrimPrefix(err.Error(), "json: ")
		if name, is := strings.CutPrefix(text, "unknown field "); is {
			text = "unknown key `" + strings.Trim(name, `"`) + "`"
		}
		return errors.New("config: " + text)
	}
	return nil
}

// JSON is the configuration as it came.
func (c Config) JSON() string { return c.json }

// Interceptor sees one event at a time.
type Interceptor interface {
	// Open is called once. Its error is shown to the user as it is: name the wrong key and the fix.
	Open(config Config) (Reads, error)
	// Intercept is called for every event. What edit is not told stays as it is. An error blames the whole batch; use
	// edit.Reject for an event that cannot be worked with.
	Intercept(event Event, edit *Edit) error
}

// BatchInterceptor sees the columns of a whole batch.
type BatchInterceptor interface {
	Open(config Config) (Reads, error)
	Process(batch *Batch) (*Answer, error)
}

// Register makes p, an Interceptor or a BatchInterceptor, the plugin of this program. The other kinds have their own:
// RegisterAggregator, RegisterCodec, RegisterSink.
func Register(a About, p interface {
	Open(config Config) (Reads, error)
}) {
	a.register()
	var reads Reads
	guest.OpenHook = func(config string) (wire.Reads, error) { return openReads(config, p.Open, &reads) }
	process := func(batch *Batch) (*Answer, error) {
		return nil, errors.New("the plugin has neither Intercept nor Process")
	}
	switch p := p.(type) {
	case BatchInterceptor:
		process = p.Process
	case Interceptor:
		process = func(batch *Batch) (*Answer, error) { return each(p, batch) }
	}
	guest.ProcessHook = func(in wire.Batch) (none wire.Difference, err error) {
		batch := batchOf(in, &reads)
		answer, err := process(&batch)
		if err != nil {
			return none, err
		}
		return answer.difference(&batch), nil
	}
}

func (a About) register() {
	about.Hook = func() about.Description {
		return about.Description{Version: a.Version, Summary: a.Summary, Options: a.Options}
	}
}

// openReads opens what says which columns it reads, and remembers them.
func openReads(config string, open func(Config) (Reads, error), reads *Reads) (none wire.Reads, err error) {
	// The string is the host's memory, and gone after the call.
	if *reads, err = open(Config{strings.Clone(config)}); err != nil {
		return none, err
	}
	return wire.Reads{Body: reads.Body, Time: reads.Time, Identity: reads.Identity, Headers: reads.Headers}, nil
}

// Batch is a table of events: one column per field. What Reads did not name is empty.
type Batch struct {
	Rows    int
	Body    Column
	Time    Int64s
	Headers []Header
	// The stream that an event was read from, and its position there.
	Stream, Position Uint64s

	reads *Reads
}

func batchOf(in wire.Batch, reads *Reads) Batch {
	batch := Batch{Rows: int(in.Rows), reads: reads}
	if in.Body.IsSome() {
		body := in.Body.Some()
		batch.Body = Column{offsets: body.Offsets, Data: body.Data}
	}
	if in.Time.IsSome() {
		batch.Time = Int64s{in.Time.Some()}
	}
	if in.Identity.IsSome() {
		identity := in.Identity.Some()
		batch.Stream, batch.Position = Uint64s{identity.Stream}, Uint64s{identity.Position}
	}
	if len(in.Headers) > 0 {
		batch.Headers = make([]Header, len(in.Headers))
	}
	for i, header := range in.Headers {
		name := header.Name
		if i < len(reads.Headers) && reads.Headers[i] != "*" {
			name = reads.Headers[i]
		}
		batch.Headers[i] = Header{
			Name:    name,
			Column:  Column{offsets: header.Offsets, Data: header.Data},
			present: header.Present.SomeOr(nil),
		}
	}
	return batch
}

// Event is one row of a batch.
type Event struct {
	batch *Batch
	// Row in the batch, from 0.
	Row int
}

// Events calls yield with every event: for event := range batch.Events { ... }.
func (b *Batch) Events(yield func(Event) bool) {
	for row := 0; row < b.Rows; row++ {
		if !yield(Event{b, row}) {
			return
		}
	}
}

// Body is the event's body. It is the host's memory: copy what is to stay after the batch.
func (e Event) Body() []byte { return e.batch.Body.Get(e.Row) }

// Time is nanoseconds since the Unix epoch, UTC; 0 if Reads did not name the time.
func (e Event) Time() int64 {
	if e.batch.Time.Len() == 0 {
		return 0
	}
	return e.batch.Time.Get(e.Row)
}

// Header is the value of a header, and whether the event has it.
func (e Event) Header(name string) (string, bool) {
	for i := range e.batch.Headers {
		if e.batch.Headers[i].Name == name {
			value, is := e.batch.Headers[i].Value(e.Row)
			return string(value), is
		}
	}
	return "", false
}

// Contains says whether the body holds the text.
func (e Event) Contains(text []byte) bool { return Find(e.Body(), text) >= 0 }
