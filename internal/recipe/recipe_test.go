package recipe

import (
	"encoding/hex"
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"banger/internal/api"
)

func TestCatalog(t *testing.T) {
	if _, err := Image(DefaultImage); err != nil {
		t.Error(err)
	}
	if r, err := Kernel(DefaultKernel); err != nil || !r.Kernel {
		t.Errorf("the default kernel: got %+v, %v, want a kernel", r, err)
	}
	for _, r := range append(Images(), Kernels()...) {
		if r.Name == "" || r.Description == "" || r.Suite == "" || r.Room == 0 || len(r.Packages) == 0 {
			t.Errorf("%q lacks something: %+v", r.Name, r)
		}
		seen := map[string]bool{}
		for _, p := range r.Packages {
			if seen[p] || strings.ContainsAny(p, " ,") {
				t.Errorf("%s: package %q is there twice or is no name", r.Name, p)
			}
			seen[p] = true
		}
		var paths []string
		for _, f := range r.Files {
			paths = append(paths, f.Path)
		}
		for _, d := range r.Downloads {
			paths = append(paths, d.Path)
			if b, err := hex.DecodeString(d.SHA256); err != nil || len(b) != 32 || d.Size == 0 || len(d.Sources) == 0 {
				t.Errorf("%s: download %+v cannot be fetched", r.Name, d)
			}
		}
		slices.Sort(paths)
		for i, p := range paths {
			if path.Clean("/"+p) != "/"+p || (i > 0 && paths[i-1] == p) {
				t.Errorf("%s: path %q is not clean or there twice", r.Name, p)
			}
		}
	}
	// A change to what one caller got must not reach the next.
	Images()[0].Packages[0] = "changed"
	if got := Images()[0].Packages[0]; got == "changed" {
		t.Error("two callers share the catalog, want a copy each")
	}
}

func TestUnknownName(t *testing.T) {
	_, err := Image("debian-potato")
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.NotFound || e.Hint != "banger image pull debian-bookworm" {
		t.Errorf("got %#v, want not_found with a hint", err)
	}
	if _, err := Kernel("linux"); api.CodeOf(err) != api.NotFound {
		t.Errorf("got %v, want %s", err, api.NotFound)
	}
}

// TestSSHSettings pins the file to the text of the README's Security part.
func TestSSHSettings(t *testing.T) {
	const want = `PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile /root/.ssh/authorized_keys
`
	for _, f := range Images()[0].Files {
		if f.Path == "etc/ssh/sshd_config.d/99-banger.conf" {
			if f.Body != want || f.Mode != 0o644 {
				t.Errorf("got %q with mode %o, want %q with 644", f.Body, f.Mode, want)
			}
			return
		}
	}
	t.Error("the image has no settings for sshd")
}
