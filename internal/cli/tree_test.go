package cli

import (
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"banger/internal/api"
)

// tree lists all commands a user can see.
func tree(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			all = append(all, tree(sub)...)
		}
	}
	return all
}

// TestTree pins the commands and their other names, in the order of the help.
func TestTree(t *testing.T) {
	want := strings.Fields(`banger
		banger_completion banger_completion_bash banger_completion_fish banger_completion_powershell banger_completion_zsh
		banger_daemon banger_daemon_logs banger_daemon_restart banger_daemon_status banger_daemon_stop
		banger_doctor banger_help
		banger_image banger_image_delete(rm) banger_image_import banger_image_list(ls) banger_image_pull banger_image_show
		banger_kernel banger_kernel_list(ls) banger_kernel_pull banger_kernel_rm(delete) banger_kernel_show
		banger_ps banger_ssh-config
		banger_system banger_system_install banger_system_restart banger_system_status banger_system_uninstall
		banger_version
		banger_vm banger_vm_cp banger_vm_create banger_vm_delete(rm) banger_vm_exec banger_vm_forward banger_vm_kill
		banger_vm_list(ls) banger_vm_logs banger_vm_prune banger_vm_restart banger_vm_run banger_vm_set banger_vm_show
		banger_vm_ssh banger_vm_start banger_vm_stop`)
	var got []string
	for _, c := range tree((&app{}).root()) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "_")
		if len(c.Aliases) > 0 {
			name += "(" + strings.Join(c.Aliases, ",") + ")"
		}
		got = append(got, name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

// TestEveryCommand holds all commands to what a user may expect of each.
func TestEveryCommand(t *testing.T) {
	root := (&app{}).root()
	for _, c := range tree(root) {
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || strings.HasPrefix(c.Short, "Generate") {
			t.Errorf("%s: Short is %q: want one of our own, without a full stop", path, c.Short)
		}
		for _, text := range []string{c.Short, c.Long, c.Example} {
			if strings.Contains(text, "TODO") || strings.Contains(text, "FIXME") {
				t.Errorf("%s: unfinished: %q", path, text)
			}
		}
		if c.HasSubCommands() && !strings.Contains(c.Long, "\n  banger ") {
			t.Errorf("%s: a group needs an example to type in its Long", path)
		}
		if c.Args == nil {
			t.Errorf("%s: no Args: what it does not take goes unnoticed", path)
		}
		if c.RunE == nil && c.Run == nil {
			t.Errorf("%s: does nothing", path)
		}
		// A name of something is completed.
		if names := strings.Contains(c.Use, "NAME") || strings.Contains(c.Use, "SOURCE"); names && c.ValidArgsFunction == nil {
			t.Errorf("%s: takes names and completes none", path)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || unicode.IsUpper(rune(f.Usage[0])) || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: usage is %q: want lower case, without a full stop", path, f.Name, f.Usage)
			}
		})
	}
}

// TestHelp: help comes without a daemon, a configuration or an error, and fits
// a terminal.
func TestHelp(t *testing.T) {
	for _, c := range tree((&app{}).root()) {
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		var stdout, stderr strings.Builder
		status := Main(t.Context(), Env{
			Args: args, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
			Getenv: func(string) string { return "/nonexistent" },
		})
		if status != 0 || stderr.Len() > 0 {
			t.Errorf("banger %v = %d, stderr %q", args, status, &stderr)
		}
		if !strings.Contains(stdout.String(), "\nUsage:\n  "+c.CommandPath()) {
			t.Errorf("banger %v has no usage:\n%s", args, &stdout)
		}
		if c.HasParent() && c.Parent().Name() == "completion" {
			continue // those texts are cobra's
		}
		for line := range strings.Lines(stdout.String()) {
			if len(line) > 81 {
				t.Errorf("banger %v: a line of %d bytes: %q", args, len(line)-1, line)
			}
		}
	}
}

// TestExitStatus: the only error that becomes a status is one that carries it.
func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{
		{nil, 0},
		{&guestExit{exitOnly(3)}, 3},
		{errors.New("anything"), 125},
		{&api.Error{Code: api.Interrupted, Msg: "x"}, 130},
		{&api.Error{Code: api.GuestLost, Msg: "x"}, 125},
	} {
		a := &app{Env: Env{Stdout: io.Discard, Stderr: io.Discard}.withDefaults()}
		if got := a.finish(t.Context(), &cobra.Command{}, c.err); got != c.status {
			t.Errorf("finish(%v) = %d, want %d", c.err, got, c.status)
		}
	}
}

// TestColour: never without a terminal.
func TestColour(t *testing.T) {
	var b strings.Builder
	a := &app{Env: Env{Stderr: &b, Getenv: func(string) string { return "" }}.withDefaults()}
	a.dim("%s", "words")
	if b.String() != "words\n" {
		t.Errorf("dim() wrote %q, want the words alone", b.String())
	}
}
