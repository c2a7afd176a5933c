// Command bangerd is the owner daemon: see package daemon. The CLI starts it on
// first use; people need not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"banger/internal/daemon"
	"banger/internal/version"
)

func main() {
	system := flag.Bool("system", false, "be the daemon of system mode, which systemd starts")
	ready := flag.Int("ready-fd", -1, "say on this descriptor when the socket accepts connections, or why it will not")
	showVersion := flag.Bool("version", false, "print the version")
	flag.Parse()
	if *showVersion {
		fmt.Println("bangerd", version.Get())
		return
	}
	var f *os.File
	if *ready > 2 {
		syscall.CloseOnExec(*ready)
		f = os.NewFile(uintptr(*ready), "ready")
	}
	announce := daemon.NewAnnouncer(f)
	inherited := daemon.CloseInherited(*ready)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The CLI's terminal may go away; the daemon does not.
	signal.Ignore(syscall.SIGHUP)
	run := user{announce: announce, byHand: f == nil}.run
	if *system {
		run = systemMode
	}
	if err := errors.Join(inherited, run(ctx)); err != nil {
		announce.Failed(err)
		if f == nil {
			fmt.Fprintln(os.Stderr, "bangerd:", err)
		}
		os.Exit(1)
	}
}
