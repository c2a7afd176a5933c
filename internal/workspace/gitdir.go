package workspace

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/git"
)

// writeGit writes everything below .git but the index.
func (p *Plan) writeGit(t *tar.Writer, pack *git.Pack) error {
	now := time.Now().Truncate(time.Second)
	for _, d := range []string{
		".git/", ".git/info/", ".git/objects/", ".git/objects/info/", ".git/objects/pack/",
		".git/refs/", ".git/refs/heads/", ".git/refs/tags/",
	} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755, ModTime: now, Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("writing %s: %w", d, err)
		}
	}
	if pack != nil {
		name := ".git/objects/pack/" + pack.Name
		if err := addOpen(t, name+".pack", pack.Data); err != nil {
			return err
		}
		if err := addOpen(t, name+".idx", pack.Index); err != nil {
			return err
		}
	}
	head := "ref: " + p.ref + "\n"
	if p.ref == "" {
		head = p.Commit + "\n"
	}
	files := []struct{ name, text string }{
		{"HEAD", head},
		{"config", p.config()},
		{"packed-refs", p.packedRefs()},
		{"shallow", lines(p.history.Boundary)},
		// The repository's own rules decide what git status says, as much as
		// those in the tree do. They cannot name a program.
		{"info/exclude", string(p.repo.Note("info/exclude"))},
		{"info/attributes", string(p.repo.Note("info/attributes"))},
	}
	if p.sparse() {
		files = append(files, struct{ name, text string }{"info/sparse-checkout", string(p.repo.Note("info/sparse-checkout"))})
	}
	for _, f := range files {
		if f.text == "" {
			continue
		}
		if err := addBytes(t, ".git/"+f.name, []byte(f.text)); err != nil {
			return err
		}
	}
	return nil
}

// addOpen copies a file of the pack.
func addOpen(t *tar.Writer, name string, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: fi.Size(),
		ModTime: fi.ModTime().Truncate(time.Second), Format: tar.FormatPAX,
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if _, err := io.Copy(t, io.NewSectionReader(f, 0, fi.Size())); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// packedRefs names the one branch. A line in this file cannot become a path.
func (p *Plan) packedRefs() string {
	if p.ref == "" || p.Commit == "" {
		return ""
	}
	return "# pack-refs with: peeled fully-peeled sorted \n" + p.Commit + " " + p.ref + "\n"
}

func (p *Plan) sparse() bool {
	return !p.FromCommit && p.repo.On("core.sparsecheckout", false)
}

// A setting that travels, because git status depends on it, and the values
// that it may have.
type setting struct {
	section, name string
	allowed       []string
}

// travelling is every setting that travels as it is. With none of these
// values can git be made to run a program.
var travelling = []setting{
	{"core", "autocrlf", []string{"true", "false", "input"}},
	{"core", "eol", []string{"lf", "crlf", "native"}},
	{"core", "symlinks", []string{"true", "false"}},
	{"core", "ignorecase", []string{"true", "false"}},
	{"core", "quotepath", []string{"true", "false"}},
	{"status", "renames", []string{"true", "false", "copy", "copies"}},
	{"status", "renamelimit", nil}, // a number
	{"diff", "renames", []string{"true", "false", "copy", "copies"}},
	{"diff", "renamelimit", nil},
}

// config is the guest repository's configuration. Without change times and
// with the minimal comparison git believes the index although every file was
// made anew.
func (p *Plan) config() string {
	c := &configText{}
	version := "0"
	if p.repo.Format != git.SHA1 {
		version = "1"
	}
	c.set("core", "repositoryformatversion", version)
	c.set("core", "filemode", strconv.FormatBool(p.repo.On("core.filemode", true)))
	c.set("core", "bare", "false")
	c.set("core", "logallrefupdates", "true")
	c.set("core", "trustctime", "false")
	c.set("core", "checkStat", "minimal")
	if p.sparse() {
		c.set("core", "sparseCheckout", "true")
		c.set("core", "sparseCheckoutCone", strconv.FormatBool(p.repo.On("core.sparsecheckoutcone", false)))
	}
	for _, s := range travelling {
		v := strings.ToLower(p.repo.Setting(s.section + "." + s.name))
		if _, err := strconv.ParseUint(v, 10, 31); slices.Contains(s.allowed, v) || s.allowed == nil && err == nil {
			c.set(s.section, s.name, v)
		}
	}
	if p.repo.Format != git.SHA1 {
		c.set("extensions", "objectformat", p.repo.Format)
	}
	if url := p.repo.Origin(); url != "" {
		c.set(`remote "origin"`, "url", url)
		c.set(`remote "origin"`, "fetch", "+refs/heads/*:refs/remotes/origin/*")
	}
	for _, name := range []string{"name", "email"} {
		if v := p.repo.Setting("user." + name); v != "" {
			c.set("user", name, v)
		}
	}
	return c.String()
}

// configText writes git's configuration format.
type configText struct {
	strings.Builder
	section string
}

func (c *configText) set(section, name, value string) {
	if section != c.section {
		fmt.Fprintf(c, "[%s]\n", section)
		c.section = section
	}
	fmt.Fprintf(c, "\t%s = \"%s\"\n", name, configEscapes.Replace(value))
}

var configEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\b", `\b`)

func lines(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return strings.Join(list, "\n") + "\n"
}

// branchName is a ref as people write it.
func branchName(ref string) string { return strings.TrimPrefix(ref, "refs/heads/") }
