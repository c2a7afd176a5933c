package agent

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"banger/internal/agentapi"
)

// An account is who a command runs as.
type account struct {
	name     string
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
	shell    string
}

// findAccount resolves "name", "uid", "name:group" or "uid:gid" with the files
// of the guest: no cgo, no NSS. Empty is root, which exists without files too.
// A uid that no account has is allowed; its group is then the same number.
func findAccount(spec string) (account, error) {
	if spec == "" {
		spec = "root"
	}
	user, group, hasGroup := strings.Cut(spec, ":")
	a, known := readAccount(user)
	if !known {
		uid, err := strconv.ParseUint(user, 10, 32)
		switch {
		case user == "root":
			a = account{name: "root", home: "/root"}
		case err != nil:
			return a, refuse(agentapi.CodeNoUser, "no user %q in the guest", user)
		default:
			a = account{name: user, uid: uint32(uid), gid: uint32(uid), home: "/"}
		}
	}
	if a.shell == "" {
		a.shell = "/bin/sh"
	}
	if a.home == "" {
		a.home = "/"
	}
	if hasGroup {
		gid, err := readGroup(group)
		if err != nil {
			return a, err
		}
		a.gid = gid
		return a, nil // one group was asked for, and one it is
	}
	a.groups = memberOf(a.name, a.gid)
	return a, nil
}

// readAccount finds a name, or else a uid, in /etc/passwd.
func readAccount(user string) (account, bool) {
	var byUID account
	found := false
	for f := range records("/etc/passwd", 7) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		a := account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
		if f[0] == user {
			return a, true
		}
		if f[2] == user && !found {
			byUID, found = a, true
		}
	}
	return byUID, found
}

func readGroup(group string) (uint32, error) {
	for f := range records("/etc/group", 4) {
		if f[0] != group {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			return uint32(gid), nil
		}
	}
	gid, err := strconv.ParseUint(group, 10, 32)
	if err != nil {
		return 0, refuse(agentapi.CodeNoUser, "no group %q in the guest", group)
	}
	return uint32(gid), nil
}

func memberOf(name string, primary uint32) []uint32 {
	groups := []uint32{primary}
	for f := range records("/etc/group", 4) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil || uint32(gid) == primary {
			continue
		}
		if slices.Contains(strings.Split(f[3], ","), name) {
			groups = append(groups, uint32(gid))
		}
	}
	return groups
}

// records yields the lines of a colon-separated file that have n fields. A
// missing file has none.
func records(path string, n int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		b, err := os.ReadFile(path)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
			if len(f) == n && !yield(f) {
				return
			}
		}
	}
}
