// Package export_flumen_plugin_guest stands between the generated exports and package flumen.
package export_flumen_plugin_guest

import (
	"errors"

	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

var notRegistered = errors.New("the plugin does not call flumen.Register in init")

// OpenHook is set by flumen.Register.
var OpenHook = func(string) (wire.Reads, error) { return wire.Reads{}, notRegistered }

// ProcessHook is set by flumen.Register.
var ProcessHook = func(wire.Batch) (wire.Difference, error) { return wire.Difference{}, notRegistered }

// Open is called by the generated exports.
func Open(config string) wit.Result[wire.Reads, string] {
	reads, err := OpenHook(config)
	if err != nil {
		return wit.Err[wire.Reads, string](err.Error())
	}
	return wit.Ok[wire.Reads, string](reads)
}

// Process is called by the generated exports.
func Process(batch wire.Batch) wit.Result[wire.Difference, string] {
	difference, err := ProcessHook(batch)
	if err != nil {
		return wit.Err[wire.Difference, string](err.Error())
	}
	return wit.Ok[wire.Difference, string](difference)
}
