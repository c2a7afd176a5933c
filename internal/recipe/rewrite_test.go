package recipe

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fetch"
)

type member struct {
	Name, Body, Link string
	Kind             byte
	Mode             int64
}

func dir(name string) member { return member{Name: name + "/", Kind: tar.TypeDir, Mode: 0o755} }
func file(name, body string) member {
	return member{Name: name, Body: body, Kind: tar.TypeReg, Mode: 0o644}
}
func hard(name, to string) member {
	return member{Name: name, Link: to, Kind: tar.TypeLink, Mode: 0o644}
}
func symbolic(name, to string) member {
	return member{Name: name, Link: to, Kind: tar.TypeSymlink, Mode: 0o777}
}
func modeOf(m member, mode int64) member { m.Mode = mode; return m }
func tarOf(t *testing.T, ms ...member) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range ms {
		h := &tar.Header{Name: m.Name, Linkname: m.Link, Typeflag: m.Kind, Mode: m.Mode, Size: int64(len(m.Body)), ModTime: time.Unix(1e9, 5), Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.kept": "yes"}}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.Body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func membersOf(t *testing.T, r io.Reader) []member {
	t.Helper()
	var out []member
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, member{h.Name, string(b), h.Linkname, h.Typeflag, h.Mode})
		if h.ModTime.Unix() == 1e9 && (h.PAXRecords["SCHILY.xattr.user.kept"] != "yes" || h.ModTime.Nanosecond() != 5) {
			t.Errorf("%s lost an extended attribute or a part of its time: %+v", h.Name, h)
		}
	}
}

