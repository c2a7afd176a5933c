package machine_test

import (
	"context"
	"path/filepath"
	"testing"

	"banger/internal/api"
	"banger/internal/machine"
)

// BenchmarkCreateAndDelete is what banger itself adds to a boot: rows, disk,
// identity, copies, on a host that takes no time.
func BenchmarkCreateAndDelete(b *testing.B) {
	w, err := enter(b.Context(), filepath.Join(b.TempDir()), machine.Limits{})
	if err != nil {
		b.Fatal(err)
	}
	w.run(context.WithoutCancel(b.Context()))
	defer w.stop()
	big := spec()
	big.DiskBytes = 8 << 30
	for b.Loop() {
		if _, _, err := w.create(b.Context(), api.CreateMachine{Name: "web", Spec: big}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.x.Delete(b.Context(), "web"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkList is `vm list` of a hundred VMs, without the way to the daemon.
func BenchmarkList(b *testing.B) {
	w, err := enter(b.Context(), b.TempDir(), machine.Limits{})
	if err != nil {
		b.Fatal(err)
	}
	w.run(context.WithoutCancel(b.Context()))
	defer w.stop()
	for range 100 {
		if _, _, err := w.create(b.Context(), api.CreateMachine{NoStart: true}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if got := len(w.x.List()); got != 100 {
			b.Fatalf("%d VMs, want 100", got)
		}
	}
}
