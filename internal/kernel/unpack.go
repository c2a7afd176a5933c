package kernel

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"banger/internal/api"
	"banger/internal/ext4"
	"banger/internal/initramfs"
)

const (
	// maxKernel, maxConfig and maxModule bound what is held in memory of a tar.
	// Debian's are 14 MiB, 160 KiB and 200 KiB.
	maxKernel = 128 << 20
	maxConfig = 4 << 20
	maxModule = 32 << 20
)

// parts are what a kernel's tar holds.
type parts struct {
	release string
	vmlinuz []byte
	config  []byte
	indexed bool              // modules.dep.bin is there
	kept    map[string][]byte // modules for the initramfs
	modules ext4.Info
}

// unpack reads the tar in r once: what is in lib/modules/REL goes into a file
// system in f, the rest of what matters into memory.
func unpack(ctx context.Context, r io.Reader, f *os.File) (*parts, error) {
	p := &parts{kept: map[string][]byte{}}
	pr, pw := io.Pipe()
	made := make(chan error, 1)
	go func() {
		var err error
		p.modules, err = ext4.Write(ctx, pr, f, ext4.Options{Label: "banger-modules"})
		pr.CloseWithError(err) // ends a sort that would write more
		made <- err
	}()
	tw := tar.NewWriter(pw)
	err := p.sort(tar.NewReader(r), tw)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // the end of the stream says that its maker ended well
	}
	if err == nil {
		err = tw.Close()
	}
	pw.CloseWithError(err)
	if werr := <-made; werr != nil && (err == nil || errors.Is(err, werr)) {
		return nil, fmt.Errorf("making the modules disk: %w", werr)
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = &api.Error{Code: api.Invalid, Msg: "the tar is not whole", Hint: "what makes it may have been interrupted", Err: err}
	case errors.Is(err, tar.ErrHeader):
		err = &api.Error{Code: api.Invalid, Msg: "this is not a tar, or a damaged one", Err: err}
	}
	return p, err
}

// sort takes each member of the tar to where it belongs.
func (p *parts) sort(tr *tar.Reader, modules *tar.Writer) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the tar: %w", err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch kind, release, rest := classify(name); {
		case kind == other || h.Typeflag == tar.TypeDir && rest == "" && kind != module:
			continue
		case !validRelease(release):
			return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%.80q is not the release of a kernel", release)}
		case p.release != "" && p.release != release:
			return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("the tar holds two kernels, %s and %s", p.release, release)}
		default:
			p.release = release
			if err := p.take(kind, rest, h, member{tr, modules}); err != nil {
				return fmt.Errorf("reading %s: %w", name, err)
			}
		}
	}
}

// validRelease keeps what is printed and stored to what uname(1) tells.
func validRelease(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._+~-", c)
	})
}

// kinds of members.
type kind int

const (
	other kind = iota
	image
	config
	module
)

// classify says what a member of the tar is, and for a module where it is
// below lib/modules/REL.
func classify(name string) (k kind, release, rest string) {
	if r, ok := strings.CutPrefix(name, "boot/vmlinuz-"); ok && !strings.Contains(r, "/") {
		return image, r, ""
	}
	if r, ok := strings.CutPrefix(name, "boot/config-"); ok && !strings.Contains(r, "/") {
		return config, r, ""
	}
	if r, ok := strings.CutPrefix(strings.TrimPrefix(name, "usr/"), "lib/modules/"); ok {
		release, rest, _ = strings.Cut(r, "/")
		return module, release, rest
	}
	return other, "", ""
}

// member is the content of a tar's member, and where modules go.
type member struct {
	io.Reader
	modules *tar.Writer
}

// take reads one member. For a module, rest is its path below lib/modules/REL.
func (p *parts) take(k kind, rest string, h *tar.Header, m member) (err error) {
	switch k {
	case image:
		p.vmlinuz, err = capped(m, h, maxKernel)
		return err
	case config:
		p.config, err = capped(m, h, maxConfig)
		return err
	}
	out := *h
	out.Name, out.Format = path.Join(".", rest), tar.FormatUnknown
	if h.Typeflag == tar.TypeLink {
		_, _, target := classify(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"))
		out.Linkname = target
	}
	if err := m.modules.WriteHeader(&out); err != nil {
		return err
	}
	var data []byte
	name, isModule := strings.CutSuffix(path.Base(rest), ".ko")
	switch {
	case h.Typeflag != tar.TypeReg:
		return nil
	case isModule && slices.Contains(initramfs.ModuleNames(), name):
		data, err = capped(m, h, maxModule)
		p.kept[name] = data
	default:
		p.indexed = p.indexed || rest == "modules.dep.bin"
		_, err = io.Copy(m.modules, m)
		return err
	}
	if err == nil {
		_, err = m.modules.Write(data)
	}
	return err
}

// capped reads a member of at most limit bytes.
func capped(r io.Reader, h *tar.Header, limit int64) ([]byte, error) {
	if h.Size > limit {
		return nil, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("it has %d bytes, at most %d are read", h.Size, limit)}
	}
	return io.ReadAll(r)
}

// needs are the options a kernel must have, and of which kind: what a guest
// needs before it can load a module from a disk is either built in or in the
// initramfs. The sources are the agent's first steps and package initramfs.
var needs = [...]struct {
	option string
	module string // in the initramfs, if the option is =m; must be =y if empty
}{
	{"BLK_DEV_INITRD", ""}, {"DEVTMPFS", ""}, {"TMPFS", ""}, {"PROC_FS", ""}, {"SYSFS", ""}, {"UNIX", ""}, {"INET", ""},
	{"CGROUPS", ""}, {"INOTIFY_USER", ""}, {"EXT4_FS", ""}, {"SERIAL_8250_CONSOLE", ""}, {"MODULES", ""},
	{"VIRTIO", "virtio"}, {"VIRTIO_MMIO", "virtio_mmio"}, {"VIRTIO_CONSOLE", "virtio_console"}, {"VIRTIO_BLK", "virtio_blk"}, {"OVERLAY_FS", "overlay"},
}

// check says everything that this kernel lacks.
func (p *parts) check() error {
	lacks := func(format string, args ...any) error {
		return &api.Error{Code: api.Unsupported, Msg: "this kernel cannot be used: " + fmt.Sprintf(format, args...)}
	}
	switch {
	case p.release == "":
		return lacks("the tar holds none (boot/vmlinuz-RELEASE)")
	case p.vmlinuz == nil:
		return lacks("there is no boot/vmlinuz-%s in the tar", p.release)
	case p.config == nil:
		return lacks("there is no boot/config-%s in the tar", p.release)
	case !p.indexed:
		return lacks("its modules have no index (modules.dep.bin, made by depmod)")
	}
	have := options(p.config)
	var missing []string
	for _, n := range needs {
		switch v := have[n.option]; {
		case v == "y":
		case v == "m" && n.module != "":
			if p.kept[n.module] == nil {
				missing = append(missing, "the module "+n.module+".ko")
			}
		case v == "m":
			missing = append(missing, "CONFIG_"+n.option+" as y (it is m)")
		default:
			missing = append(missing, "CONFIG_"+n.option)
		}
	}
	if len(missing) > 0 {
		return lacks("it lacks %s", strings.Join(missing, ", "))
	}
	return nil
}

// options reads a kernel's configuration.
func options(config []byte) map[string]string {
	out := map[string]string{}
	sc := bufio.NewScanner(bytes.NewReader(config))
	for sc.Scan() {
		if name, value, ok := strings.Cut(strings.TrimPrefix(sc.Text(), "CONFIG_"), "="); ok {
			out[name] = value
		}
	}
	return out
}
