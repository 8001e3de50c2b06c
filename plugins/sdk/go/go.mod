module flumen

go 1.24
