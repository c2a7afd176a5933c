package guestinit

import (
	"errors"
	"os"
	"slices"
	"strings"
)

// generatorDir outranks the image's own generators: systemd.generator(7). A link
// to /dev/null there leaves one out.
const generatorDir = "/run/systemd/system-generators"

// generators leaves out those of systemd's own generators that have nothing to
// do. Each is a program for which systemd waits before it starts anything: the
// twelve of Debian took an emulated guest 1.3 s. What others an image has is
// left alone.
func (t *unitTree) generators(cmdline string) {
	// Words for systemd on the kernel's command line ask for them.
	told := strings.Contains(cmdline, "systemd.") || strings.Contains(cmdline, "rd.")
	for name, idle := range map[string]bool{
		// The root is mounted; no boot loader, no swap, no console to log in on.
		"bless-boot": true, "getty": true, "gpt-auto": true, "hibernate-resume": true,
		// What these read is missing, or says nothing.
		"cryptsetup":     !told && !t.says("/etc/crypttab"),
		"debug":          !told,
		"fstab":          !told && !t.says("/etc/fstab"),
		"integritysetup": !told && !t.says("/etc/integritytab"),
		"rc-local":       !t.has("/etc/rc.local"),
		"run":            !told,
		"system-update":  !t.has("/system-update") && !t.has("/etc/system-update"),
		"sysv":           !t.sysv(),
		"veritysetup":    !told && !t.says("/etc/veritytab"),
	} {
		if idle {
			t.link("/dev/null", generatorDir+"/systemd-"+name+"-generator")
		}
	}
}

// sysv says whether there is a script of the old kind that no unit stands for.
func (t *unitTree) sysv() bool {
	scripts, err := os.ReadDir(t.root + "/etc/init.d")
	if err != nil {
		return t.has("/etc/init.d") // a link, perhaps
	}
	return slices.ContainsFunc(scripts, func(s os.DirEntry) bool {
		name := strings.TrimSuffix(s.Name(), ".sh")
		return name != "README" && name != "skeleton" && t.find(name+".service") == ""
	})
}

// says says whether a table has a line that is no comment. One that cannot be
// read does.
func (t *unitTree) says(name string) bool {
	b, err := os.ReadFile(t.root + name)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) || t.has(name)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return true
		}
	}
	return false
}

func (t *unitTree) has(name string) bool {
	_, err := os.Lstat(t.root + name)
	return err == nil
}
