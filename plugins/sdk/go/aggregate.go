package flumen

import (
	"encoding/binary"

	aggregation "flumen/exports/export_flumen_plugin_aggregation"
	generated "flumen/imports/flumen_plugin_aggregation"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

// Aggregator is an interceptor that also makes events of its own, from what it keeps in flumen/state. What is between two
// calls is in the state and nowhere else.
type Aggregator interface {
	Open(config Config) (Reads, error)
	// Process says what becomes of the batch's rows, and adds new events.
	Process(batch *Batch, events *Events) (*Answer, error)
}

// Ticker is an Aggregator for which time passes, also when no event comes.
type Ticker interface {
	// TickMs is asked once, after Open: how often Tick is called, in milliseconds.
	TickMs() uint32
	// Tick is called between two batches; now is nanoseconds since the Unix epoch, UTC.
	Tick(now int64, events *Events) error
}

// Events are new ones. They go on behind the batch, with identities that the host gives them.
type Events struct {
	body    *Builder
	times   []byte
	headers []*Builder
}

// Len is how many there are.
func (e *Events) Len() int { return len(e.times) / 8 }

// Add adds an event: nanoseconds since the Unix epoch, and a body.
func (e *Events) Add(time int64, body []byte) {
	if e.body == nil {
		e.body = newBuilder("", 16, 1024)
	}
	e.body.Push(body)
	e.times = binary.LittleEndian.AppendUint64(e.times, uint64(time))
}

// Header adds a header to the event that was added last. The second of the same name is left out.
func (e *Events) Header(name, value string) {
	var column *Builder
	for _, b := range e.headers {
		if b.name == name {
			column = b
		}
	}
	if column == nil {
		column = newBuilder(name, e.Len(), 256)
		e.headers = append(e.headers, column)
	}
	if column.rows < e.Len() {
		column.fill(e.Len() - 1)
		column.PushString(value)
	}
}

func (e *Events) wire(hasTimes bool) wire.Events {
	if e.body == nil {
		e.body = newBuilder("", 0, 0)
	}
	out := wire.Events{Rows: uint32(e.Len()), Body: e.body.column(), Time: wit.None[[]uint8]()}
	if hasTimes {
		out.Time = wit.Some(e.times)
	}
	for _, b := range e.headers {
		b.fill(e.Len())
		out.Headers = append(out.Headers, b.header())
	}
	return out
}

func (e *Events) option() wit.Option[wire.Events] {
	if e.Len() == 0 {
		return wit.None[wire.Events]()
	}
	return wit.Some(e.wire(true))
}

// RegisterAggregator makes p the plugin of this program.
func RegisterAggregator(a About, p Aggregator) {
	a.register()
	ticker, hasTicks := p.(Ticker)
	var reads Reads
	aggregation.OpenHook = func(config string) (generated.Opened, error) {
		out, err := openReads(config, p.Open, &reads)
		opened := generated.Opened{Reads: out}
		if err == nil && hasTicks {
			opened.TickMs = ticker.TickMs()
		}
		return opened, err
	}
	aggregation.ProcessHook = func(in wire.Batch) (none generated.Aggregate, err error) {
		batch := batchOf(in, &reads)
		var events Events
		answer, err := p.Process(&batch, &events)
		if err != nil {
			return none, err
		}
		return generated.Aggregate{Rows: answer.difference(&batch), Emitted: events.option()}, nil
	}
	aggregation.TickHook = func(now int64) (none wit.Option[wire.Events], err error) {
		var events Events
		if hasTicks {
			err = ticker.Tick(now, &events)
		}
		return events.option(), err
	}
}
