package flumen

import (
	"time"

	"flumen/exports/call"
	delivery "flumen/exports/export_flumen_plugin_delivery"
	generated "flumen/imports/flumen_plugin_delivery"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

// Sink delivers batches to a destination, over flumen/http for example. One that is no Recoverer delivers at least once.
type Sink interface {
	Open(config Config) (Reads, error)
	// Deliver delivers a batch. cursor stands for everything up to its end. After an error nobody knows what arrived: a fresh
	// instance is opened, and asked for its cursor.
	Deliver(batch *Batch, cursor []byte) (Outcome, error)
}

// Recoverer is a Sink whose Deliver stores the cursor with the batch, in one step: every event arrives exactly once.
type Recoverer interface {
	// Recover is the cursor that the destination has; nil: it has none.
	Recover() ([]byte, error)
}

// Outcome is what became of a batch; the zero value: all of it arrived.
type Outcome struct {
	// Why the same batch has to come again; nothing of it arrived. Empty: it arrived.
	Retry string
	// When it comes again; 0: at the host's pace.
	After time.Duration

	rejected []wire.Rejection
}

// Reject says that a row will never arrive: it goes to quarantine. A Recoverer rejects rows only if it stored nothing; the
// others come again without them.
func (o *Outcome) Reject(row int, reason string) {
	o.rejected = append(o.rejected, wire.Rejection{Row: uint32(row), Reason: call.Words(reason)})
}

// Rejected is how many rows were rejected.
func (o *Outcome) Rejected() int { return len(o.rejected) }

func (o *Outcome) wire() generated.Outcome {
	if o.Retry == "" {
		return generated.MakeOutcomeDelivered(o.rejected)
	}
	later := generated.Later{Reason: call.Words(o.Retry), AfterMs: wit.None[uint32]()}
	if o.After > 0 {
		later.AfterMs = wit.Some(uint32(o.After.Milliseconds()))
	}
	return generated.MakeOutcomeRetry(later)
}

// RegisterSink makes p the plugin of this program.
func RegisterSink(a About, p Sink) {
	a.register()
	recoverer, recovers := p.(Recoverer)
	var reads Reads
	delivery.OpenHook = func(config string) (generated.Opened, error) {
		out, err := openReads(config, p.Open, &reads)
		return generated.Opened{Reads: out, Recovers: recovers}, err
	}
	delivery.RecoverHook = func() (wit.Option[[]byte], error) {
		var cursor []byte
		var err error
		if recovers {
			cursor, err = recoverer.Recover()
		}
		if cursor == nil {
			return wit.None[[]byte](), err
		}
		return wit.Some(cursor), err
	}
	delivery.DeliverHook = func(in wire.Batch, cursor []byte) (none generated.Outcome, err error) {
		batch := batchOf(in, &reads)
		outcome, err := p.Deliver(&batch, cursor)
		if err != nil {
			return none, err
		}
		return outcome.wire(), nil
	}
}
