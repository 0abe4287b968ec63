module vl3/interop/resolve

go 1.26
