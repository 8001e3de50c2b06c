// Package state is what a plugin remembers: keys and values that survive restarts, crashes and swaps. The pipeline grants it.
//
// The writes of a batch are in the same commit as its events. Every call takes a whole column, because a call costs more
// than a row. Keys have 1 to 1,024 bytes, values up to 1 MiB.
package state

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"

	host "flumen/imports/flumen_plugin_state"
	wit "flumen/wit/types"
)

// Entry is a key with its value.
type Entry struct{ Key, Value []byte }

// Get gives the values of these keys, in their order; nil: the key has none.
func Get(keys [][]byte) ([][]byte, error) {
	values, err := result(host.GetMany(column(keys)))
	if err != nil {
		return nil, err
	}
	out := rows(values.Offsets, values.Data)
	for row := range out {
		if !isSet(values.Present, row) {
			out[row] = nil
		}
	}
	return out, nil
}

// Put sets keys to values. With a ttl they are forgotten that much later; 0: never.
func Put(keys, values [][]byte, ttl time.Duration) error {
	_, err := result(host.PutMany(column(keys), column(values), milliseconds(ttl)))
	return err
}

// Insert sets each key that has no value yet; with nil for values to an empty one. It tells which were set now; of equal keys
// the first.
func Insert(keys, values [][]byte, ttl time.Duration) ([]bool, error) {
	given := wit.None[host.BytesColumn]()
	if values != nil {
		given = wit.Some(column(values))
	}
	bits, err := result(host.InsertIfAbsent(column(keys), given, milliseconds(ttl)))
	if err != nil {
		return nil, err
	}
	out := make([]bool, len(keys))
	for row := range out {
		out[row] = isSet(bits, row)
	}
	return out, nil
}

// Remove forgets keys.
func Remove(keys [][]byte) error {
	_, err := result(host.RemoveMany(column(keys)))
	return err
}

// Scan gives the keys that begin with prefix and come after after (nil: from the first), at most limit, in byte order.
func Scan(prefix, after []byte, limit int) ([]Entry, error) {
	from := wit.None[[]uint8]()
	if after != nil {
		from = wit.Some(after)
	}
	entries, err := result(host.Scan(prefix, from, uint32(limit)))
	if err != nil {
		return nil, err
	}
	keys, values := rows(entries.Keys.Offsets, entries.Keys.Data), rows(entries.Values.Offsets, entries.Values.Data)
	out := make([]Entry, len(keys))
	for row := range out {
		out[row] = Entry{keys[row], values[row]}
	}
	return out, nil
}

func result[T any](of wit.Result[T, string]) (none T, err error) {
	if of.IsErr() {
		// The text is the host's memory.
		return none, errors.New(strings.Clone(of.Err()))
	}
	return of.Ok(), nil
}

func column(values [][]byte) host.BytesColumn {
	out := host.BytesColumn{Offsets: make([]byte, 4, (len(values)+1)*4)}
	for _, value := range values {
		out.Data = append(out.Data, value...)
		out.Offsets = binary.LittleEndian.AppendUint32(out.Offsets, uint32(len(out.Data)))
	}
	return out
}

func rows(offsets, data []byte) [][]byte {
	out := make([][]byte, max(len(offsets)/4-1, 0))
	for row := range out {
		begin, end := binary.LittleEndian.Uint32(offsets[row*4:]), binary.LittleEndian.Uint32(offsets[row*4+4:])
		out[row] = data[begin:end:end]
	}
	return out
}

func isSet(bits []byte, row int) bool { return bits[row/8]>>(row%8)&1 == 1 }

func milliseconds(ttl time.Duration) wit.Option[uint64] {
	if ttl <= 0 {
		return wit.None[uint64]()
	}
	return wit.Some(uint64(ttl.Milliseconds()))
}
