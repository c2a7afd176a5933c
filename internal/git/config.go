package git

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"banger/internal/api"
)

// maxDrivers bounds how many programs a configuration may name. Each is
// overridden by a few environment variables, and those have a limit.
const maxDrivers = 500

// config holds the effective settings; the last value of a key wins. Keys are
// as git prints them: section and name in lower case.
type config map[string]string

// parseConfig reads the output of git config --null --list.
func parseConfig(list []byte) config {
	c := config{}
	for item := range strings.SplitSeq(string(list), "\x00") {
		if item == "" {
			continue
		}
		key, value, found := strings.Cut(item, "\n")
		if !found {
			value = "true" // a key without "=" is a boolean
		}
		c[key] = value
	}
	return c
}

func (c config) get(key string) string { return c[key] }

// programs lists overrides for every driver that names a program and for
// every remote that promises to fetch. None of our calls runs one; this is
// the second lock.
func (c config) programs() ([][2]string, error) {
	var out [][2]string
	for key := range c {
		section, rest, _ := strings.Cut(key, ".")
		dot := strings.LastIndexByte(rest, '.')
		if dot < 0 {
			continue
		}
		value := ""
		switch section + "." + rest[dot+1:] {
		case "filter.clean", "filter.smudge", "filter.process",
			"diff.textconv", "diff.command", "merge.driver",
			"credential.helper", "gpg.program":
		case "filter.required", "remote.promisor":
			value = "false"
		case "remote.uploadpack", "remote.receivepack", "remote.vcs":
			value = "false"
		default:
			continue
		}
		out = append(out, [2]string{key, value})
	}
	if len(out) > maxDrivers {
		return nil, &api.Error{
			Code: api.Unsupported,
			Msg:  fmt.Sprintf("the git configuration names %d programs; at most %d are expected", len(out), maxDrivers),
			Hint: "look at it with: git config --list",
		}
	}
	return out, nil
}

// Setting returns the effective value of a setting ("core.eol"), or "".
func (r *Repo) Setting(key string) string { return r.conf.get(key) }

// On returns a boolean setting, or otherwise if it is not set or not boolean.
func (r *Repo) On(key string, otherwise bool) bool {
	switch strings.ToLower(r.conf.get(key)) {
	case "true", "yes", "on", "1":
		return true
	case "false", "no", "off", "0":
		return false
	}
	return otherwise
}

// Promisor returns the remote that a partial clone fetches missing objects
// from, or "" for a complete repository.
func (r *Repo) Promisor() string {
	if name := r.conf.get("extensions.partialclone"); name != "" {
		return name
	}
	for key, value := range r.conf {
		name, ok := strings.CutPrefix(key, "remote.")
		if name, is := strings.CutSuffix(name, ".promisor"); ok && is && value != "false" {
			return name
		}
	}
	return ""
}

// Origin returns the URL of the remote "origin" as a guest may see it: see
// [CleanURL].
func (r *Repo) Origin() string { return CleanURL(r.conf.get("remote.origin.url")) }

// scpLike is git's short form of ssh: [user@]host:path. A later "@" would be
// somebody's idea of a password.
var scpLike = regexp.MustCompile(`^(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9._-]+:[^:@\s][^@\s]*$`)

// CleanURL returns a remote's URL without credentials: no password, no user
// name unless it is ssh's, no query and no fragment. A local path, a file
// URL, a remote helper and anything not understood give "": a guest cannot
// use them, and they tell how the host is laid out.
func CleanURL(raw string) string {
	for _, c := range raw {
		if c <= ' ' || c == 0x7f {
			return ""
		}
	}
	if !strings.Contains(raw, "://") {
		if scpLike.MatchString(raw) && !strings.HasPrefix(raw, "-") && !strings.Contains(raw, "::") {
			return raw
		}
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || strings.HasPrefix(u.Host, "-") {
		return ""
	}
	switch u.Scheme {
	case "ssh", "git+ssh", "ssh+git":
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
	case "http", "https", "git", "ftp", "ftps":
		u.User = nil
	default:
		return ""
	}
	u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", ""
	return u.String()
}
