package userhost

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/vmm/qemu"

	"banger/internal/testneed"
)

func TestUIDs(t *testing.T) {
	seen := map[int]string{}
	for _, id := range []string{"000000000000", "000000000001", "ffffffffffff", "0123456789ab", "123456789ab0"} {
		uid, err := uidOf(id)
		if err != nil || uid < 0x70000000 || uid >= 0x7ffe0000 {
			t.Errorf("uidOf(%s) = %#x, %v; want one of our range", id, uid, err)
		}
		if other, ok := seen[uid]; ok {
			t.Errorf("%s and %s share uid %d", id, other, uid)
		}
		seen[uid] = id
	}
	if _, err := uidOf("x"); err == nil {
		t.Error("uidOf(x) = nil, want an error")
	}
}

func TestMapped(t *testing.T) {
	for name, tt := range map[string]struct {
		uidMap string
		want   int
	}{
		"everything":    {"         0          0 4294967295\n", firstUID},
		"a container":   {"0 1000 1\n1 100000 65536\n", nobody},
		"only the root": {"0 1000 1\n", 0},
		"nonsense":      {"x y z\n1\n", 0},
	} {
		got, err := mapped(strings.NewReader(tt.uidMap), firstUID, nobody)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("%s: mapped() = %d, %v; want %d", name, got, err, tt.want)
		}
	}
}

func TestCredentials(t *testing.T) {
	c := companionapi.Config{ID: "0123456789ab", Driver: qemu.NameTCG}
	if err := credentials(&c, 1000); err != nil || c.UID != 0 {
		t.Errorf("credentials(a user) = %d, %v; want no change", c.UID, err)
	}
	if err := credentials(&c, 0); err != nil || c.UID == 0 || c.GID == 0 {
		t.Errorf("credentials(root) = %d, %d, %v; want others", c.UID, c.GID, err)
	}
}

func TestReadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, []byte("ELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := readable(f, 0); err != nil || got != f {
		t.Errorf("readable for us = %v, %v; want the file itself", got, err)
	}
	m, err := readable(f, 4242)
	if err != nil || m == f {
		t.Fatalf("readable for another uid = %v, %v; want a copy", m, err)
	}
	defer m.Close()
	st, err := m.Stat()
	if err != nil || st.Size() != 3 || st.Mode().Perm()&0o004 == 0 {
		t.Errorf("the copy is %v, %v; want 3 readable bytes", st, err)
	}
	if err := f.Chmod(0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := readable(f, 4242); err != nil || got != f {
		t.Errorf("readable of a public file = %v, %v; want the file itself", got, err)
	}
	if err := (host.Disk{File: f, Serial: "base", ReadOnly: true}).Check(); err != nil {
		t.Errorf("Check() = %v", err)
	}
}

// Root reads everybody's environment. Who puts a VM's directory into theirs must
// not be killed for it, nor stand in the way of a release.
func TestProcessesOfOthersAreNotOurs(t *testing.T) {
	testneed.Root(t)
	h, err := New(Config{RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	const id = "0123456789ab"
	own, err := uidOf(id)
	if err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[int]bool{0: true, own: true, 4242: false} {
		cmd := exec.CommandContext(t.Context(), "/bin/cat")
		cmd.Env = []string{companionapi.DirEnv + "=" + filepath.Join(h.cfg.RunDir, id)}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			if uid == own {
				continue // a container without that uid
			}
			t.Fatal(err)
		}
		if held, err := h.Census(t.Context()); err != nil || (len(held) == 1) != want {
			t.Errorf("Census() with a process of uid %d = %+v, %v; want it counted: %v", uid, held, err, want)
		}
		if err := h.Release(t.Context(), id); err != nil {
			t.Errorf("Release() with a process of uid %d = %v", uid, err)
		}
		in.Close()
		if err := cmd.Wait(); (err != nil) != want {
			t.Errorf("the process of uid %d ended with %v, want it killed: %v", uid, err, want)
		}
	}
}
