package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/session"
	"banger/internal/usage"
	"banger/internal/version"
)

// confirm asks a question with "no" as the default. Without a terminal it
// refuses: force is what to type then.
func (a *app) confirm(ctx context.Context, question, force string) error {
	if !session.IsTerminal(a.Stdin) {
		return usage.Error(force, "this asks before it deletes, and stdin is no terminal")
	}
	fmt.Fprintf(a.Stderr, "%s [y/N] ", question)
	said := make(chan string, 1)
	go func() { // a terminal's Read has no end of its own
		line, _ := bufio.NewReader(a.Stdin).ReadString('\n')
		said <- line
	}()
	var line string
	select {
	case line = <-said:
	case <-ctx.Done():
	}
	if !strings.HasSuffix(line, "\n") {
		fmt.Fprintln(a.Stderr)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return &api.Error{Code: api.Interrupted, Msg: "nothing was deleted"}
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "say what this build is",
		Args:  usage.Args(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			b := version.Get()
			return a.print(b, func(w io.Writer) {
				fmt.Fprintf(w, "version   %s\ncommit    %s\nbuilt_at  %s\ngo        %s\n", b.Version, answer.Dash(b.Commit), stamp(b), b.Go)
			})
		},
	}
}

func stamp(b version.Build) string {
	if b.Time.IsZero() {
		return "-"
	}
	return b.Time.UTC().Format("2006-01-02T15:04:05Z")
}
