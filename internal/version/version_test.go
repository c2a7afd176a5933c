package version_test

import (
	"testing"
	"time"

	"banger/internal/version"
)

func TestString(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		in   version.Build
		want string
	}{
		{version.Build{Version: "dev"}, "dev"},
		{version.Build{Version: "v0.1.0", Commit: "0123456789abcdef", Time: at}, "v0.1.0 01234567 2026-11-23T12:00:00Z"},
		{version.Build{Version: "dev", Commit: "0123456789abcdef", Dirty: true}, "dev 01234567+changes"},
	} {
		if got := tt.in.String(); got != tt.want {
			t.Errorf("%+v.String() = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestGetKnowsTheToolchain(t *testing.T) {
	if b := version.Get(); b.Go == "" || b.Version == "" {
		t.Errorf("Get() = %+v, want a Go version and a version", b)
	}
}
