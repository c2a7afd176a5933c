// Package usage is the form of a command line: the help that all commands share,
// what is said of arguments that they do not take, and the hint after it.
//
// It knows cobra and no command of banger's.
package usage

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"banger/internal/api"
)

// usageTemplate is what follows the description in every help.
const usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}{{if .Aliases}}

Also called: {{range $i, $a := .Aliases}}{{if $i}}, {{end}}{{$a}}{{end}}{{end}}{{if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}}  {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Global flags:
{{.InheritedFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

More: {{.CommandPath}} COMMAND --help{{end}}
`

// Dress gives the tree of commands what all of them share: the form of their
// help, and a refusal of what they do not know.
func Dress(root *cobra.Command) {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(&cobra.Command{
		Use:   "help [COMMAND...]",
		Short: "explain a command",
		ValidArgsFunction: func(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			if c, _, err := root.Find(given); err == nil {
				for _, sub := range c.Commands() {
					if sub.IsAvailableCommand() {
						names = append(names, sub.Name()+"\t"+sub.Short)
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		Args: func(cmd *cobra.Command, given []string) error {
			if c, rest, err := root.Find(given); err != nil || len(rest) > 0 && c.HasSubCommands() {
				return unknownCommand(c, rest)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, given []string) error {
			c, _, err := root.Find(given)
			if err != nil {
				return err
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	})
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	dressAll(root)
	noFiles(root)
}

// noFiles ends the shells' habit of offering files where nothing else is known:
// no argument and no flag is a file but where the command says so.
func noFiles(c *cobra.Command) {
	for _, sub := range c.Commands() {
		noFiles(sub)
	}
	if c.ValidArgsFunction == nil && !c.HasSubCommands() {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if _, known := c.GetFlagCompletionFunc(f.Name); !known && f.NoOptDefVal == "" {
			Complete(c, f.Name, cobra.NoFileCompletions)
		}
	})
}

// dressAll goes through the tree. What cobra makes by itself, such as completion,
// gets words in our voice.
func dressAll(c *cobra.Command) {
	for _, sub := range c.Commands() {
		dressAll(sub)
	}
	c.DisableFlagsInUseLine = true
	c.SuggestionsMinimumDistance = 2
	if c.Name() == "completion" {
		c.Short = "print a completion script for bash, zsh, fish or powershell"
		c.Long = `Completion knows commands, flags, and the names of VMs, images and kernels that
there are at the moment.

  banger completion bash | sudo tee /etc/bash_completion.d/banger
  banger completion zsh > ~/.zfunc/_banger      with ~/.zfunc in fpath
  banger completion fish > ~/.config/fish/completions/banger.fish`
	}
	if c.HasParent() && c.Parent().Name() == "completion" {
		c.Short, c.Args = "print the script for "+c.Name(), Args(0, 0, "no arguments")
		c.Long = ""
		if c.Name() == "bash" {
			c.RunE = func(cmd *cobra.Command, _ []string) error {
				plain, err := cmd.Flags().GetBool("no-descriptions")
				return errors.Join(err, bashScript(cmd.Root(), !plain))
			}
		}
	}
	if c.Run != nil || c.RunE != nil || !c.HasSubCommands() {
		return
	}
	// Cobra alone would print help and succeed.
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, given []string) error {
		if len(given) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, given)
	}
}

// unknownCommand refuses what a group does not know, with the nearest name.
func unknownCommand(group *cobra.Command, given []string) error {
	hint := group.CommandPath() + " --help"
	if near := group.SuggestionsFor(given[0]); len(near) > 0 {
		best := slices.MinFunc(near, func(a, b string) int { return cmp.Compare(distance(given[0], a), distance(given[0], b)) })
		hint = group.CommandPath() + " " + best
	}
	return Error(hint, "%s has no command %q", name(group), given[0])
}

// distance is how many letters to put in, leave out or change between words
// (Levenshtein): the hint is to be the word that was meant.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := corner
			if a[i] != b[j] {
				change++
			}
			corner = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Error is an error of the command line itself; hint is what to type instead.
func Error(hint, format string, args ...any) error {
	return &api.Error{Code: api.Invalid, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// flagError says what is wrong with a flag in words rather than in the terms of
// the parser.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	hint := cmd.CommandPath() + " --help"
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		f := bad.GetFlag()
		why := bad.Unwrap().Error()
		switch f.Value.Type() {
		case "int":
			why = fmt.Sprintf("%q is not a whole number", bad.GetValue())
		case "bool":
			why = fmt.Sprintf("%q is neither true nor false", bad.GetValue())
		case "duration":
			why = fmt.Sprintf("%q is not a time such as 30s or 2m", bad.GetValue())
		}
		return Error(hint, "--%s: %s", f.Name, why)
	}
	if strings.Contains(cmd.Use, "-- ") { // the flag may be meant for the command in the guest
		hint = cmd.UseLine()
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if near := nearFlag(cmd, unknown.GetSpecifiedName()); near != "" {
			hint = cmd.CommandPath() + " --" + near
		}
	}
	return Error(hint, "%v", err)
}

// nearFlag is the flag that was probably meant, or "".
func nearFlag(cmd *cobra.Command, given string) (near string) {
	best := cmd.SuggestionsMinimumDistance + 1
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := distance(given, f.Name); d < best && d < len(given)-1 {
			near, best = f.Name, d
		}
	})
	return near
}

// name is how messages call a command: "vm show".
func name(c *cobra.Command) string { return strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" ") }

// Args checks how many positional arguments there are before "--".
func Args(min, max int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		n := len(given)
		if d := cmd.ArgsLenAtDash(); d >= 0 {
			n = d
		}
		switch {
		case n < min:
			return Error(cmd.UseLine(), "%s needs %s", name(cmd), what)
		case max >= 0 && n > max:
			return Error(cmd.UseLine(), "%s takes %s, and %q is one too many", name(cmd), what, given[max])
		}
		return nil
	}
}

// Split separates positional arguments from the command after "--".
func Split(cmd *cobra.Command, given []string) (positional, command []string) {
	d := cmd.ArgsLenAtDash()
	if d < 0 {
		return given, nil
	}
	return given[:d], given[d:]
}

// Values are what a flag takes, for completion.
func Values(c *cobra.Command, flag string, values ...string) {
	Complete(c, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// Complete completes a flag.
func Complete(c *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag is not there: a bug that every start would meet
	}
}
