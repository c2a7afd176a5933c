package companionapi

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Save replaces a file in a VM's runtime directory. A reader finds the old or
// the new content. Nothing is flushed to the disk: what these files tell does
// not outlive the boot of the host.
func Save(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("saving %s: %w", name, err)
	}
	f, err := os.CreateTemp(dir, ".tmp-"+name+"-")
	if err != nil {
		return fmt.Errorf("saving %s: %w", name, err)
	}
	_, err = f.Write(append(b, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error above is the one to tell
		return fmt.Errorf("saving %s: %w", name, err)
	}
	return nil
}

// Load reads a file that Save wrote. A missing one is os.ErrNotExist.
func Load(dir, name string, v any) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxConfig+1))
	if err == nil && len(b) > MaxConfig {
		err = fmt.Errorf("it has more than %d bytes", MaxConfig)
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// MaxConfig is the most bytes that a Config may have as JSON.
const MaxConfig = 16 << 20
