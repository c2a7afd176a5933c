package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/names"
	"banger/internal/progress"
	"banger/internal/recipe"
	"banger/internal/session"
	"banger/internal/usage"
)

func (a *app) image() *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "pull, import, list and delete base images",
		Long: `An image is the read-only base of VMs; all VMs of an image share it. "vm run"
pulls the default image by itself the first time.

  banger image pull --force            a fresh default image
  banger image import NAME FILE.tar    make an image of any root file system`,
	}
	c.AddCommand(a.imageImport())
	a.images().add(a, c, "delete", "rm")
	return c
}

func (a *app) images() stored[api.Image] {
	return stored[api.Image]{
		noun:    "image",
		one:     "an image",
		list:    (*client.Client).Images,
		get:     (*client.Client).Image,
		remove:  (*client.Client).DeleteImage,
		outcome: func(i api.Image) answer.Outcome { return answer.Outcome{Image: &i} },
		catalog: recipe.Images,
		pull:    a.pullImage,
		initial: recipe.DefaultImage,
		line:    func(i api.Image) string { return fmt.Sprintf("%s %.12s, %s", i.Name, i.ID, answer.Bytes(i.Used)) },
		header:  "NAME ID SIZE INIT VMS CREATED",
		row: func(i api.Image) []string {
			return []string{i.Name, fmt.Sprintf("%.12s", i.ID), answer.Bytes(i.Used), answer.Dash(i.Init), fmt.Sprint(len(i.Machines)), answer.Ago(time.Now(), i.Created)}
		},
		show: func(w io.Writer, i api.Image) {
			fmt.Fprintf(w, "name     %s\nid       %s\nsource   %s\nsize     %s on disk, %s apparent\ninit     %s\ncreated  %s\nVMs      %s\n",
				i.Name, i.ID, i.Source, answer.Bytes(i.Used), answer.Bytes(i.Bytes), answer.Dash(i.Init), i.Created.Local().Format(time.RFC3339), answer.List(i.Machines))
		},
	}
}

func (a *app) pullImage(ctx context.Context, d *client.Client, name string, force bool) (api.Image, error) {
	r, err := recipe.Image(name)
	if err != nil {
		return api.Image{}, err
	}
	p := a.progress(ctx, "image "+name)
	defer p.End()
	return d.PullImage(ctx, name, api.PullRequest{Force: force}, a.builder(r, p), p.Event)
}

// builder runs a recipe as the user and writes its tar.
func (a *app) builder(r recipe.Recipe, p *progress.Bar) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		return recipe.Run(ctx, r, recipe.Options{
			Mirror:   a.config.Mirror,
			CacheDir: a.layout.Cache,
			Out:      w,
			Progress: p.Recipe,
		})
	}
}

func (a *app) imageImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import NAME FILE.tar|-",
		Short: "make an image of a root file system as a tar",
		Long: `import streams a tar of a root file system into an image; "-" reads stdin. It
needs nothing in it: no kernel, no init, no ssh.

  docker export $(docker create alpine) | banger image import alpine -`,
		Args:              usage.Args(2, 2, "a name and a tar file"),
		ValidArgsFunction: completeImport,
		RunE: func(cmd *cobra.Command, given []string) error {
			ctx := cmd.Context()
			if err := names.CheckImage(given[0]); err != nil {
				return err
			}
			in, total, err := a.tar(given[0], given[1])
			if err != nil {
				return err
			}
			defer in.Close()
			d, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer d.Close()
			p := a.progress(ctx, "image "+given[0])
			defer p.End()
			img, err := d.ImportImage(ctx, given[0], p.Reader(in, total), p.Event)
			p.End()
			if err != nil {
				return err
			}
			return a.print(img, func(w io.Writer) { fmt.Fprintln(w, a.images().line(img)) })
		},
	}
}

// tar opens the file to import and says how long it is, 0 if that is unknown.
func (a *app) tar(name, path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		if session.IsTerminal(a.Stdin) {
			return nil, 0, usage.Error("docker export CONTAINER | banger image import "+name+" -", "stdin is a terminal, not a tar")
		}
		return io.NopCloser(a.Stdin), 0, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, usage.Error("banger image import "+name+" FILE.tar", "there is no file %s", path)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("opening the tar: %w", err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
		f.Close()
		return nil, 0, fmt.Errorf("opening the tar: %w", err)
	case st.IsDir():
		f.Close()
		return nil, 0, usage.Error("tar -C "+path+" -c . | banger image import "+name+" -", "%s is a directory, not a tar", path)
	case st.Mode().IsRegular():
		return f, st.Size(), nil
	}
	return f, 0, nil
}
