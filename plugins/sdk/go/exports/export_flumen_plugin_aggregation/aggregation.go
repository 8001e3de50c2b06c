// Package export_flumen_plugin_aggregation stands between the generated exports and package flumen.
package export_flumen_plugin_aggregation

import (
	"errors"

	"flumen/exports/call"
	generated "flumen/imports/flumen_plugin_aggregation"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

var notRegistered = errors.New(call.NotRegistered)

// Hooks are set by flumen.RegisterAggregator.
var (
	OpenHook    = func(string) (none generated.Opened, err error) { return none, notRegistered }
	ProcessHook = func(wire.Batch) (none generated.Aggregate, err error) { return none, notRegistered }
	TickHook    = func(int64) (none wit.Option[wire.Events], err error) { return none, notRegistered }
)

// Open is called by the generated exports.
func Open(config string) wit.Result[generated.Opened, string] {
	return call.Of(func() (generated.Opened, error) { return OpenHook(config) })
}

// Process is called by the generated exports.
func Process(batch wire.Batch) wit.Result[generated.Aggregate, string] {
	return call.Of(func() (generated.Aggregate, error) { return ProcessHook(batch) })
}

// Tick is called by the generated exports.
func Tick(now int64) wit.Result[wit.Option[wire.Events], string] {
	return call.Of(func() (wit.Option[wire.Events], error) { return TickHook(now) })
}
