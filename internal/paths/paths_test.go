package paths

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// env is a user's environment in a directory of the test's.
type env map[string]string

func (e env) get(k string) string { return e[k] }

func dir(t *testing.T, path string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// shortTemp is a temporary directory whose path leaves room for sockets.
func shortTemp(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func TestLayoutFollowsXDG(t *testing.T) {
	top := shortTemp(t)
	run := dir(t, top+"/x", 0o700)
	r := roots{runUser: top + "/run", tmp: top}
	l, err := r.layout(env{
		"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "relative", "XDG_RUNTIME_DIR": run,
	}.get, os.Getuid(), "/home/u")
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		l.State: "/s/banger", l.Cache: "/home/u/.cache/banger", l.Config: "/home/u/.config/banger",
		l.DB: "/s/banger/state.db", l.Key: "/s/banger/ssh/id_ed25519", l.VMs: "/s/banger/vms",
		l.ConfigFile:            "/home/u/.config/banger/config.toml",
		filepath.Dir(l.Runtime): run, filepath.Dir(l.Socket): l.Runtime,
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if _, err := r.layout(env{}.get, 0, ""); err == nil {
		t.Error("layout without a home = nil, want an error")
	}
}

func TestRuntimeDirectory(t *testing.T) {
	top := shortTemp(t)
	uid := os.Getuid()
	good := dir(t, top+"/good", 0o700)
	open := dir(t, top+"/open", 0o777)
	long := dir(t, top+"/"+strings.Repeat("l", 60), 0o700)
	link := top + "/link"
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	session := roots{runUser: top + "/run", tmp: top + "/tmp"}
	dir(t, filepath.Join(session.runUser, strconv.Itoa(uid)), 0o700)
	none := roots{runUser: top + "/nothing", tmp: top + "/tmp"}
	for _, tt := range []struct {
		name string
		r    roots
		xdg  string
		uid  int
		want string // parent of the runtime directory
	}{
		{"set", session, good, uid, good},
		{"unset, with a session", session, "", uid, filepath.Join(session.runUser, strconv.Itoa(uid))},
		{"unset, without", none, "", uid, none.tmp},
		{"relative", none, "good", uid, none.tmp},
		{"missing", none, top + "/missing", uid, none.tmp},
		{"writable by all", none, open, uid, none.tmp},
		{"a link", none, link, uid, none.tmp},
		{"too long for sockets", none, long, uid, none.tmp},
		{"of another user", none, good, uid + 1, none.tmp},
	} {
		l, err := tt.r.layout(env{"XDG_RUNTIME_DIR": tt.xdg, "XDG_STATE_HOME": top + "/s"}.get, tt.uid, "/home/u")
		if err != nil || filepath.Dir(l.Runtime) != tt.want {
			t.Errorf("%s: runtime = %q, %v; want it in %q", tt.name, l.Runtime, err, tt.want)
		}
		if n := len(l.VMRun) + len("/0123456789ab/companion.sock"); n > 107 && tt.want != none.tmp {
			t.Errorf("%s: a socket path has %d bytes", tt.name, n)
		}
	}
}

func TestNoTwoMeet(t *testing.T) {
	r := roots{runUser: "/nowhere", tmp: "/tmp"}
	seen := map[string]string{}
	for _, u := range []struct {
		uid  int
		home string
		env  env
	}{
		{1000, "/home/a", env{}},
		{1001, "/home/b", env{}},
		{1000, "/home/a", env{"XDG_STATE_HOME": "/x"}},
		{1001, "/home/b", env{"XDG_STATE_HOME": "/x"}},
	} {
		l, err := r.layout(u.env.get, u.uid, u.home)
		if err != nil {
			t.Fatal(err)
		}
		who := l.State + " of " + strconv.Itoa(u.uid)
		if other, ok := seen[l.Runtime]; ok {
			t.Errorf("%s and %s share %s", who, other, l.Runtime)
		}
		seen[l.Runtime] = who
	}
}

func TestMake(t *testing.T) {
	top := shortTemp(t)
	dir(t, top+"/tmp", 0o1777)
	r := roots{runUser: top + "/none", tmp: top + "/tmp"}
	e := env{}
	l, err := r.layout(e.get, os.Getuid(), top+"/home")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Make(); err != nil {
			t.Fatalf("Make: %v", err)
		}
	}
	for _, d := range []string{l.State, l.Cache, l.Runtime, l.VMs, l.VMRun, l.Images, l.Kernels, l.SSH} {
		if fi, err := os.Stat(d); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want mode 0700", d, fi, err)
		}
	}

	// A session that has a runtime directory of its own finds the same one.
	e["XDG_RUNTIME_DIR"] = dir(t, top+"/session", 0o700)
	if again, err := r.layout(e.get, os.Getuid(), top+"/home"); err != nil || again.Runtime != l.Runtime {
		t.Errorf("runtime in another session = %q, %v; want %q", again.Runtime, err, l.Runtime)
	}
}

func TestMakeRefusesWhatIsNotOurs(t *testing.T) {
	top := shortTemp(t)
	r := roots{runUser: top + "/none", tmp: dir(t, top+"/tmp", 0o1777)}
	l, err := r.layout(env{}.get, os.Getuid(), top+"/home")
	if err != nil {
		t.Fatal(err)
	}
	target := dir(t, top+"/target", 0o700)
	if err := os.Symlink(target, l.Runtime); err != nil {
		t.Fatal(err)
	}
	if err := l.Make(); err == nil {
		t.Error("Make over a link = nil, want an error")
	}
	if err := os.Remove(l.Runtime); err != nil {
		t.Fatal(err)
	}
	dir(t, l.Runtime, 0o777)
	if err := l.Make(); err == nil {
		t.Error("Make over a directory that all can write = nil, want an error")
	}
	if os.Getuid() == 0 {
		if err := os.Chmod(l.Runtime, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(l.Runtime, 4242, 4242); err != nil {
			t.Fatal(err)
		}
		if err := l.Make(); err == nil || !strings.Contains(err.Error(), "another user") {
			t.Errorf("Make over another user's directory = %v, want a refusal", err)
		}
	}
}
