package fake_test

import (
	"context"
	"os"
	"testing"

	"banger/internal/vmm"
	"banger/internal/vmm/fake"
	"banger/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	if code, ours := fake.Main(context.Background()); ours {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func TestContract(t *testing.T) {
	file, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []vmm.Driver{fake.Driver{}, fake.Driver{Calling: true}} {
		t.Run(d.Name(), func(t *testing.T) {
			vmmtest.Suite{Driver: d, Kernel: file, Initramfs: file, Marker: fake.Hello, Ends: fake.Off, Resets: fake.Panic}.Run(t)
		})
	}
}
