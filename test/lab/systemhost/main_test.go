//go:build lab

package systemhost

import (
	"context"
	"os"
	"testing"

	"banger/internal/vmtest"
)

func TestMain(m *testing.M) {
	if code, ours := vmtest.Main(context.Background()); ours {
		os.Exit(code)
	}
	os.Exit(m.Run())
}
