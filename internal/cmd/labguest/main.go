// Command labguest is the lab machine's own part of the lab: first the init of
// its initramfs, which mounts the root and hands over to systemd, then a service
// that runs the steps of a job.
//
// It shares with banger the packing and unpacking of tars, nothing else: what is
// under test must not be what carries the test.
package main

import (
	"context"
	"fmt"
	"os"
)

func main() {
	var err error
	if os.Getpid() == 1 {
		err = boot()
	} else {
		err = serve(context.Background())
	}
	// Both end in an error only; as PID 1 it becomes the kernel's panic, which
	// the host sees.
	fmt.Fprintln(os.Stderr, "labguest:", err)
	os.Exit(1)
}
