package ext4

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// randomItems makes a tar that changes its mind: entries replace, repeat and
// link each other. The same seed makes the same tar.
func randomItems(seed uint64, n int) []item {
	g := generator{rand: rand.New(rand.NewPCG(seed, 4)), dirs: []string{""}}
	for range n {
		g.step()
	}
	return g.items
}

type generator struct {
	rand  *rand.Rand
	items []item
	dirs  []string // with a slash, or empty
	files []string
}

// step appends an entry that is valid after those before it: files and
// directories have different names, so that a parent is always a directory.
func (g *generator) step() {
	parent := g.dirs[g.rand.IntN(len(g.dirs))]
	h := tar.Header{
		Mode: g.rand.Int64N(0o10000), Uid: int(g.rand.Uint32N(1<<32 - 2)), Gid: g.rand.IntN(1000),
		ModTime: time.Unix(g.rand.Int64N(1<<33), g.rand.Int64N(1e9)), Format: tar.FormatPAX,
	}
	if g.rand.IntN(4) == 0 {
		h.PAXRecords = map[string]string{
			paxXattr + fmt.Sprintf("user.n%d", g.rand.IntN(3)): g.text(g.rand.IntN(120)),
			paxXattr + "trusted.t":                             g.text(g.rand.IntN(20)),
		}
	}
	leaf := fmt.Sprintf("%sf%d%s", parent, g.rand.IntN(60), strings.Repeat("é", g.rand.IntN(2)*40))
	body := ""
	switch kind := g.rand.IntN(12); {
	case kind < 3:
		h.Typeflag, h.Name = tar.TypeDir, fmt.Sprintf("%sd%d/", parent, g.rand.IntN(6))
		if !slices.Contains(g.dirs, h.Name) {
			g.dirs = append(g.dirs, h.Name)
		}
	case kind < 4 && len(g.files) > 0:
		h = tar.Header{Typeflag: tar.TypeLink, Name: leaf, Linkname: g.files[g.rand.IntN(len(g.files))]}
		g.files = append(g.files, leaf)
	case kind < 5:
		h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, leaf, g.text(1+g.rand.IntN(100))
		g.files = append(g.files, leaf)
	case kind < 6:
		h.Typeflag, h.Name = tar.TypeChar, leaf
		h.Devmajor, h.Devminor = g.rand.Int64N(4096), g.rand.Int64N(1<<20)
		g.files = append(g.files, leaf)
	default:
		h.Typeflag, h.Name = tar.TypeReg, leaf
		body = g.text(g.rand.IntN(1 << g.rand.IntN(19)))
		g.files = append(g.files, leaf)
	}
	g.items = append(g.items, item{h, body})
}

// text has no NULs but, when it is long, holes.
func (g *generator) text(n int) string {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + g.rand.IntN(255))
	}
	if n > 100_000 {
		clear(p[9000:90_000])
	}
	return string(p)
}

// object is a file as the model of TestWriteRandom sees it.
type object struct {
	Entry
	body string
}

// model applies entries to a flat map: what a tree is to a child.
func model(items []item) map[string]string {
	tree := map[string]*object{".": {Entry: Entry{Mode: modeDir | 0o755, Mtime: time.Unix(0, 0)}}}
	for _, it := range items {
		name := strings.TrimSuffix(it.Name, "/")
		if it.Typeflag == tar.TypeLink {
			tree[name] = tree[it.Linkname]
			continue
		}
		kind := map[byte]uint16{tar.TypeReg: modeFile, tar.TypeDir: modeDir, tar.TypeSymlink: modeLink, tar.TypeChar: modeChar}
		o := &object{body: it.body, Entry: Entry{
			Mode: kind[it.Typeflag] | uint16(it.Mode), UID: uint32(it.Uid), GID: uint32(it.Gid), Mtime: it.ModTime,
			Size: int64(len(it.body) + len(it.Linkname)), Target: it.Linkname,
			Major: uint32(it.Devmajor), Minor: uint32(it.Devminor), Xattrs: map[string][]byte{},
		}}
		for k, v := range it.PAXRecords {
			o.Xattrs[strings.TrimPrefix(k, paxXattr)] = []byte(v)
		}
		tree[name] = o
	}
	first, links := map[*object]string{}, map[*object]int{}
	for _, path := range slices.Sorted(maps.Keys(tree)) {
		o := tree[path]
		if first[o] == "" {
			first[o] = path
		}
		links[o]++
		if o.Mode&modeType == modeDir {
			links[o]++
			if at := strings.LastIndex(path, "/"); at >= 0 {
				links[tree[path[:at]]]++
			} else if path != "." {
				links[tree["."]]++
			}
		}
	}
	want := map[string]string{}
	for path, o := range tree {
		o.Links = links[o]
		content := ""
		if o.Mode&modeType == modeFile {
			sum := sha256.Sum256([]byte(o.body))
			content = string(sum[:])
		}
		want[path] = describe(o.Entry, first[o], content)
	}
	return want
}

func TestWriteRandom(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			items := randomItems(seed, 30<<(seed%6))
			f, info := write(t, bytes.NewReader(tarOf(t, items...)), Options{})
			got, want := listing(t, f), model(items)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("tree (-want +got):\n%.5000s", diff)
			}
			if info.SkippedXattrs != 0 {
				t.Errorf("got %d skipped attributes, want 0", info.SkippedXattrs)
			}
		})
	}
}
