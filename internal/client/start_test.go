package client

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvironmentOfTheDaemon(t *testing.T) {
	got := environment([]string{"HOME=/h", "AWS_SECRET_ACCESS_KEY=x", "XDG_STATE_HOME=/s", "PATH=/bin", "GITHUB_TOKEN=x", "LC_ALL=C", "SSH_AUTH_SOCK=/x", "BANGER_X=1", "HOMEBREW=x", "odd"})
	want := []string{"HOME=/h", "XDG_STATE_HOME=/s", "PATH=/bin", "LC_ALL=C", "BANGER_X=1"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("environment (-want +got):\n%s", d)
	}
}
