// Package recipe makes the root tars of the default image and kernel on the
// user's machine.
//
// A [Recipe] says which Debian packages go into a tar and which files of ours
// are added. [Run] has mmdebstrap install them in a namespace of its own and
// streams the result: nothing is mounted, extracted or owned on the host, and
// an ordinary account can do it. What mmdebstrap makes is rewritten on its way,
// in Go: host keys, caches and traces of the host are left out, our files are
// put in, downloaded packages go to a cache so that the next run needs none.
//
// The package owns mmdebstrap's command line and output. It does not know
// ext4, the daemon, or where images are kept. It runs as the user, in the CLI.
package recipe

import (
	"fmt"
	"io"
	"strings"

	"banger/internal/api"
	"banger/internal/fetch"
)

// Names of what is used where nothing else is asked for.
const (
	DefaultImage  = "debian-bookworm"
	DefaultKernel = "debian-6.1"
)

// Recipe is one thing that can be built. Values come from [Images] and
// [Kernels]; changing one changes nothing else.
type Recipe struct {
	Name        string
	Description string
	Kernel      bool     // a kernel with its modules, not a root file system
	Suite       string   // Debian's release, by code name
	Packages    []string // with their dependencies, without what they recommend
	Files       []File
	Downloads   []Download
	// Room is about what a build needs in the work directory, in bytes.
	Room int64
}

// File is put into the tar, in place of one with the same path.
type File struct {
	Path string // without a leading slash, in the real directories of a Debian system
	Mode int64  // permission bits
	Body string
	Link string // if not empty, the file is a symbolic link to it
}

// Download is a file with known content that is put into the tar.
type Download struct {
	fetch.Item
	Path string // as in File
	Mode int64
}

// Phase is a part of a build, in this order.
type Phase string

// The phases. A build goes back from PhaseBase to PhaseDownload: Debian's
// essential packages are installed before the others are fetched.
const (
	PhaseFetch     Phase = "fetch"     // files of known content
	PhaseIndex     Phase = "index"     // the archive's lists
	PhaseDownload  Phase = "download"  // packages
	PhaseBase      Phase = "base"      // the essential packages
	PhaseInstall   Phase = "install"   // all others
	PhaseCustomise Phase = "customise" // finishing touches
	PhasePack      Phase = "pack"      // the tar streams out
	PhaseEnd       Phase = "end"       // the tar is whole; its reader may still work
)

// Progress is how far a build is.
type Progress struct {
	Phase  Phase
	Detail string // what is being done, such as a package's name; may be empty
	// Done of Total: bytes in PhaseFetch and PhasePack, else steps, which are
	// packages to download or twice the packages to install. Both begin at 0
	// in each phase; Total is 0 where it is not known.
	Done, Total int64
}

// Options say where a build works. Out is required.
type Options struct {
	// Mirror replaces the host's apt sources: an address, or lines as in
	// sources.list.
	Mirror string
	// CacheDir keeps downloads between runs; it may be deleted at any time.
	CacheDir string
	// WorkDir is where mmdebstrap works, /var/tmp if empty. Other accounts
	// must be able to pass through it.
	WorkDir string
	// Out gets the tar. On failure it has got a part without an end.
	Out io.Writer
	// Progress is called often, by one goroutine at a time; it may be nil.
	Progress func(Progress)
}

// Image returns the recipe of an image of the catalog.
func Image(name string) (Recipe, error) { return find("image", name, Images()) }

// Kernel returns the recipe of a kernel of the catalog.
func Kernel(name string) (Recipe, error) { return find("kernel", name, Kernels()) }

func find(kind, name string, in []Recipe) (Recipe, error) {
	var names []string
	for _, r := range in {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return Recipe{}, &api.Error{
		Code: api.NotFound,
		Msg:  fmt.Sprintf("the catalog has no %s named %q (it has %s)", kind, name, strings.Join(names, ", ")),
		Hint: fmt.Sprintf("banger %s pull %s", kind, names[0]),
	}
}
