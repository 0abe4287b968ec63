// resolve: looks names up with Go's own resolver, as programs without cgo do. Each argument is a
// name; each line of the output is the name and its sorted addresses, or the error.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"time"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		addresses, err := resolver.LookupHost(ctx, name)
		var failed *net.DNSError
		switch {
		case errors.As(err, &failed) && failed.IsNotFound:
			fmt.Println(name, "not found")
		case err != nil:
			fmt.Println(name, "error:", err)
		default:
			sort.Strings(addresses)
			fmt.Println(name, strings.Join(addresses, " "))
		}
	}
}
