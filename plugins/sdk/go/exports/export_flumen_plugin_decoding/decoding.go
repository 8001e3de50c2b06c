// Package export_flumen_plugin_decoding stands between the generated exports and package flumen.
package export_flumen_plugin_decoding

import (
	"errors"

	"flumen/exports/call"
	generated "flumen/imports/flumen_plugin_decoding"
	wit "flumen/wit/types"
)

var notRegistered = errors.New(call.NotRegistered)

// Hooks are set by flumen.RegisterCodec.
var (
	OpenHook   = func(string) (none wit.Unit, err error) { return none, notRegistered }
	DecodeHook = func([]byte, bool) (none generated.Decoded, err error) { return none, notRegistered }
)

// Open is called by the generated exports.
func Open(config string) wit.Result[wit.Unit, string] {
	return call.Of(func() (wit.Unit, error) { return OpenHook(config) })
}

// Decode is called by the generated exports.
func Decode(input []uint8, isLast bool) wit.Result[generated.Decoded, string] {
	return call.Of(func() (generated.Decoded, error) { return DecodeHook(input, isLast) })
}
