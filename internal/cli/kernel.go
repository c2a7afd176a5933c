package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/recipe"
)

func (a *app) kernel() *cobra.Command {
	c := &cobra.Command{
		Use:   "kernel",
		Short: "pull, list and delete kernels",
		Long: `A kernel is what VMs boot, with its modules. Any kernel goes with any image;
"vm run" pulls the default one by itself the first time.

  banger kernel pull --force    update the default kernel`,
	}
	a.kernels().add(a, c, "rm", "delete")
	return c
}

func (a *app) kernels() stored[api.Kernel] {
	return stored[api.Kernel]{
		noun:    "kernel",
		one:     "a kernel",
		list:    (*client.Client).Kernels,
		get:     (*client.Client).Kernel,
		remove:  (*client.Client).DeleteKernel,
		outcome: func(k api.Kernel) answer.Outcome { return answer.Outcome{Kernel: &k} },
		catalog: recipe.Kernels,
		pull:    a.pullKernel,
		initial: recipe.DefaultKernel,
		line:    func(k api.Kernel) string { return k.Name + " " + k.Release },
		header:  "NAME RELEASE SIZE VMS CREATED",
		row: func(k api.Kernel) []string {
			return []string{k.Name, k.Release, answer.Bytes(k.Bytes), fmt.Sprint(len(k.Machines)), answer.Ago(time.Now(), k.Created)}
		},
		show: func(w io.Writer, k api.Kernel) {
			fmt.Fprintf(w, "name     %s\nrelease  %s\nid       %s\nsource   %s\nsize     %s\ncreated  %s\nVMs      %s\n",
				k.Name, k.Release, k.ID, k.Source, answer.Bytes(k.Bytes), k.Created.Local().Format(time.RFC3339), answer.List(k.Machines))
		},
	}
}

func (a *app) pullKernel(ctx context.Context, d *client.Client, name string, force bool) (api.Kernel, error) {
	r, err := recipe.Kernel(name)
	if err != nil {
		return api.Kernel{}, err
	}
	p := a.progress(ctx, "kernel "+name)
	defer p.End()
	return d.PullKernel(ctx, name, api.PullRequest{Force: force}, a.builder(r, p), p.Event)
}
