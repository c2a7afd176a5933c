package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/ext4"
	"banger/internal/initramfs"
	"banger/internal/labwire"
	"banger/internal/recipe"
)

// imageVersion counts the changes to how the code below makes an image of the
// recipe: it is part of the image's name in the cache.
const imageVersion = 1

// kernelName is the kernel's file: Debian's own, since the stock kernel is
// compressed with xz, which we cannot undo.
const kernelName = "vmlinuz"

// rootBytes is the size of the machine's root, nearly all of it holes.
const rootBytes = 16 << 30

// The accounts of the machine besides root. Neither may do anything that
// others may not; there is no password, and sudo lets none of them in.
const (
	// Owner is an ordinary account: the one that banger is installed for.
	Owner = "owner"
	// Other is another one.
	Other = "other"
)

var accounts = []struct {
	name string
	id   int
}{{Owner, 1000}, {Other, 1001}}

// machineRecipe is the root file system: Debian 12 as it comes, with its stock
// kernel.
func machineRecipe() recipe.Recipe {
	return recipe.Recipe{
		Name:  "lab-machine",
		Suite: "bookworm",
		Packages: []string{
			"systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "e2fsprogs", "systemd-resolved",
			"linux-image-amd64",
			"tiny-initramfs", // in place of one that takes half a minute to make; the lab boots with its own
			"iproute2", "nftables", "iptables", "conntrack", "iputils-ping", "bind9-dnsutils", "dnsmasq-base", "curl", "socat", "tcpdump",
			"openssh-server", "openssh-client", "sudo", "git", "jq", "python3", "strace", "tmux", "busybox-static", "ca-certificates",
		},
		Files: []recipe.File{
			{Path: "etc/systemd/system/default.target", Link: "/lib/systemd/system/multi-user.target"},
			{Path: "etc/machine-id", Mode: 0o444}, // systemd makes one for each machine
			{Path: "etc/hostname", Mode: 0o644, Body: "lab\n"},
			{Path: "etc/hosts", Mode: 0o644, Body: "127.0.0.1 localhost lab\n::1 localhost ip6-localhost ip6-loopback\n"},
			{Path: "etc/systemd/journald.conf.d/lab.conf", Mode: 0o644, Body: "[Journal]\nStorage=persistent\nRateLimitBurst=0\n"},
		},
		Room: 3 << 30,
	}
}

// files is a lab machine in the cache: what QEMU boots, save the initramfs,
// which has our own program in it.
type files struct {
	root, kernel string
	modules      []initramfs.Module
	lock         *os.File // held as long as the files are used
}

// cacheDir is where everything is that the lab keeps.
func cacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "banger-test", "lab"), err
}

// key names what the recipe gives.
func key(r recipe.Recipe) string {
	b, _ := json.Marshal(r) // strings and numbers
	modules := slices.Sorted(slices.Values(labwire.Modules()))
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %s %s", imageVersion, int64(rootBytes), modules, b))
	return hex.EncodeToString(sum[:8])
}

// prepare returns the machine's files. They are made once per account and
// recipe, while other processes wait; that takes some minutes, which say
// announces.
func prepare(ctx context.Context, say func(string)) (*files, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	r := machineRecipe()
	dir := filepath.Join(cache, "machine-"+key(r))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &files{root: filepath.Join(dir, "root.ext4"), kernel: filepath.Join(dir, kernelName)}
	if m.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	err = m.make(func() error {
		say("building the lab machine (once; some minutes)")
		defer prune(cache, dir)
		return build(ctx, r, dir, filepath.Join(cache, "downloads"))
	})
	if err == nil {
		err = m.loadModules(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the lab machine: %w", err), m.lock.Close())
	}
	return m, nil
}

// make returns when the files are there and this process holds a share of their
// lock, under which nobody makes or removes them.
func (m *files) make(build func() error) error {
	for {
		if err := unix.Flock(int(m.lock.Fd()), unix.LOCK_SH); err != nil {
			return err
		}
		if _, err := os.Stat(m.kernel); err == nil { // made last
			return nil
		}
		// The share is given up for the whole: somebody may be faster.
		if err := unix.Flock(int(m.lock.Fd()), unix.LOCK_EX); err != nil {
			return err
		}
		if _, err := os.Stat(m.kernel); err == nil {
			continue
		}
		if err := build(); err != nil {
			return err
		}
	}
}

// prune removes machines of other recipes that nobody uses.
func prune(cache, keep string) {
	dirs, _ := filepath.Glob(filepath.Join(cache, "machine-*")) // the pattern is right
	for _, dir := range dirs {
		if dir == keep {
			continue
		}
		lock, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir) // or the next time
		}
		lock.Close()
	}
}

