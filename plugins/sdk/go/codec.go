package flumen

import (
	"encoding/binary"
	"errors"
	"strings"

	"flumen/exports/call"
	decoding "flumen/exports/export_flumen_plugin_decoding"
	encoding "flumen/exports/export_flumen_plugin_encoding"
	generatedDecoding "flumen/imports/flumen_plugin_decoding"
	generatedEncoding "flumen/imports/flumen_plugin_encoding"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

// Decoder finds events in the bytes of a stream. It keeps nothing between two calls.
type Decoder interface {
	Open(config Config) error
	// Decode decodes what is whole in input; the rest comes again, with more behind it. isLast: nothing will follow. Bytes
	// that are no event go to out.Bad; an error blames the whole input, and the host looks for the bytes that are guilty.
	Decode(input []byte, isLast bool, out *Decoded) error
}

// Encoder makes bytes of events. It keeps nothing between two calls.
type Encoder interface {
	Open(config Config) (Reads, error)
	// Encode makes a payload of each row, in order, or rejects it. file is the seed of the file that it goes to; nil: messages.
	// In a file payloads follow each other with nothing between them.
	Encode(batch *Batch, file *uint64, out *Payloads) error
}

// Framer is an Encoder whose files have a beginning and an end. seed is the file's own number.
type Framer interface {
	Begin(seed uint64) ([]byte, error)
	End(seed uint64) ([]byte, error)
}

// Decoded is what a decoder finds. Everything up to the end of the last event or bad bytes is consumed.
type Decoded struct {
	events   Events
	ends     []byte
	consumed int
	hasTimes bool
	bad      []generatedDecoding.BadBytes
}

// Event adds an event whose bytes end at end in the input. Several events of the same bytes have the same end.
func (d *Decoded) Event(end int, body []byte) {
	d.events.Add(0, body)
	d.ends = binary.LittleEndian.AppendUint32(d.ends, uint32(end))
	d.Consume(end)
}

// Time is of the event that was added last: give every event one, or none (then it is when it was read).
func (d *Decoded) Time(time int64) {
	d.hasTimes = true
	binary.LittleEndian.PutUint64(d.events.times[len(d.events.times)-8:], uint64(time))
}

// Header adds a header to the event that was added last. The second of the same name is left out.
func (d *Decoded) Header(name, value string) { d.events.Header(name, value) }

// Bad are bytes that are no event: they go to quarantine with the reason.
func (d *Decoded) Bad(begin, end int, reason string) {
	d.bad = append(d.bad, generatedDecoding.BadBytes{Begin: uint32(begin), End: uint32(end), Reason: call.Words(reason)})
	d.Consume(end)
}

// Consume says that bytes up to here are done with, also if there is no event at their end.
func (d *Decoded) Consume(end int) { d.consumed = max(d.consumed, end) }

// Payloads is what an encoder makes: a payload for each row, in order, or a rejection of it.
type Payloads struct {
	column   *Builder
	rejected []wire.Rejection
}

// Add adds to the payload that End ends.
func (p *Payloads) Add(part []byte) { p.column.data = append(p.column.data, part...) }

// End ends a payload.
func (p *Payloads) End() { p.column.end(true) }

// Reject says that a row has no payload: it goes to quarantine with the reason.
func (p *Payloads) Reject(row int, reason string) {
	p.rejected = append(p.rejected, wire.Rejection{Row: uint32(row), Reason: call.Words(reason)})
}

// RegisterCodec makes a decoder and an encoder the plugin of this program; one of them may be nil.
func RegisterCodec(a About, decoder Decoder, encoder Encoder) {
	a.register()
	if decoder != nil {
		registerDecoder(decoder)
	} else {
		decoding.OpenHook = func(string) (none wit.Unit, err error) {
			return none, errors.New("this codec reads nothing: it is for sinks")
		}
	}
	if encoder != nil {
		registerEncoder(encoder)
	} else {
		encoding.OpenHook = func(string) (none wire.Reads, err error) {
			return none, errors.New("this codec writes nothing: it is for sources")
		}
	}
}

func registerDecoder(p Decoder) {
	decoding.OpenHook = func(config string) (none wit.Unit, err error) {
		return none, p.Open(Config{strings.Clone(config)})
	}
	decoding.DecodeHook = func(input []byte, isLast bool) (generatedDecoding.Decoded, error) {
		var out Decoded
		err := p.Decode(input, isLast, &out)
		return generatedDecoding.Decoded{
			Consumed: uint32(out.consumed),
			Events:   out.events.wire(out.hasTimes),
			Ends:     out.ends,
			Bad:      out.bad,
		}, err
	}
}

func registerEncoder(p Encoder) {
	var reads Reads
	encoding.OpenHook = func(config string) (wire.Reads, error) { return openReads(config, p.Open, &reads) }
	encoding.EncodeHook = func(in wire.Batch, file *uint64) (generatedEncoding.Encoded, error) {
		batch := batchOf(in, &reads)
		out := Payloads{column: newBuilder("", batch.Rows, len(batch.Body.Data)+16*batch.Rows)}
		err := p.Encode(&batch, file, &out)
		return generatedEncoding.Encoded{Payloads: out.column.column(), Rejected: out.rejected}, err
	}
	nothing := func(uint64) ([]byte, error) { return nil, nil }
	encoding.BeginHook, encoding.EndHook = nothing, nothing
	if framer, is := p.(Framer); is {
		encoding.BeginHook, encoding.EndHook = framer.Begin, framer.End
	}
}
