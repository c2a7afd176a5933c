package recipe

import (
	"bufio"
	"context"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// debSource is one line of a sources.list: one address, one suite.
type debSource struct {
	uri, suite string
	signedBy   string // a keyring's path, or empty
	trusted    bool
	components []string
	arches     []string
}

// line is the source as mmdebstrap and apt read it, for the main component.
func (s debSource) line() string {
	var opts []string
	if s.signedBy != "" {
		opts = append(opts, "signed-by="+s.signedBy)
	}
	if s.trusted {
		opts = append(opts, "trusted=yes")
	}
	if len(opts) == 0 {
		return "deb " + s.uri + " " + s.suite + " main"
	}
	return "deb [" + strings.Join(opts, " ") + "] " + s.uri + " " + s.suite + " main"
}

// mirrors returns the sources to give to mmdebstrap: what the user configured,
// else the host's own, else none, and mmdebstrap uses Debian's.
func mirrors(mirror, root, suite string) []string {
	if mirror = strings.TrimSpace(mirror); mirror != "" {
		var lines []string
		for l := range strings.Lines(mirror) {
			if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
				lines = append(lines, l)
			}
		}
		return lines
	}
	return hostSources(root, suite)
}

// hostSources returns the lines of the apt configuration below root that are
// Debian's archive for the suite. Without one for the suite itself there are
// none: updates alone make no system.
func hostSources(root, suite string) []string {
	var lines []string
	complete := false
	for _, s := range readSources(root) {
		wanted := s.suite == suite || s.suite == suite+"-updates" || s.suite == suite+"-security"
		if !wanted || !slices.Contains(s.components, "main") || (len(s.arches) > 0 && !slices.Contains(s.arches, "amd64")) {
			continue
		}
		if s.uri = resolve(root, s.uri); s.uri == "" || !debianArchive(s) {
			continue
		}
		if s.signedBy != "" {
			if _, err := os.Stat(filepath.Join(root, s.signedBy)); err != nil {
				s.signedBy = ""
			}
		}
		complete = complete || s.suite == suite
		if l := s.line(); !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	if !complete {
		return nil
	}
	return lines
}

// debianArchive tells Debian's archive and its mirrors from other archives
// that have a suite of the same name. Their origin is in a file that only the
// network has, so the path or the keyring decides.
func debianArchive(s debSource) bool {
	if strings.Contains(s.signedBy, "debian-archive") {
		return true
	}
	u, err := url.Parse(s.uri)
	if err != nil {
		return false
	}
	base := path.Base(strings.TrimRight(u.Path, "/"))
	return base == "debian" || base == "debian-security"
}

// resolve returns an address that works without the host's files, or "". It
// looks into the mirror lists that Debian's cloud images use.
func resolve(root, uri string) string {
	if strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://") {
		return uri
	}
	list, ok := strings.CutPrefix(uri, "mirror+file:")
	if !ok {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(root, strings.TrimPrefix(list, "//")))
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 0 && strings.HasPrefix(f[0], "http") {
			return f[0]
		}
	}
	return ""
}

// readSources reads every apt source below root, in apt's order. What cannot
// be read or understood is passed over: apt itself will have complained.
func readSources(root string) []debSource {
	dir := filepath.Join(root, "etc/apt")
	files := []string{filepath.Join(dir, "sources.list")}
	more, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*")) // the pattern is right
	var out []debSource
	for _, name := range append(files, more...) {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		switch filepath.Ext(name) {
		case ".list":
			out = append(out, oneLine(string(b))...)
		case ".sources":
			out = append(out, deb822(string(b))...)
		}
	}
	return out
}

// oneLine reads "deb [option=value ...] uri suite component..." lines.
func oneLine(text string) []debSource {
	var out []debSource
	for l := range strings.Lines(text) {
		l, _, _ = strings.Cut(l, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(l), "deb")
		if !ok || rest == "" || !strings.ContainsAny(rest[:1], " \t") {
			continue
		}
		var s debSource
		if rest = strings.TrimSpace(rest); strings.HasPrefix(rest, "[") {
			opts, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			rest = after
			for opt := range strings.FieldsSeq(opts) {
				k, v, _ := strings.Cut(opt, "=")
				s.option(strings.ToLower(k), strings.Split(v, ","))
			}
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			s.uri, s.suite, s.components = f[0], f[1], f[2:]
			out = append(out, s)
		}
	}
	return out
}

// option takes what both formats can say about a source.
func (s *debSource) option(key string, values []string) {
	switch key {
	case "signed-by":
		// A key in place, or several keyrings, cannot be said in one line; the
		// archive's own keys are trusted anyway.
		if len(values) == 1 && strings.HasPrefix(values[0], "/") {
			s.signedBy = values[0]
		}
	case "trusted":
		s.trusted = len(values) == 1 && values[0] == "yes"
	case "arch", "architectures":
		s.arches = values
	}
}

// isNo reports whether apt takes a word for no.
func isNo(word string) bool {
	return slices.Contains([]string{"no", "false", "without", "off", "disable", "0"}, strings.ToLower(word))
}

// deb822 reads the stanzas of a .sources file.
func deb822(text string) []debSource {
	var out []debSource
	fields, last := map[string][]string{}, ""
	flush := func() {
		defer func() { fields, last = map[string][]string{}, "" }()
		if !slices.Contains(fields["types"], "deb") || slices.ContainsFunc(fields["enabled"], isNo) {
			return
		}
		for _, uri := range fields["uris"] {
			for _, suite := range fields["suites"] {
				s := debSource{uri: uri, suite: suite, components: fields["components"]}
				for _, k := range []string{"signed-by", "trusted", "architectures"} {
					s.option(k, fields[k])
				}
				out = append(out, s)
			}
		}
	}
	for l := range strings.Lines(text) {
		switch {
		case strings.TrimSpace(l) == "":
			flush()
		case strings.HasPrefix(l, "#"):
		case l[0] == ' ' || l[0] == '\t':
			fields[last] = append(fields[last], strings.Fields(l)...)
		default:
			k, v, _ := strings.Cut(l, ":")
			last = strings.ToLower(k)
			fields[last] = strings.Fields(v)
		}
	}
	flush()
	return out
}

// aptOptions returns the host's settings for reaching an archive (proxies,
// certificates, timeouts), as lines of an apt.conf. A host without apt has none.
func aptOptions(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil
	}
	return reachOptions(string(out))
}

func reachOptions(dump string) []string {
	var out []string
	for sc := bufio.NewScanner(strings.NewReader(dump)); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), " ")
		lower := strings.ToLower(key)
		reach := strings.HasPrefix(lower, "acquire::http::") || strings.HasPrefix(lower, "acquire::https::")
		// A detection script is a file of the host: not there inside.
		if reach && value != `"";` && !strings.Contains(lower, "auto-detect") {
			out = append(out, sc.Text())
		}
	}
	return out
}
