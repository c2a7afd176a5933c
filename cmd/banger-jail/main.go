// Command banger-jail builds the jail of one VM and becomes Firecracker's
// jailer: see package child. The root helper has systemd start it; people do
// not.
package main

import (
	"fmt"
	"os"

	"banger/internal/jail/child"
)

func main() {
	err := fmt.Errorf("reading arguments: systemd starts this program, with one")
	switch {
	case len(os.Args) == 2 && os.Args[1] == child.HoldArg:
		err = child.Hold()
	case len(os.Args) == 2:
		err = child.Run(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "banger-jail:", err)
		os.Exit(1)
	}
}
