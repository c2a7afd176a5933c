// Package nft writes the packet filter of the sandbox bridge: two tables as
// one text, and the transactions on their sets that a VM needs. nft(8) applies
// each text whole or not at all.
//
// It knows neither links nor who asks: what a VM may send is a [Pin]. It reads
// nothing back but other people's rules, see [Beside].
package nft

import (
	"context"
	_ "embed" // tables.nft
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
)

// The names of both tables, of the sets Arp4 and Source in the bridge table,
// and of Internet in the inet table.
const Table, Arp4, Source, Internet = "banger", "arp4", "source", "internet"

//go:embed tables.nft
var tables string

// A Pin is what one VM may send, and where to.
type Pin struct {
	Port     string // the TAP
	MAC      [6]byte
	Addr     netip.Addr
	Internet bool // may go beyond the host
}

// A Runner applies one transaction and returns what it prints.
type Runner interface {
	Run(ctx context.Context, script string) (string, error)
}

// Program is nft(8), where the helper looks for it and nowhere else.
const Program = "/usr/sbin/nft"

// Exec runs nft(8). It is the helper's only exec.
type Exec struct{}

// Run feeds script to one nft process with an environment of one line.
func (Exec) Run(ctx context.Context, script string) (string, error) {
	cmd := exec.CommandContext(ctx, Program, "-a", "-n", "-f", "-")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && len(exit.Stderr) > 0 {
		line, _, _ := strings.Cut(string(exit.Stderr), "\n")
		err = errors.New(line)
	}
	if err != nil {
		return "", fmt.Errorf("running nft: %w", err)
	}
	return string(out), nil
}

// Load is the text that puts both tables in place, with these pins and no
// others, whatever was there before.
func Load(bridge string, prefix netip.Prefix, pins []Pin) string {
	text := strings.NewReplacer("BRIDGE", bridge, "PREFIX", prefix.Masked().String()).Replace(tables)
	for _, p := range pins {
		text += Set(p)
	}
	return text
}

// Unload is the text that removes both tables, whether or not they are there.
const Unload = "table bridge banger\ndelete table bridge banger\ntable inet banger\ndelete table inet banger\n"

var rule = regexp.MustCompile(`(?m)^\t\t(ether|iifname|oifname|ip|ct|meta|counter|goto) `)

// Rules is how many rules the table of a family, "bridge" or "inet", has.
func Rules(family string) int {
	_, text, _ := strings.Cut(tables, "\ntable "+family+" banger {\n")
	text, _, _ = strings.Cut(text, "\n}\n")
	return len(rule.FindAllString(text, -1))
}

// Set is the text that pins a VM, whether or not it is pinned already.
func Set(p Pin) string {
	text := p.text("add") + p.internet("add")
	if !p.Internet {
		text += p.internet("delete")
	}
	return text
}

// Unset is the text that removes all elements of a VM, whether or not they are
// there: "delete" of a missing one would undo all, so each is added first.
func Unset(p Pin) string {
	return p.text("add") + p.internet("add") + p.text("delete") + p.internet("delete")
}

func (p Pin) text(verb string) string {
	mac := net.HardwareAddr(p.MAC[:])
	return fmt.Sprintf("%s element bridge banger arp4 { %q . %s . %s . %s }\n", verb, p.Port, mac, mac, p.Addr) +
		fmt.Sprintf("%s element bridge banger source { %q . %s . %s }\n", verb, p.Port, mac, p.Addr)
}

func (p Pin) internet(verb string) string {
	return fmt.Sprintf("%s element inet banger internet { %s }\n", verb, p.Addr)
}

// Beside lets the bridge pass the host's own forwarding rules, such as
// Docker's and ufw's with their policy "drop": an accept of ours ends our own
// chains only. The two rules open nothing, since ours still refuse. They are
// such that iptables-nft can read them back; a native "ct state" there would
// make it refuse the whole table. Beside may be called at any time: whoever owns
// those rules may have made them anew.
func Beside(ctx context.Context, r Runner, bridge string) error {
	for _, chain := range []string{"DOCKER-USER", "FORWARD"} {
		listing, err := r.Run(ctx, "list chain ip filter "+chain+"\n")
		harmless := strings.Contains(listing, "policy accept") && strings.Count(listing, "# handle") == 1
		if err != nil || harmless {
			continue
		}
		script := ""
		for _, d := range []string{"iifname", "oifname"} {
			if ours := fmt.Sprintf("%s %q counter ", d, bridge); !strings.Contains(listing, ours) {
				script += fmt.Sprintf("insert rule ip filter %s %saccept comment \"banger\"\n", chain, ours)
			}
		}
		if script != "" {
			_, err = r.Run(ctx, script)
		}
		return err
	}
	return ctx.Err()
}
