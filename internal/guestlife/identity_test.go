package guestlife

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/agentapi"
)

func TestWithHost(t *testing.T) {
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for name, tt := range map[string]struct{ hosts, former, addr, want string }{
		"an empty file":          {"", "", "", local + "127.0.1.1\tbox\n"},
		"Debian's file":          {"127.0.0.1 localhost\n127.0.1.1 deb\n::1 localhost\n", "deb", "", "127.0.0.1 localhost\n::1 localhost\n127.0.1.1\tbox\n"},
		"our own line":           {local + "127.0.1.1\tbox\n", "box", "", local + "127.0.1.1\tbox\n"},
		"somebody's other line":  {"127.0.0.1 localhost\n127.0.1.1 db.local db\n", "old", "", "127.0.0.1 localhost\n127.0.1.1 db.local db\n127.0.1.1\tbox\n"},
		"no newline at the end":  {"127.0.0.1 localhost", "", "", "127.0.0.1 localhost\n127.0.1.1\tbox\n"},
		"an address":             {local + "127.0.1.1\tbox\n", "box", "172.16.0.9", local + "172.16.0.9\tbox # banger\n"},
		"another address":        {local + "172.16.0.9\told # banger\n", "old", "172.16.0.8", local + "172.16.0.8\tbox # banger\n"},
		"an address no more":     {local + "172.16.0.9\tbox # banger\n", "box", "", local + "127.0.1.1\tbox\n"},
		"somebody's address":     {local + "172.16.0.9\tbox\n", "box", "", local + "172.16.0.9\tbox\n127.0.1.1\tbox\n"},
		"a comment of localhost": {"#x localhost\n", "", "", "#x localhost\n" + local + "127.0.1.1\tbox\n"},
	} {
		addr, _ := netip.ParseAddr(tt.addr) // none of ""
		if diff := cmp.Diff(tt.want, string(withHost([]byte(tt.hosts), tt.former, "box", addr))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// in makes a root with files, and an etc that writes there.
func in(t *testing.T, files map[string]string) etc {
	t.Helper()
	e := etc{root: t.TempDir()}
	for p, data := range files {
		if err := os.MkdirAll(filepath.Dir(e.path(p)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(e.path(p), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func (e etc) wants(t *testing.T, p string, mode os.FileMode, want string) {
	t.Helper()
	b, err := os.ReadFile(e.path(p))
	if err != nil || string(b) != want {
		t.Errorf("%s holds %q, %v; want %q", p, b, err, want)
		return
	}
	if st, err := os.Lstat(e.path(p)); err != nil || st.Mode() != mode {
		t.Errorf("%s has mode %v, %v; want %v", p, st.Mode(), err, mode)
	}
}

func someone() *agentapi.Identity {
	return &agentapi.Identity{
		Hostname: "box", MachineID: strings.Repeat("0a", 16), HostKey: "PRIVATE\n", HostKeyPub: "ssh-ed25519 PUB",
		AuthorizedKeys: []string{"ssh-ed25519 ME"},
		Files:          []agentapi.File{{Path: "/etc/x/y", Mode: 0o640, Data: []byte("z")}},
	}
}

func TestInstall(t *testing.T) {
	e := in(t, map[string]string{
		"/etc/hostname": "old\n", "/etc/ssh/ssh_host_rsa_key": "image's", "/etc/ssh/ssh_host_ed25519_key": "image's",
		"/etc/ssh/sshd_config": "UsePAM yes\n", "/root/.ssh/authorized_keys": "ssh-rsa YOU",
	})
	if err := os.Symlink("/nowhere/else", e.path("/etc/machine-id")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second boot changes nothing
		if err := e.install(someone()); err != nil {
			t.Fatal(err)
		}
	}
	e.wants(t, "/etc/hostname", 0o644, "box\n")
	e.wants(t, "/etc/machine-id", 0o444, strings.Repeat("0a", 16)+"\n")
	e.wants(t, "/etc/ssh/ssh_host_ed25519_key", 0o600, "PRIVATE\n")
	e.wants(t, "/etc/ssh/ssh_host_ed25519_key.pub", 0o644, "ssh-ed25519 PUB\n")
	e.wants(t, "/etc/ssh/sshd_config", 0o644, "UsePAM yes\n")
	e.wants(t, "/run/banger/ssh/host_key", 0o600, "PRIVATE\n")
	e.wants(t, "/run/banger/ssh/authorized_keys", 0o600, "ssh-ed25519 ME\n")
	e.wants(t, "/root/.ssh/authorized_keys", 0o600, "ssh-rsa YOU\nssh-ed25519 ME\n")
	e.wants(t, "/etc/x/y", 0o640, "z")
	if _, err := os.Lstat(e.path("/etc/ssh/ssh_host_rsa_key")); !os.IsNotExist(err) {
		t.Errorf("the image's own host key is still there (%v)", err)
	}
}

func TestInstallIntoAnEmptyImage(t *testing.T) {
	e := in(t, nil)
	if err := e.install(someone()); err != nil {
		t.Fatal(err)
	}
	e.wants(t, "/etc/hostname", 0o644, "box\n")
	e.wants(t, "/root/.ssh/authorized_keys", 0o600, "ssh-ed25519 ME\n")
	if _, err := os.Lstat(e.path("/etc/ssh")); !os.IsNotExist(err) {
		t.Errorf("/etc/ssh was made in an image without ssh (%v)", err)
	}
}

func TestInstallGoesOnAfterAnError(t *testing.T) {
	e := in(t, nil)
	id := someone()
	id.Files = append([]agentapi.File{{Path: "../up"}, {Path: "/a/../b"}}, id.Files...)
	err := e.install(id)
	if err == nil || !strings.Contains(err.Error(), `"../up"`) || !strings.Contains(err.Error(), `"/a/../b"`) {
		t.Errorf("install = %v, want both paths refused", err)
	}
	e.wants(t, "/etc/x/y", 0o640, "z")
}

// sshd insists on a directory that is nobody's but root's.
func TestSSHDirectory(t *testing.T) {
	e := in(t, nil)
	for range 2 { // the second boot of a /run that stayed, too
		if err := e.sshd(); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(e.path("/run/sshd")); err != nil || st.Mode() != os.ModeDir|0o755 {
		t.Errorf("/run/sshd is %v, %v; want a directory of mode 0755", st, err)
	}
}
