// Package export_flumen_plugin_encoding stands between the generated exports and package flumen.
package export_flumen_plugin_encoding

import (
	"errors"

	"flumen/exports/call"
	generated "flumen/imports/flumen_plugin_encoding"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

var notRegistered = errors.New(call.NotRegistered)

// Hooks are set by flumen.RegisterCodec.
var (
	OpenHook   = func(string) (none wire.Reads, err error) { return none, notRegistered }
	BeginHook  = func(uint64) (none []byte, err error) { return none, notRegistered }
	EncodeHook = func(wire.Batch, *uint64) (none generated.Encoded, err error) { return none, notRegistered }
	EndHook    = func(uint64) (none []byte, err error) { return none, notRegistered }
)

// Open is called by the generated exports.
func Open(config string) wit.Result[wire.Reads, string] {
	return call.Of(func() (wire.Reads, error) { return OpenHook(config) })
}

// Begin is called by the generated exports.
func Begin(seed uint64) wit.Result[[]uint8, string] {
	return call.Of(func() ([]uint8, error) { return BeginHook(seed) })
}

// Encode is called by the generated exports.
func Encode(batch wire.Batch, file wit.Option[uint64]) wit.Result[generated.Encoded, string] {
	return call.Of(func() (generated.Encoded, error) {
		if file.IsNone() {
			return EncodeHook(batch, nil)
		}
		seed := file.Some()
		return EncodeHook(batch, &seed)
	})
}

// End is called by the generated exports.
func End(seed uint64) wit.Result[[]uint8, string] {
	return call.Of(func() ([]uint8, error) { return EndHook(seed) })
}
