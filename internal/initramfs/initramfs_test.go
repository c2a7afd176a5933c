package initramfs_test

import (
	"bytes"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/initramfs"
	"banger/internal/testneed"
)

var input = initramfs.In{
	Agent: []byte("\x7fELF agent"),
	Modules: []initramfs.Module{
		{Name: "virtio", Data: []byte("\x7fELF virtio.")},
		{Name: "overlay", Data: []byte("\x7fELF overlay")},
	},
}

func TestBuildAsCpioReadsIt(t *testing.T) {
	tool := testneed.Tool(t, "cpio")
	var b bytes.Buffer
	if err := initramfs.Build(&b, input); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		c := exec.CommandContext(t.Context(), tool, args...)
		c.Stdin = bytes.NewReader(b.Bytes())
		out, err := c.Output()
		if err != nil {
			t.Fatalf("cpio %v: %v", args, err)
		}
		return string(out)
	}
	want := "dev\nm\ndev/console\ninit\nm/virtio.ko\nm/overlay.ko\n"
	if diff := cmp.Diff(want, run("-t", "--quiet")); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if got, want := run("-i", "--quiet", "--to-stdout", "m/overlay.ko"), "\x7fELF overlay"; got != want {
		t.Errorf("m/overlay.ko = %q, want %q", got, want)
	}
	list := run("-tv", "--quiet")
	for _, want := range []string{"crw-------", "5,   1", "-rwxr-xr-x"} {
		if !strings.Contains(list, want) {
			t.Errorf("the list lacks %q:\n%s", want, list)
		}
	}
}

func TestBuildGivesTheSameBytes(t *testing.T) {
	var a, b bytes.Buffer
	if err := errors.Join(initramfs.Build(&a, input), initramfs.Build(&b, input)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two builds of one input differ")
	}
	if a.Len()%4 != 0 {
		t.Errorf("the archive has %d bytes, want a multiple of 4", a.Len())
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		in   initramfs.In
		want string
	}{
		"an agent that is a script": {initramfs.In{Agent: []byte("#!/bin/sh")}, "agent is not an ELF"},
		"a compressed module": {initramfs.In{Agent: input.Agent, Modules: []initramfs.Module{
			{Name: "overlay", Data: []byte("\xfd7zXZ\x00...")}}}, "module overlay is compressed with xz"},
		"an empty module": {initramfs.In{Agent: input.Agent, Modules: []initramfs.Module{{Name: "overlay"}}}, "module overlay is not"},
	} {
		if err := initramfs.Build(&bytes.Buffer{}, tt.in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Build = %v, want an error with %q", name, err, tt.want)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestBuildReportsWriteErrors(t *testing.T) {
	if err := initramfs.Build(full{}, input); err == nil {
		t.Error("Build to a full disk = nil")
	}
}

// What a guest loads is there, in an order in which each finds what it needs.
func TestModules(t *testing.T) {
	bus := []string{"virtio_ring", "virtio", "virtio_mmio"}
	if diff := cmp.Diff(append(bus[:3:3], "virtio_console"), initramfs.ChannelModules(false)); diff != "" {
		t.Errorf("ChannelModules(false) (-want +got):\n%s", diff)
	}
	vsock := append(bus[:3:3], "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")
	if diff := cmp.Diff(vsock, initramfs.ChannelModules(true)); diff != "" {
		t.Errorf("ChannelModules(true) (-want +got):\n%s", diff)
	}
	all := initramfs.ModuleNames()
	for _, name := range slices.Concat(initramfs.ChannelModules(false), vsock, initramfs.DiskModules(), initramfs.NetModules()) {
		if !slices.Contains(all, name) {
			t.Errorf("ModuleNames() = %q, without %s", all, name)
		}
	}
}