func TestRewriteImage(t *testing.T) {
	r := Recipe{Name: "x", Files: []File{
		{Path: "etc/hostname", Mode: 0o644, Body: "banger\n"},
		{Path: "etc/new/deep/file", Mode: 0o600, Body: "ours"},
		{Path: "etc/new/link", Link: "deep/file"},
	}, Downloads: []Download{{Item: fetch.Item{Name: "tool", Size: 9}, Path: "usr/local/bin/tool", Mode: 0o755}}}
	debs := t.TempDir()
	for name, body := range map[string]string{"old_1.deb": "gone from the archive", "same_1.deb": "12345", "notes": "not ours"} {
		if err := os.WriteFile(filepath.Join(debs, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := tarOf(t, dir("."), dir("./dev"), file("./dev/null", ""), dir("./etc"), symbolic("./etc/os-release", "x"), dir("./etc/ssh"), file("./etc/ssh/ssh_host_rsa_key", "secret"),
		file("./etc/ssh/ssh_config", "kept"), file("./etc/hostname", "of the host\n"), dir("./etc/apt"), file("./etc/apt/apt.conf.d/99mmdebstrap", "x"),
		file("./etc/dpkg/dpkg.cfg.d/99mmdebstrap", "x"), file("./etc/apt/apt.conf.d/70debconf", "kept"),
		file("./etc/apt/sources.list", "deb [signed-by=/k.gpg] http://me:p@ss@a bookworm main\ndeb [trusted=yes signed-by=/k.gpg] http://b bookworm main\n"),
		symbolic("./etc/systemd/system/timers.target.wants/apt-daily.timer", "x"), symbolic("./etc/systemd/system/timers.target.wants/fstrim.timer", "x"),
		dir("./run"), dir("./run/lock"), dir("./tmp"), modeOf(file("./usr/bin/sudo", "bits"), 0o4755), hard("./usr/bin/again", "./usr/bin/sudo"),
		dir("./var/cache/apt/archives"), file("./var/cache/apt/archives/new_2%3a1.deb", "a package"), file("./var/cache/apt/archives/same_1.deb", "12345"),
		file("./var/cache/apt/archives/lock", ""), dir("./var/cache/apt/archives/partial"), file("./var/cache/apt/pkgcache.bin", "x"), dir("./var/lib/apt/lists"),
		file("./var/lib/apt/lists/x_Packages", "x"))

	tool := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(tool, []byte("a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(tool)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	w := newRewriter(r, &out, debs)
	if err := errors.Join(w.copy(in), w.finish([]*os.File{f}), w.prune()); err != nil {
		t.Fatal(err)
	}

	want := []member{dir("."), dir("./dev"), dir("./etc"), symbolic("./etc/os-release", "x"), dir("./etc/ssh"), file("./etc/ssh/ssh_config", "kept"), dir("./etc/apt"),
		file("./etc/apt/apt.conf.d/70debconf", "kept"),
		file("./etc/apt/sources.list", "deb http://a bookworm main\ndeb [trusted=yes] http://b bookworm main\n"),
		symbolic("./etc/systemd/system/timers.target.wants/fstrim.timer", "x"), dir("./run"), dir("./tmp"),
		modeOf(file("./usr/bin/sudo", "bits"), 0o4755), hard("./usr/bin/again", "./usr/bin/sudo"),
		dir("./var/cache/apt/archives"), dir("./var/lib/apt/lists"),
		file("./etc/hostname", "banger\n"), dir("./etc/new"), dir("./etc/new/deep"), modeOf(file("./etc/new/deep/file", "ours"), 0o600), symbolic("./etc/new/link", "deep/file"),
		dir("./usr"), dir("./usr/local"), dir("./usr/local/bin"), modeOf(file("./usr/local/bin/tool", "a program"), 0o755)}
	if d := cmp.Diff(want, membersOf(t, &out)); d != "" {
		t.Errorf("the image (-want +got):\n%s", d)
	}
	cached := map[string]string{}
	entries, err := os.ReadDir(debs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(debs, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		cached[e.Name()] = string(b)
	}
	if d := cmp.Diff(map[string]string{"new_2%3a1.deb": "a package", "same_1.deb": "12345", "notes": "not ours"}, cached); d != "" {
		t.Errorf("the cache of packages (-want +got):\n%s", d)
	}
}

func TestRewriteKernel(t *testing.T) {
	in := tarOf(t, dir("."), dir("./bin"), file("./bin/ls", "x"), dir("./boot"), file("./boot/vmlinuz-6.1", "k"), file("./boot/System.map-6.1", "x"), file("./boot/config-6.1", "c"),
		dir("./lib"), symbolic("./lib/x", "y"), dir("./lib/modules"), dir("./lib/modules/6.1"), file("./lib/modules/6.1/modules.dep", "d"), dir("./usr"), file("./usr/lib/modules", "x"))
	var out bytes.Buffer
	w := newRewriter(Recipe{Kernel: true}, &out, "")
	if err := errors.Join(w.copy(in), w.finish(nil)); err != nil {
		t.Fatal(err)
	}
	want := []member{dir("."), dir("./boot"), file("./boot/vmlinuz-6.1", "k"), file("./boot/config-6.1", "c"), dir("./lib"), dir("./lib/modules"), dir("./lib/modules/6.1"), file("./lib/modules/6.1/modules.dep", "d")}
	if d := cmp.Diff(want, membersOf(t, &out)); d != "" {
		t.Errorf("the kernel (-want +got):\n%s", d)
	}
}

func TestRewriteRefusesALinkToNothing(t *testing.T) {
	in := tarOf(t, file("./tmp/secret", "x"), hard("./etc/same", "./tmp/secret"))
	err := newRewriter(Recipe{}, io.Discard, "").copy(in)
	if err == nil || !strings.Contains(err.Error(), "etc/same is a hard link to ./tmp/secret") {
		t.Errorf("got error %v, want the link refused", err)
	}
}

func TestRewriteCutOff(t *testing.T) {
	whole, err := io.ReadAll(tarOf(t, dir("."), file("./a", strings.Repeat("x", 5000))))
	if err != nil {
		t.Fatal(err)
	}
	if err := newRewriter(Recipe{}, io.Discard, "").copy(bytes.NewReader(whole[:3000])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got error %v, want %v", err, io.ErrUnexpectedEOF)
	}
}
