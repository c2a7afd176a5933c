// Command banger-companion holds one VM: see package companion. The daemon
// starts it; people do not.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"banger/internal/companion"
	"banger/internal/companionapi"
	"banger/internal/version"
	"banger/internal/vmm"
	"banger/internal/vmm/firecracker"
	"banger/internal/vmm/qemu"
)

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("banger-companion", version.Get())
		return 0
	}
	if os.Getenv(companionapi.DirEnv) == "" {
		fmt.Fprintln(os.Stderr, "banger-companion: the banger daemon starts this program, with a VM to hold\nhint: banger vm run")
		return 125
	}
	// A terminal that goes away or is interrupted is nothing to a VM.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	syscall.CloseOnExec(companionapi.ConfigFD)
	syscall.CloseOnExec(companionapi.StartedFD)
	log := slog.New(slog.NewTextHandler(&capped{left: maxLog}, nil))
	err := companion.Run(ctx, companion.Options{
		Drivers: []vmm.Driver{firecracker.Driver{}, firecracker.Driver{Jailed: true}, qemu.Driver{KVM: true}, qemu.Driver{}},
		Config:  os.NewFile(companionapi.ConfigFD, "config"),
		Started: os.NewFile(companionapi.StartedFD, "started"),
		Log:     log,
	})
	if err != nil {
		log.Error("holding the VM", "err", err)
		return 1
	}
	return 0
}

// maxLog bounds the log: a guest that breaks every session would fill the
// runtime directory, which is memory, line by line.
const maxLog = 1 << 20

// capped writes to standard error until there was enough; slog holds a lock
// around each write.
type capped struct{ left int }

func (c *capped) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		return len(p), nil
	}
	return os.Stderr.Write(p)
}
