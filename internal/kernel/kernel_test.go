package kernel_test

import (
	"archive/tar"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/kernel"
	"banger/internal/store"
	"banger/internal/testneed"
)

const release = "6.1.0-test"

// elf begins like a kernel that is not compressed.
var elf = append([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00"), make([]byte, 4096)...)

const goodConfig = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_DEVTMPFS=y\nCONFIG_TMPFS=y\nCONFIG_PROC_FS=y\nCONFIG_SYSFS=y\nCONFIG_UNIX=y\nCONFIG_INET=y\n" +
	"CONFIG_CGROUPS=y\nCONFIG_INOTIFY_USER=y\nCONFIG_EXT4_FS=y\nCONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_MODULES=y\n# CONFIG_FOO is not set\n" +
	"CONFIG_VIRTIO=m\nCONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_CONSOLE=m\nCONFIG_VIRTIO_BLK=y\nCONFIG_OVERLAY_FS=m\n"

// files are a kernel that can be used.
func files() map[string]string {
	m := "lib/modules/" + release + "/"
	return map[string]string{
		"boot/vmlinuz-" + release:             string(elf),
		"boot/config-" + release:              goodConfig,
		"boot/System.map-" + release:          "ffff",
		"usr/share/doc/kernel/copyright":      "words",
		m + "modules.dep.bin":                 "index",
		m + "kernel/virtio/virtio.ko":         "\x7fELF virtio",
		m + "kernel/virtio/virtio_mmio.ko":    "\x7fELF mmio",
		m + "kernel/virtio/virtio_console.ko": "\x7fELF console",
		m + "kernel/fs/overlay.ko":            "\x7fELF overlay",
		m + "kernel/net/dummy.ko":             "\x7fELF dummy",
	}
}

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	names := []string{"./", "./boot/", "./lib/", "./lib/modules/", "./lib/modules/" + release + "/"}
	for n := range files {
		names = append(names, "./"+n)
	}
	slices.Sort(names)
	for _, n := range names {
		h := &tar.Header{Name: n, Mode: 0o755, Typeflag: tar.TypeDir}
		if body, ok := files[strings.TrimPrefix(n, "./")]; ok {
			h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, int64(len(body))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[strings.TrimPrefix(n, "./")]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(t *testing.T, users map[string][]string) *kernel.Store {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, "state.db"), Migrations: kernel.Migrations(1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := kernel.Open(t.Context(), kernel.Config{
		Store: db, Dir: filepath.Join(dir, "kernels"), Rebuild: true,
		Users: func(_ context.Context, _ *sql.Tx, id string) ([]string, error) { return users[id], nil },
	})
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	return s
}

func clean(t *testing.T, s *kernel.Store) {
	t.Helper()
	if staged, err := s.Staging(); err != nil || len(staged) != 0 {
		t.Errorf("Staging() = %v, %v; want none", staged, err)
	}
	if leaks, err := s.Leaks(t.Context()); err != nil || len(leaks) != 0 {
		t.Errorf("Leaks() = %v, %v; want none", leaks, err)
	}
}

func TestImport(t *testing.T) {
	users := map[string][]string{}
	s := open(t, users)
	k, err := s.Import(t.Context(), kernel.Import{Name: "debian-6.1", Source: "catalog:debian-6.1"}, bytes.NewReader(tarOf(t, files())))
	if err != nil {
		t.Fatalf("Import() = %v", err)
	}
	if k.Release != release || k.Source != "catalog:debian-6.1" || k.Bytes <= int64(len(elf)) {
		t.Errorf("Import() = %+v", k)
	}
	clean(t, s)
	f, err := s.OpenFiles(k.ID)
	if err != nil {
		t.Fatalf("OpenFiles() = %v", err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f.Vmlinux); err != nil || !bytes.Equal(b, elf) {
		t.Errorf("vmlinux has %d bytes (%v), want the %d of the ELF", len(b), err, len(elf))
	}
	if out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "e2fsck"), "-fn", f.Modules.Name()).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	checkModules(t, f.Modules)
	mods, err := s.Modules(k.ID)
	var got []string
	for _, m := range mods {
		got = append(got, m.Name)
	}
	if want := []string{"virtio", "virtio_mmio", "virtio_console", "overlay"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Modules() = %v, %v; want %v: virtio_blk is built in", got, err, want)
	}
	users[k.ID] = []string{"web"}
	if _, err := s.Delete(t.Context(), "debian-6.1"); api.CodeOf(err) != api.Conflict || !strings.Contains(err.Error(), "web") {
		t.Errorf("Delete() of a kernel in use = %v, want a conflict that names web", err)
	}
	delete(users, k.ID)
	if _, err := s.Delete(t.Context(), "debian-6.1"); err != nil {
		t.Errorf("Delete() = %v", err)
	}
	for _, err := range []error{func() error { _, err := s.OpenFiles(k.ID); return err }(), func() error { _, err := s.Modules(k.ID); return err }()} {
		if api.CodeOf(err) != api.NotFound {
			t.Errorf("use of a deleted kernel = %v, want not_found", err)
		}
	}
	clean(t, s)
}

// checkModules compares the modules disk with the tar.
func checkModules(t *testing.T, f *os.File) {
	t.Helper()
	list, err := exec.CommandContext(t.Context(), testneed.Tool(t, "debugfs"), "-R", "ls -p /kernel/virtio", f.Name()).Output()
	for _, want := range []string{"virtio.ko", "virtio_mmio.ko", "virtio_console.ko"} {
		if err != nil || !strings.Contains(string(list), "/"+want+"/") {
			t.Errorf("modules disk has no kernel/virtio/%s: %v\n%s", want, err, list)
		}
	}
	body, err := exec.CommandContext(t.Context(), testneed.Tool(t, "debugfs"), "-R", "cat /kernel/fs/overlay.ko", f.Name()).Output()
	if err != nil || string(body) != "\x7fELF overlay" {
		t.Errorf("overlay.ko = %q, %v", body, err)
	}
}

func TestImportSaysWhatIsMissing(t *testing.T) {
	without := func(names ...string) func(map[string]string) {
		return func(m map[string]string) {
			for _, n := range names {
				delete(m, strings.ReplaceAll(n, "REL", release))
			}
		}
	}
	option := func(from, to string) func(map[string]string) {
		return func(m map[string]string) {
			m["boot/config-"+release] = strings.Replace(goodConfig, from, to, 1)
		}
	}
	for name, tt := range map[string]struct {
		change func(map[string]string)
		code   api.Code
		say    string
	}{
		"no kernel":            {func(m map[string]string) { clear(m) }, api.Unsupported, "boot/vmlinuz-"},
		"no vmlinuz":           {without("boot/vmlinuz-REL"), api.Unsupported, "no boot/vmlinuz-" + release},
		"no config":            {without("boot/config-REL"), api.Unsupported, "no boot/config-" + release},
		"no index":             {without("lib/modules/REL/modules.dep.bin"), api.Unsupported, "depmod"},
		"an option off":        {option("CONFIG_OVERLAY_FS=m", "# CONFIG_OVERLAY_FS is not set"), api.Unsupported, "lacks CONFIG_OVERLAY_FS"},
		"two options off":      {option("CONFIG_DEVTMPFS=y\nCONFIG_TMPFS=y\n", ""), api.Unsupported, "CONFIG_DEVTMPFS, CONFIG_TMPFS"},
		"ext4 only as module":  {option("CONFIG_EXT4_FS=y", "CONFIG_EXT4_FS=m"), api.Unsupported, "CONFIG_EXT4_FS as y"},
		"a module not there":   {without("lib/modules/REL/kernel/fs/overlay.ko"), api.Unsupported, "overlay.ko"},
		"no release":           {func(m map[string]string) { m["boot/config-6.1\x1b[31m"] = goodConfig }, api.Invalid, "not the release"},
		"two releases":         {func(m map[string]string) { m["boot/config-6.2"] = goodConfig }, api.Invalid, "two kernels"},
		"a kernel of no sort":  {func(m map[string]string) { m["boot/vmlinuz-"+release] = "zz" }, api.Unsupported, "neither"},
		"a config without end": {func(m map[string]string) { m["boot/config-"+release] = strings.Repeat("x", 5<<20) }, api.Invalid, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, nil)
			m := files()
			tt.change(m)
			_, err := s.Import(t.Context(), kernel.Import{Name: "k"}, bytes.NewReader(tarOf(t, m)))
			if err == nil || api.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("Import() = %v (%s), want %s and %q", err, api.CodeOf(err), tt.code, tt.say)
			}
			clean(t, s)
		})
	}
}

func TestImportOfABadStream(t *testing.T) {
	whole := tarOf(t, files())
	s := open(t, nil)
	for name, r := range map[string]io.Reader{
		"cut in a member": bytes.NewReader(whole[:len(whole)/2+100]),
		"no tar":          strings.NewReader(strings.Repeat("no tar", 1000)),
		"nothing":         strings.NewReader(""),
	} {
		if _, err := s.Import(t.Context(), kernel.Import{Name: "k"}, r); err == nil || api.CodeOf(err) == api.Internal {
			t.Errorf("%s: Import() = %v (%s), want what is wrong with the tar", name, err, api.CodeOf(err))
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := fmt.Errorf("the sender has gone")
	cancel(gone)
	if _, err := s.Import(ctx, kernel.Import{Name: "k"}, bytes.NewReader(whole)); err == nil {
		t.Errorf("Import() with a context that has ended = %v, want %v", err, gone)
	}
	clean(t, s)
}
