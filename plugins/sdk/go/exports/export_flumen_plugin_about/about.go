// Package export_flumen_plugin_about stands between the generated exports and package flumen.
package export_flumen_plugin_about

import generated "flumen/imports/flumen_plugin_about"

// Description is what the host asks for.
type Description = generated.Description

// Hook is set by flumen.Register.
var Hook = func() Description { return Description{} }

// Describe is called by the generated exports.
func Describe() Description { return Hook() }
