package flumen

import (
	"encoding/binary"

	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

// Column is a column of byte strings.
type Column struct {
	offsets []byte
	// Data holds the bytes of all rows, one after the other.
	Data []byte
}

// Len is the number of rows.
func (c Column) Len() int { return max(len(c.offsets)/4-1, 0) }

func (c Column) offset(row int) int { return int(binary.LittleEndian.Uint32(c.offsets[row*4:])) }

// Get is the bytes of a row. They are the host's memory: copy what is to stay after the batch.
func (c Column) Get(row int) []byte {
	both := binary.LittleEndian.Uint64(c.offsets[row*4 : row*4+8])
	return c.Data[uint32(both):uint32(both>>32)]
}

// FindRows calls yield with every row that holds the needle, in order: for row := range column.FindRows(needle). It
// searches the data of all rows as one text.
func (c Column) FindRows(needle []byte) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		rows, row, start := c.Len(), 0, 0
		for row < rows {
			hit := start
			if len(needle) > 0 {
				at := Find(c.Data[start:], needle)
				if at < 0 {
					return
				}
				hit += at
				for c.offset(row+1) <= hit {
					row++
				}
			}
			// A hit that spans the border between two rows does not count; nothing more in this row can.
			end := c.offset(row + 1)
			if (len(needle) == 0 || hit+len(needle) <= end) && !yield(row) {
				return
			}
			start = end
			row++
		}
	}
}

// Header is the column of one header.
type Header struct {
	Name string
	Column
	present []byte
}

// Value is the value of a row, and whether the row has one.
func (h *Header) Value(row int) ([]byte, bool) {
	if h.present != nil && h.present[row/8]>>(row%8)&1 == 0 {
		return nil, false
	}
	return h.Get(row), true
}

// Int64s is a column of signed numbers.
type Int64s struct{ list []byte }

// Len is the number of rows.
func (n Int64s) Len() int { return len(n.list) / 8 }

// Get is the number of a row.
func (n Int64s) Get(row int) int64 { return int64(binary.LittleEndian.Uint64(n.list[row*8:])) }

// Uint64s is a column of unsigned numbers.
type Uint64s struct{ list []byte }

// Len is the number of rows.
func (n Uint64s) Len() int { return len(n.list) / 8 }

// Get is the number of a row.
func (n Uint64s) Get(row int) uint64 { return binary.LittleEndian.Uint64(n.list[row*8:]) }

// Builder makes a column row by row.
type Builder struct {
	name          string
	offsets, data []byte
	present       []byte
	rows          int
	isSparse      bool
}

func newBuilder(name string, rows, bytes int) *Builder {
	b := &Builder{name: name, offsets: make([]byte, 4, (rows+1)*4), data: make([]byte, 0, bytes)}
	return b
}

// Push appends a row.
func (b *Builder) Push(value []byte) { b.push(value, true) }

// PushString appends a row.
func (b *Builder) PushString(value string) {
	b.data = append(b.data, value...)
	b.end(true)
}

// PushAbsent appends a row without a value (headers only).
func (b *Builder) PushAbsent() { b.end(false) }

// fill makes rows without a value, up to so many rows.
func (b *Builder) fill(rows int) {
	for b.rows < rows {
		b.PushAbsent()
	}
}

func (b *Builder) column() wire.BytesColumn {
	return wire.BytesColumn{Offsets: b.offsets, Data: b.data}
}

func (b *Builder) header() wire.HeaderColumn {
	column := wire.HeaderColumn{Name: b.name, Offsets: b.offsets, Data: b.data, Present: wit.None[[]uint8]()}
	if b.isSparse {
		column.Present = wit.Some(b.present)
	}
	return column
}

func (b *Builder) push(value []byte, isPresent bool) {
	b.data = append(b.data, value...)
	b.end(isPresent)
}

func (b *Builder) end(isPresent bool) {
	b.offsets = binary.LittleEndian.AppendUint32(b.offsets, uint32(len(b.data)))
	if b.rows%8 == 0 {
		b.present = append(b.present, 0)
	}
	if isPresent {
		b.present[b.rows/8] |= 1 << (b.rows % 8)
	} else {
		b.isSparse = true
	}
	b.rows++
}
