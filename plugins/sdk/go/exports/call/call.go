// Package call makes the answer of an export from what the plugin returns.
package call

import (
	"fmt"
	"runtime"
	"strings"

	wit "flumen/wit/types"
)

// NotRegistered is the error of a plugin that is not of the kind that plugin.toml says.
const NotRegistered = "the plugin does not register itself in init for the kind that plugin.toml says"

// Of calls. A panic would be a trap without words: what it prints goes nowhere.
func Of[T any](function func() (T, error)) (result wit.Result[T, string]) {
	defer func() {
		if reason := recover(); reason != nil {
			result = wit.Err[T, string](Words(fmt.Sprintf("panic: %v%s", reason, where())))
		}
	}()
	value, err := function()
	if err != nil {
		return wit.Err[T, string](Words(err.Error()))
	}
	return wit.Ok[T, string](value)
}

// Words is a text for a person, which has to be UTF-8.
func Words(text string) string { return strings.ToValidUTF8(text, "?") }

// where names the line of the plugin that panicked: the first one outside of the runtime.
func where() string {
	callers := make([]uintptr, 32)
	frames := runtime.CallersFrames(callers[:runtime.Callers(3, callers)])
	for {
		frame, more := frames.Next()
		if frame.File != "" && !strings.HasPrefix(frame.Function, "runtime.") {
			return fmt.Sprintf(" (%s line %d)", frame.File[strings.LastIndexByte(frame.File, '/')+1:], frame.Line)
		}
		if !more {
			return ""
		}
	}
}
