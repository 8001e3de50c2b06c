// Package export_flumen_plugin_guest stands between the generated exports and package flumen.
package export_flumen_plugin_guest

import (
	"errors"

	"flumen/exports/call"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

var notRegistered = errors.New(call.NotRegistered)

// Hooks are set by flumen.Register.
var (
	OpenHook    = func(string) (none wire.Reads, err error) { return none, notRegistered }
	ProcessHook = func(wire.Batch) (none wire.Difference, err error) { return none, notRegistered }
)

// Open is called by the generated exports.
func Open(config string) wit.Result[wire.Reads, string] {
	return call.Of(func() (wire.Reads, error) { return OpenHook(config) })
}

// Process is called by the generated exports.
func Process(batch wire.Batch) wit.Result[wire.Difference, string] {
	return call.Of(func() (wire.Difference, error) { return ProcessHook(batch) })
}
