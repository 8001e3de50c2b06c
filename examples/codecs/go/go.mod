module frames

go 1.24

require flumen v0.0.0

replace flumen => ../../../plugins/sdk/go
