package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/internal/sshconf"
	"banger/internal/usage"
)

// sshConfigReply is the JSON of `ssh-config`.
type sshConfigReply struct {
	File      string `json:"file"`    // what is to be included
	Include   string `json:"include"` // the line
	Installed bool   `json:"installed"`
	Changed   bool   `json:"changed"`
}

func (a *app) sshConfig() *cobra.Command {
	var install, uninstall bool
	c := &cobra.Command{
		Use:   "ssh-config",
		Short: "make `ssh NAME.vm` work from any terminal",
		Long: `ssh-config writes a file that makes "ssh NAME.vm" reach VMs through banger, with
its key and known host keys, and prints the line that includes it in your own
configuration. --install puts that line into ~/.ssh/config, in a marked block;
--uninstall takes it out again. Without either, your configuration is not
touched.`,
		Args: usage.Args(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if install && uninstall {
				return usage.Error("banger ssh-config --install", "--install and --uninstall are opposites")
			}
			if err := a.load(); err != nil {
				return err
			}
			home, err := os.UserHomeDir()
			if err != nil {
				return fmt.Errorf("finding the home directory: %w", err)
			}
			r := sshConfigReply{File: filepath.Join(a.layout.Config, "ssh_config")}
			r.Include = sshconf.IncludeLine(r.File)
			switch {
			case uninstall:
				if r.Changed, err = sshconf.Uninstall(home); err != nil {
					return err
				}
				if err := os.Remove(r.File); err != nil && !os.IsNotExist(err) {
					return fmt.Errorf("removing %s: %w", r.File, err)
				}
			default:
				if err := a.writeStanza(r.File); err != nil {
					return err
				}
				if install {
					if r.Changed, err = sshconf.Install(home, r.File); err != nil {
						return err
					}
				}
			}
			r.Installed = sshconf.Included(home, r.File)
			return a.print(r, func(w io.Writer) { sshConfigText(w, r, install, uninstall) })
		},
	}
	c.Flags().BoolVar(&install, "install", false, "include it in ~/.ssh/config")
	c.Flags().BoolVar(&uninstall, "uninstall", false, "take it out of ~/.ssh/config")
	return c
}

func sshConfigText(w io.Writer, r sshConfigReply, install, uninstall bool) {
	switch {
	case install && r.Changed:
		fmt.Fprintln(w, "~/.ssh/config includes it now; try: ssh NAME.vm")
	case install:
		fmt.Fprintln(w, "~/.ssh/config includes it already")
	case uninstall && r.Changed:
		fmt.Fprintln(w, "~/.ssh/config is as it was")
	case uninstall:
		fmt.Fprintln(w, "~/.ssh/config has no block of banger's")
	default:
		fmt.Fprintln(w, r.Include)
	}
}

// writeStanza writes the file that is included.
func (a *app) writeStanza(path string) error {
	if _, err := a.publicKey(); err != nil {
		return err
	}
	key, err := a.keyPath()
	if err != nil {
		return err
	}
	return sshconf.WriteStanza(path, a.Self, a.layout.KnownHosts, key)
}
