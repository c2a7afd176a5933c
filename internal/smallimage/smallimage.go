// Package smallimage makes the tiny root tar that tests and benchmarks boot.
//
// It holds the host's static busybox, a link for each of its applets, and the
// few files without which programs complain. It has no init: the agent stands
// in for one, as in any image without. Only tests and benchmarks import it.
package smallimage

import (
	"archive/tar"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Paths are where Debian's busybox-static and the like put the program.
func Paths() []string {
	return []string{"/bin/busybox", "/usr/bin/busybox", "/usr/sbin/busybox", "/sbin/busybox"}
}

// Busybox returns the path of a statically linked busybox on this host, or an
// error that names the package which has one.
func Busybox() (string, error) {
	for _, p := range Paths() {
		if static(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("looking for a static busybox in %s: none there (Debian's package is busybox-static)", strings.Join(Paths(), ", "))
}

// static says whether path is a program that needs no shared library.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// applets are linked to /bin/busybox. They are the ones that tests use, named
// here rather than asked of the program, so that every host makes the same
// image; what a host's busybox lacks says so when it is called.
const applets = `
[ [[ arch ash awk base64 basename cat chgrp chmod chown chroot clear cmp cp cut date dd df
diff dirname dmesg du echo egrep env expr false fgrep find free grep groups gunzip gzip head
hexdump hostname id ifconfig ip kill killall ln logger ls lsmod lzcat md5sum mkdir mkfifo
mknod mktemp modprobe more mount mv nc netstat nproc od paste pidof ping
printf ps pwd readlink realpath renice reset rev rm rmdir route sed seq setsid sh
sha1sum sha256sum sha512sum sleep sort stat strings stty su sync tail tar tee telnet test
time timeout top touch tr traceroute true truncate tty umount uname uniq unlink unxz uptime usleep
uudecode uuencode vi watch wc wget which whoami xargs xxd xzcat yes zcat`

// entry is one member of the tar; a directory's name ends with a slash.
type entry struct {
	name, body, link string
	mode             int64
	uid              int
}

// base is what the image holds besides busybox.
func base() []entry {
	dirs := []string{"", "bin/", "sbin/", "usr/", "usr/bin/", "usr/sbin/", "usr/local/", "usr/local/bin/", "lib/", "lib/modules/",
		"dev/", "etc/", "home/", "mnt/", "opt/", "proc/", "run/", "srv/", "sys/", "var/", "var/lib/", "var/log/"}
	var out []entry
	for _, d := range dirs {
		out = append(out, entry{name: "./" + d, mode: 0o755})
	}
	return append(out,
		entry{name: "./root/", mode: 0o700},
		entry{name: "./home/user/", mode: 0o755, uid: 1000},
		entry{name: "./tmp/", mode: 0o1777},
		entry{name: "./var/tmp/", mode: 0o1777},
		entry{name: "./var/run", link: "/run"},
		entry{name: "./etc/passwd", mode: 0o644, body: "root:x:0:0:root:/root:/bin/sh\n" +
			"daemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n" +
			"user:x:1000:1000:user:/home/user:/bin/sh\n"},
		entry{name: "./etc/group", mode: 0o644, body: "root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:user\nuser:x:1000:\nnogroup:x:65534:\n"},
		entry{name: "./etc/shadow", mode: 0o640, body: "root:*:19000:0:99999:7:::\nuser:*:19000:0:99999:7:::\n"},
		entry{name: "./etc/nsswitch.conf", mode: 0o644, body: "passwd: files\ngroup: files\nhosts: files dns\n"},
		entry{name: "./etc/hosts", mode: 0o644, body: "127.0.0.1 localhost\n::1 localhost\n"},
		entry{name: "./etc/resolv.conf", mode: 0o644},
		entry{name: "./etc/hostname", mode: 0o644, body: "small\n"},
		entry{name: "./etc/os-release", mode: 0o644, body: "ID=banger-small\nNAME=\"banger's small image\"\nPRETTY_NAME=\"banger's small image\"\n"},
		entry{name: "./etc/shells", mode: 0o644, body: "/bin/sh\n"},
	)
}

// Write writes the root tar to w: the busybox at busyboxPath, which must be
// statically linked, and its links. The same program gives the same bytes.
func Write(w io.Writer, busyboxPath string) error {
	if !static(busyboxPath) {
		return fmt.Errorf("making the small image: %s is not a statically linked program", busyboxPath)
	}
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return fmt.Errorf("making the small image: %w", err)
	}
	tw := tar.NewWriter(w)
	entries := append(base(), entry{name: "./bin/busybox", mode: 0o755, body: string(program)})
	for name := range strings.FieldsSeq(applets) {
		entries = append(entries, entry{name: "./bin/" + name, link: "busybox"})
	}
	for _, e := range entries {
		if err := e.write(tw); err != nil {
			return fmt.Errorf("making the small image: writing %s: %w", e.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("making the small image: %w", err)
	}
	return nil
}

func (e entry) write(tw *tar.Writer) error {
	h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, Size: int64(len(e.body)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}
	switch {
	case e.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
	case strings.HasSuffix(e.name, "/"):
		h.Typeflag = tar.TypeDir
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(tw, e.body)
	return err
}
