// Package remove takes a host network away for good: the inverse of all that
// package hostnet has ever made, for uninstalling. The root helper, which has no
// such verb, does not link it.
package remove

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"golang.org/x/sys/unix"

	"banger/internal/hostnet"
	"banger/internal/nft"
	"banger/internal/rtnl"
)

// Network removes VMs' TAPs, the bridge if it is ours, the filter, and our
// rules among the host's own.
func Network(ctx context.Context, n *hostnet.Network) error {
	ids, err := n.Census(ctx)
	for _, id := range ids {
		err = errors.Join(err, n.Detach(ctx, id))
	}
	_, unload := n.Nft.Run(ctx, nft.Unload)
	return errors.Join(err, links(n), unload, withdraw(ctx, n.Nft))
}

func links(n *hostnet.Network) error {
	c, err := rtnl.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.Close()
	all, err := c.Links()
	for _, bridge := range all {
		if !n.Ours(bridge) {
			continue
		}
		for _, l := range all {
			if l.Name == n.Dummy() && l.Master == bridge.Index {
				err = errors.Join(err, c.DeleteLink(l.Index))
			}
		}
		err = errors.Join(err, c.DeleteLink(bridge.Index))
	}
	return err
}

var ours = regexp.MustCompile(`accept comment "banger" # handle (\d+)`)

// withdraw takes back what nft.Beside has put into other people's rules.
func withdraw(ctx context.Context, r nft.Runner) error {
	script := ""
	for _, chain := range []string{"DOCKER-USER", "FORWARD"} {
		listing, _ := r.Run(ctx, "list chain ip filter "+chain+"\n") // no such chain: nothing to take back
		for _, m := range ours.FindAllStringSubmatch(listing, -1) {
			script += fmt.Sprintf("delete rule ip filter %s handle %s\n", chain, m[1])
		}
	}
	if script == "" {
		return ctx.Err()
	}
	_, err := r.Run(ctx, script)
	return err
}