func (m *files) loadModules(dir string) error {
	for _, name := range labwire.Modules() {
		b, err := os.ReadFile(filepath.Join(dir, name+".ko"))
		if errors.Is(err, os.ErrNotExist) {
			continue // built in
		}
		if err != nil {
			return err
		}
		m.modules = append(m.modules, initramfs.Module{Name: name, Data: b})
	}
	return nil
}

// build makes the files of a machine in dir: the recipe's tar flows through
// keep into an ext4 image.
func build(ctx context.Context, r recipe.Recipe, dir, downloads string) (err error) {
	root, err := os.CreateTemp(dir, ".root-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, root.Close())
		_ = os.Remove(root.Name()) // it has another name if all went well
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	made, recipeOut := io.Pipe()
	ours, keepOut := io.Pipe()
	k := kept{files: map[string][]byte{}}
	ended := make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		recipeOut.CloseWithError(recipe.Run(ctx, r, recipe.Options{CacheDir: downloads, Out: recipeOut}))
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		err := k.copy(made, keepOut)
		made.CloseWithError(err)
		keepOut.CloseWithError(err)
	}()
	_, err = ext4.Write(ctx, ours, root, ext4.Options{Label: "lab", Writable: rootBytes, MaxBytes: rootBytes})
	if err != nil {
		cancel(err)
		ours.CloseWithError(err)
	}
	<-ended
	<-ended
	if err != nil {
		return err
	}
	if err := os.Rename(root.Name(), filepath.Join(dir, "root.ext4")); err != nil {
		return err
	}
	return k.save(dir)
}

// kept is what of the tar is needed beside the image.
type kept struct {
	vmlinuz []byte
	files   map[string][]byte // modules, as NAME.ko
}

// copy passes a tar on, keeps kernel and modules, and adds the accounts.
func (k *kept) copy(in io.Reader, out io.Writer) error {
	w := tar.NewWriter(out)
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := k.entry(h, r, w); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	for _, a := range accounts {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: "./home/" + a.name + "/", Mode: 0o700, Uid: a.id, Gid: a.id, ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
	return w.Close()
}

func (k *kept) entry(h *tar.Header, r io.Reader, w *tar.Writer) error {
	name, base := strings.TrimPrefix(path.Clean("/"+h.Name), "/"), path.Base(h.Name)
	var keep func([]byte) []byte
	switch {
	case h.Typeflag != tar.TypeReg:
	case strings.HasPrefix(name, "boot/initrd.img-"):
		return nil // ours is another
	case strings.HasPrefix(name, "boot/vmlinuz-"):
		keep = func(b []byte) []byte { k.vmlinuz = b; return b }
	case strings.HasSuffix(base, ".ko") && slices.Contains(labwire.Modules(), strings.TrimSuffix(base, ".ko")):
		keep = func(b []byte) []byte { k.files[base] = b; return b }
	default:
		keep = addAccounts(name)
	}
	if keep != nil {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		b = keep(b)
		h.Size, r = int64(len(b)), bytes.NewReader(b)
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, r)
	return err
}

// addAccounts returns what to do to a file that lists accounts, or nil.
func addAccounts(name string) func([]byte) []byte {
	line := map[string]string{
		"etc/passwd":  "NAME:x:ID:ID::/home/NAME:/bin/bash\n",
		"etc/group":   "NAME:x:ID:\n",
		"etc/shadow":  "NAME:*:19000:0:99999:7:::\n",
		"etc/gshadow": "NAME:!::\n",
	}[name]
	if line == "" {
		return nil
	}
	return func(b []byte) []byte {
		for _, a := range accounts {
			b = append(b, strings.NewReplacer("NAME", a.name, "ID", strconv.Itoa(a.id)).Replace(line)...)
		}
		return b
	}
}

// save writes the kernel last: it says that all is there.
func (k *kept) save(dir string) error {
	if len(k.vmlinuz) == 0 {
		return errors.New("there is no kernel in the tar")
	}
	for name, b := range k.files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	tmp := filepath.Join(dir, ".kernel")
	if err := os.WriteFile(tmp, k.vmlinuz, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, kernelName))
}
