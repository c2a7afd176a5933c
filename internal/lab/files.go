package lab

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// writeFiles writes the tar that brings a job's files into the machine.
func writeFiles(w io.Writer, files []File) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		if err := addFile(t, f); err != nil {
			return fmt.Errorf("packing %s for the lab: %w", f.Name, err)
		}
	}
	return t.Close()
}

func addFile(t *tar.Writer, f File) error {
	if f.Path == "" {
		if f.Mode == 0 {
			f.Mode = 0o755
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Body)), ModTime: time.Now()}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := t.Write(f.Body)
		return err
	}
	return filepath.WalkDir(f.Path, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(f.Path, at)
		if err != nil {
			return err
		}
		fi, err := os.Stat(at)
		if err != nil {
			return err
		}
		mode := fi.Mode().Perm()
		if f.Mode != 0 && below == "." {
			mode = f.Mode.Perm()
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(f.Name, filepath.ToSlash(below)), Mode: int64(mode), ModTime: fi.ModTime()}
		if fi.IsDir() {
			h.Typeflag = tar.TypeDir
			return t.WriteHeader(h)
		}
		return addContent(t, h, at, fi.Size())
	})
}

// addContent adds a file of this host, which must not change meanwhile.
func addContent(t *tar.Writer, h *tar.Header, at string, size int64) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	if h.Size = size; h.Size < 0 {
		return fmt.Errorf("%s is not a file", at)
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
