package flumen

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

const (
	lows  = 0x0101010101010101
	highs = 0x8080808080808080
)

// Find says where needle begins in text, or -1. The library's search goes byte by byte on this target; this one looks at
// eight positions at a time, and compares where the first and the last byte of the needle fit.
func Find(text, needle []byte) int {
	k := len(needle)
	if k == 0 || len(text) < k+8 {
		return bytes.Index(text, needle)
	}
	first, last := uint64(needle[0])*lows, uint64(needle[k-1])*lows
	end := len(text) - k - 7
	for i := 0; i < end; i += 8 {
		here := binary.LittleEndian.Uint64(text[i:i+8]) ^ first
		there := binary.LittleEndian.Uint64(text[i+k-1:i+k+7]) ^ last
		both := here | there
		// A zero byte fits. Borrows make false hits above a true one only: each is compared.
		for hits := (both - lows) &^ both & highs; hits != 0; hits &= hits - 1 {
			at := i + bits.TrailingZeros64(hits)/8
			if string(text[at:at+k]) == string(needle) {
				return at
			}
		}
	}
	rest := (end + 7) / 8 * 8
	if at := bytes.Index(text[rest:], needle); at >= 0 {
		return rest + at
	}
	return -1
}
