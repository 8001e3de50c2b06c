// Package export_flumen_plugin_delivery stands between the generated exports and package flumen.
package export_flumen_plugin_delivery

import (
	"errors"

	"flumen/exports/call"
	generated "flumen/imports/flumen_plugin_delivery"
	wire "flumen/imports/flumen_plugin_types"
	wit "flumen/wit/types"
)

var notRegistered = errors.New(call.NotRegistered)

// Hooks are set by flumen.RegisterSink.
var (
	OpenHook    = func(string) (none generated.Opened, err error) { return none, notRegistered }
	RecoverHook = func() (none wit.Option[[]byte], err error) { return none, notRegistered }
	DeliverHook = func(wire.Batch, []byte) (none generated.Outcome, err error) { return none, notRegistered }
)

// Open is called by the generated exports.
func Open(config string) wit.Result[generated.Opened, string] {
	return call.Of(func() (generated.Opened, error) { return OpenHook(config) })
}

// Recover is called by the generated exports.
func Recover() wit.Result[wit.Option[[]uint8], string] {
	return call.Of(func() (wit.Option[[]uint8], error) { return RecoverHook() })
}

// Deliver is called by the generated exports.
func Deliver(batch wire.Batch, cursor []uint8) wit.Result[generated.Outcome, string] {
	return call.Of(func() (generated.Outcome, error) { return DeliverHook(batch, cursor) })
}
