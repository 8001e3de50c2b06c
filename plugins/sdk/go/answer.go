package flumen

import (
	"encoding/binary"

	"flumen/exports/call"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

// Answer says what becomes of a batch; nil leaves it as it is. Columns have one row for each output row.
type Answer struct {
	rows      []byte
	isChosen  bool
	body      *Builder
	time      []byte
	headers   []*Builder
	constants []constant
	removed   []string
	rejected  []wire.Rejection
}

type constant struct{ name, value string }

// Keep says that the next output row comes from this input row. Once it or KeepOnly was called, only rows that are
// named go on.
func (a *Answer) Keep(row int) {
	a.isChosen = true
	a.rows = binary.LittleEndian.AppendUint32(a.rows, uint32(row))
}

// KeepOnly says that no row goes on but those that Keep names.
func (a *Answer) KeepOnly() { a.isChosen = true }

// Reject takes a row out of the flow, with a reason.
func (a *Answer) Reject(row int, reason string) {
	a.rejected = append(a.rejected, wire.Rejection{Row: uint32(row), Reason: call.Words(reason)})
}

// Body starts the column of new bodies.
func (a *Answer) Body(rows, bytes int) *Builder {
	a.body = newBuilder("", rows, bytes)
	return a.body
}

// Header starts the column of a header.
func (a *Answer) Header(name string, rows, bytes int) *Builder {
	b := newBuilder(name, rows, bytes)
	a.headers = append(a.headers, b)
	return b
}

// PushTime appends to the column of new times.
func (a *Answer) PushTime(time int64) {
	a.time = binary.LittleEndian.AppendUint64(a.time, uint64(time))
}

// SetAll sets a header to one value on every output row.
func (a *Answer) SetAll(name, value string) { a.constants = append(a.constants, constant{name, value}) }

// RemoveAll removes a header from every row.
func (a *Answer) RemoveAll(name string) { a.removed = append(a.removed, name) }

func (a *Answer) outputRows(batch *Batch) int {
	if a.isChosen {
		return len(a.rows) / 4
	}
	return batch.Rows - len(a.rejected)
}

func (a *Answer) difference(batch *Batch) wire.Difference {
	none := wit.None[[]uint8]()
	out := wire.Difference{RowsFrom: none, Body: wit.None[wire.BytesColumn](), Time: none}
	if a == nil {
		return out
	}
	if a.isChosen {
		out.RowsFrom = wit.Some(a.rows)
	}
	if a.body != nil {
		out.Body = wit.Some(wire.BytesColumn{Offsets: a.body.offsets, Data: a.body.data})
	}
	if a.time != nil {
		out.Time = wit.Some(a.time)
	}
	rows := a.outputRows(batch)
	for _, c := range a.constants {
		b := newBuilder(c.name, rows, rows*len(c.value))
		for range rows {
			b.PushString(c.value)
		}
		a.headers = append(a.headers, b)
	}
	for _, b := range a.headers {
		out.SetHeaders = append(out.SetHeaders, b.header())
	}
	out.RemoveHeaders, out.Rejected = a.removed, a.rejected
	return out
}
