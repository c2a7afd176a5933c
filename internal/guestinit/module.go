package guestinit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/initramfs"
)

// load loads modules. One that has no file is built into the kernel.
func (b *boot) load(names []string) {
	for _, name := range names {
		err := loadModule(initramfs.ModuleDir + "/" + name + ".ko")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			b.problem(fmt.Errorf("loading module %s: %w", name, err))
		}
	}
}

// loadModule loads a module as if it had no signature. The initramfs comes from
// the host as the kernel does, and checking six signatures takes an emulated
// guest a tenth of a second; it costs the kernel's taint flag E. A kernel that
// insists on signatures gets them.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	image, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mapping %s: %w", path, err)
	}
	defer func() { _ = unix.Munmap(image) }()
	plain := unsigned(image)
	err = unix.InitModule(plain, "")
	if err != nil && len(plain) < len(image) && !errors.Is(err, unix.EEXIST) {
		err = unix.InitModule(image, "")
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// What ends a signed module, and the length of the struct module_signature
// before it, whose last four bytes are the signature's length
// (include/linux/module_signature.h).
const (
	signatureEnd = "~Module signature appended~\n"
	signatureLen = 12
)

// unsigned is the module without its signature.
func unsigned(image []byte) []byte {
	rest, ok := bytes.CutSuffix(image, []byte(signatureEnd))
	if !ok || len(rest) < signatureLen {
		return image
	}
	n := int(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	if n > len(rest)-signatureLen {
		return image
	}
	return rest[:len(rest)-signatureLen-n]
}
