package guestinit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/testneed"
)

func TestGenerators(t *testing.T) {
	always := []string{"bless-boot", "getty", "gpt-auto", "hibernate-resume"}
	all := slices.Concat(always, strings.Fields("cryptsetup debug fstab integritysetup rc-local run system-update sysv veritysetup"))
	without := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return slices.Contains(names, n) })
	}
	for name, tt := range map[string]struct {
		files   map[string]string
		cmdline string
		want    []string
	}{
		"nothing to generate from": {nil, "console=ttyS0 quiet", all},
		"tables of comments":       {map[string]string{"/etc/fstab": "# none\n\n", "/etc/crypttab": "# <target>\n"}, "", all},
		"file systems to mount":    {map[string]string{"/etc/fstab": "# fs\ntmpfs /x tmpfs\n"}, "", without("fstab")},
		"scripts that units stand for": {map[string]string{"/etc/init.d/a": "", "/etc/init.d/b.sh": "", "/lib/systemd/system/a.service": "",
			"/etc/systemd/system/b.service": ""}, "", all},
		"a script of the old kind": {map[string]string{"/etc/init.d/a": ""}, "", without("sysv")},
		"rc.local, and an update":  {map[string]string{"/etc/rc.local": "", "/system-update": ""}, "", without("rc-local", "system-update")},
		"words for systemd": {nil, "quiet systemd.mask=x.service",
			append(slices.Clone(always), "rc-local", "system-update", "sysv")},
	} {
		root := t.TempDir()
		for path, text := range tt.files {
			if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root+path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeUnits(root, tt.cmdline); err != nil {
			t.Fatal(err)
		}
		for _, g := range all {
			want := ""
			if slices.Contains(tt.want, g) {
				want = "/dev/null"
			}
			if got := target(t, root+generatorDir+"/systemd-"+g+"-generator"); got != want {
				t.Errorf("%s: generator %s links to %q, want %q", name, g, got, want)
			}
		}
	}
}

// TestTableThatCannotBeRead counts as one that says something.
func TestTableThatCannotBeRead(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere/fstab", root+"/etc/fstab"); err != nil {
		t.Fatal(err)
	}
	if tree := (&unitTree{root: root}); !tree.says("/etc/fstab") {
		t.Error("a link that leads nowhere says nothing, want it to say something")
	}
}

func TestStaticNodes(t *testing.T) {
	testneed.Root(t)
	dev := t.TempDir()
	list := "# Device nodes to trigger on-demand module loading.\nfuse fuse c10:229\ntun net/tun c10:200\nloop loop-control c10:237\n" +
		"floppy fd0 b2:0\nbad line\nevil ../evil c1:3\n"
	for range 2 { // what is there already is well
		if err := staticNodes(list, dev); err != nil {
			testneed.Missing(t, "the right to make device nodes: "+err.Error())
		}
	}
	for name, want := range map[string]struct{ mode, major, minor uint32 }{
		"fuse": {unix.S_IFCHR | 0o666, 10, 229}, "net/tun": {unix.S_IFCHR | 0o666, 10, 200},
		"loop-control": {unix.S_IFCHR | 0o600, 10, 237}, "fd0": {unix.S_IFBLK | 0o600, 2, 0},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dev, name), &st); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if st.Mode != want.mode || unix.Major(st.Rdev) != want.major || unix.Minor(st.Rdev) != want.minor {
			t.Errorf("%s: mode %o, %d:%d; want %o, %d:%d", name, st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev), want.mode, want.major, want.minor)
		}
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(dev), "evil")); err == nil {
		t.Error("a node was made outside of dev")
	}
}
