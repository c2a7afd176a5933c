//go:build lab

package roothelper

import (
	"net/netip"
	"os"
	"sync"
	"testing"

	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/rootd/points"
)

// The helper is killed at each of its points. Whatever it leaves, release
// removes it, and the same request then succeeds; a VM that was adopted or not
// yet ended lives on.
func TestKillAtEveryPoint(t *testing.T) {
	c := install(t)
	for verb, list := range points.All() {
		for _, point := range list {
			t.Run(point, func(t *testing.T) { killAt(t, c, verb, point) })
		}
	}
}

func killAt(t *testing.T, c rootclient.Client, verb, point string) {
	l := small
	l.Addr = netip.MustParseAddr("172.16.0.7")
	files := ends(t, vm)
	var before *rootclient.VM
	if verb != "launch" {
		v, err := tryLaunch(t, c, vm, l, files...)
		must(t, err)
		before = v
	}
	arm(t, point)
	var err error
	switch verb {
	case "launch":
		_, err = tryLaunch(t, c, vm, l, files...)
	case "adopt":
		_, err = c.Adopt(t.Context(), vm)
	case "policy":
		err = c.Policy(t.Context(), vm, false)
	case "release":
		err = c.Release(t.Context(), vm)
	}
	if err == nil || code(err) != "" {
		t.Errorf("%s with the helper killed at %s = %v, want no answer", verb, point, err)
	}
	arm(t, "")
	held, err := c.Census(t.Context())
	must(t, err)
	if want := point != "release.removed"; len(held) == 1 != want {
		t.Errorf("census after it: %+v, want one: %v", held, want)
	}
	if verb == "policy" {
		must(t, c.Policy(t.Context(), vm, true))
	}
	if verb == "adopt" || verb == "policy" {
		w, err := c.Adopt(t.Context(), vm)
		must(t, err)
		defer closeVM(w)
		if w.VM != before.VM {
			t.Errorf("adopted %+v, launched %+v", w.VM, before.VM)
		}
	}
	must(t, c.Release(t.Context(), vm))
	if left := leftovers(t.Context(), c); left != "" {
		t.Errorf("after release: %s", left)
	}
	if _, err := tryLaunch(t, c, vm, l, files...); err != nil {
		t.Errorf("launch after it = %v", err)
	}
	must(t, c.Release(t.Context(), vm))
}

// Those launched at once get a uid each; of three for one id, one gets it.
func TestLaunchesAtOnce(t *testing.T) {
	c := install(t)
	var mu sync.Mutex
	var wg sync.WaitGroup
	uids, refused := map[uint32]string{}, 0
	ids := []string{"aa0000000000", "aa0000000001", "ab0000000000", "ac0000000000", vm, vm, vm}
	all := make([][]*os.File, len(ids))
	for i, id := range ids {
		all[i] = ends(t, id)
	}
	for i, id := range ids {
		wg.Go(func() {
			v, err := tryLaunch(t, c, id, small, all[i]...)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && uids[v.UID] != "":
				t.Errorf("%s and %s have one uid", id, uids[v.UID])
			case err == nil:
				uids[v.UID] = id
			case code(err) == rootapi.Exists && id == vm:
				refused++
			default:
				t.Errorf("launching %s = %v", id, err)
			}
		})
	}
	wg.Wait()
	if len(uids) != 5 || refused != 2 {
		t.Errorf("%d launched and %d refused, want 5 and 2", len(uids), refused)
	}
}
