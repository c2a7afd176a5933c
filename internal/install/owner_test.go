package install

import (
	"os"
	"os/user"
	"testing"

	"banger/internal/rootapi"
)

// What runs as the owner is in a session of its own, without root's terminal and
// root's environment.
func TestOwnersCommand(t *testing.T) {
	t.Setenv("SECRET", "root's")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	o := rootapi.Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Name: me.Username, Home: me.HomeDir}
	// The sixth field of stat is the session, the seventh the terminal.
	cmd := ownersCommand(t.Context(), o, "/bin/sh", "-c", `read pid name state parent group session tty rest </proc/self/stat; test $session = $$ && test $tty = 0 && echo "alone:$SECRET:$HOME"`)
	out, err := cmd.Output()
	if want := "alone::" + me.HomeDir + "\n"; err != nil || string(out) != want {
		t.Errorf("the owner's command said %q, %v; want %q", out, err, want)
	}
}

func TestBounded(t *testing.T) {
	w := &bounded{left: 5}
	for _, s := range []string{"abc", "defg", "h"} {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("Write(%q) = %d, %v; want all of it taken", s, n, err)
		}
	}
	if got := w.b.String(); got != "abcde" {
		t.Errorf("kept %q, want the first 5 bytes", got)
	}
}
