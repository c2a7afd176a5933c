package machine_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/host"
	"banger/internal/host/fakehost"
	"banger/internal/machine"
)

func on(prefix string) func(*machine.Config) {
	return func(c *machine.Config) { c.Net = &machine.Net{Prefix: netip.MustParsePrefix(prefix)} }
}

func userMode(c *machine.Config) { c.Net = nil }

func boot(id string) func(*machine.Config) { return func(c *machine.Config) { c.BootID = id } }

func yes() *bool { b := true; return &b }
func no() *bool  { return new(bool) }

func (w *world) mustGet(t *testing.T, ref string) api.Machine {
	t.Helper()
	m, err := w.x.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (w *world) mustStop(t *testing.T, ref string) {
	t.Helper()
	if _, err := w.x.Stop(t.Context(), ref, api.StopMachine{}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) mustSet(t *testing.T, ref string, req api.SetMachine) api.Machine {
	t.Helper()
	m, err := w.x.Set(t.Context(), ref, req)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// An address is a VM's from its row to its end, and the host is told of it.
func TestAddressIsKeptAndFreed(t *testing.T) {
	dir := t.TempDir()
	w := newWorldAs(t, dir, on("10.0.0.0/29"), nil)
	web := w.mustCreate(t, "web")
	db, _, err := w.create(t.Context(), api.CreateMachine{Name: "db", NoStart: true})
	if err != nil {
		t.Fatal(err)
	}
	if web.Address.String() != "10.0.0.2" || db.Address.String() != "10.0.0.3" {
		t.Errorf("addresses %v and %v, want the first two", web.Address, db.Address)
	}
	if n := w.host.Net(web.ID); n == nil || n.Addr != web.Address || n.NAT {
		t.Errorf("the host was told %+v, want the address and no NAT", n)
	}
	if a, ok := w.x.Address("web"); !ok || a != web.Address {
		t.Errorf("Address(web) = %v, %v", a, ok)
	}
	if name, ok := w.x.NameOf(web.Address); !ok || name != "web" {
		t.Errorf("NameOf(%v) = %q, %v", web.Address, name, ok)
	}
	for _, name := range []string{"db", "nobody"} {
		if a, ok := w.x.Address(name); ok {
			t.Errorf("Address(%s) = %v, want none: it does not run", name, a)
		}
	}
	if name, ok := w.x.NameOf(db.Address); ok {
		t.Errorf("NameOf(%v) = %q, want none: it does not run", db.Address, name)
	}
	w.mustStop(t, "web")
	w.stop()

	w = newWorldAs(t, dir, on("10.0.0.0/29"), nil)
	if err := w.x.Start(t.Context(), "web", api.StartMachine{}, nil); err != nil {
		t.Fatal(err)
	}
	if got := w.mustGet(t, "web").Address; got != web.Address {
		t.Errorf("after stop, restart and start the address is %v, want %v", got, web.Address)
	}
	for _, name := range []string{"c", "d", "e"} {
		w.mustCreate(t, name)
	}
	_, _, err = w.create(t.Context(), api.CreateMachine{Name: "f"})
	if api.CodeOf(err) != api.NoSpace || !strings.Contains(err.Error(), "10.0.0.0/29") || w.state("f") != "" {
		t.Errorf("Create without an address left = %v, and VM %q", err, w.state("f"))
	}
	if _, err := w.x.Delete(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if got := w.mustCreate(t, "f").Address; got != web.Address {
		t.Errorf("the new VM has %v, want %v, which was given back", got, web.Address)
	}
	w.clean(t)
}

// A VM that was not made gives its address back.
func TestFailedCreateGivesTheAddressBack(t *testing.T) {
	w := newWorldAs(t, t.TempDir(), on("10.0.0.0/30"), behave(fakehost.Behaviour{LaunchErr: errors.New("no")}))
	for range 3 { // there is one address in all
		if _, _, err := w.create(t.Context(), api.CreateMachine{Name: "web"}); err == nil || api.CodeOf(err) == api.NoSpace {
			t.Fatalf("Create = %v, want the host's error", err)
		}
	}
	w.clean(t)
}

// What a lost state file knew is found in the copies; no two VMs get one address.
func TestAddressesOutliveTheStateFile(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	a, b, c := w.mustCreate(t, "a"), w.mustCreate(t, "b"), w.mustCreate(t, "c")
	w.mustStop(t, "a")
	w.stop()
	// a's copy is an old one: it says b's address.
	path := filepath.Join(dir, "vms", a.ID, "vm.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.ReplaceAll(strings.ReplaceAll(string(text), a.Address.String(), b.Address.String()), `"record"`, `"was"`))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "state.db")); err != nil {
		t.Fatal(err)
	}

	w = newWorld(t, dir, nil)
	for _, m := range []api.Machine{b, c} {
		if got := w.mustGet(t, m.Name); got.Address != m.Address || got.State != api.Running {
			t.Errorf("%s is %s with %v, want it running with %v", m.Name, got.State, got.Address, m.Address)
		}
	}
	if err := w.x.Start(t.Context(), "a", api.StartMachine{}, nil); err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]string{}
	w.mustCreate(t, "d")
	for _, m := range w.x.List() {
		if other := seen[m.Address]; other != "" || !m.Address.IsValid() {
			t.Errorf("%s and %q have the address %v", m.Name, other, m.Address)
		}
		seen[m.Address] = m.Name
	}
}

// Another prefix, and a state of user mode: a VM gets an address when it starts.
func TestAddressOfAnotherNetwork(t *testing.T) {
	dir := t.TempDir()
	w := newWorldAs(t, dir, userMode, nil)
	if m := w.mustCreate(t, "web"); m.Address.IsValid() || m.Network != api.NetworkNone || w.host.Net(m.ID) != nil {
		t.Errorf("in user mode a VM has %v, %q, %+v; want no network", m.Address, m.Network, w.host.Net(m.ID))
	}
	w.mustStop(t, "web")
	w.stop()
	for prefix, want := range map[string]string{"10.0.0.0/24": "10.0.0.2", "10.1.0.0/24": "10.1.0.2"} {
		w = newWorldAs(t, dir, on(prefix), nil)
		if err := w.x.Start(t.Context(), "web", api.StartMachine{}, nil); err != nil {
			t.Fatal(err)
		}
		m := w.mustGet(t, "web")
		if n := w.host.Net(m.ID); m.Address.String() != want || n == nil || n.Addr != m.Address {
			t.Errorf("on %s the address is %v, and the host was told %+v", prefix, m.Address, n)
		}
		w.mustStop(t, "web")
		w.stop()
	}
}

func TestNAT(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	m, _, err := w.create(t.Context(), api.CreateMachine{Name: "web", NAT: true})
	if err != nil || !m.NAT || m.Network != api.NetworkInternet || !w.host.Net(m.ID).NAT {
		t.Fatalf("Create with NAT = %+v, %v; the host was told %+v", m, err, w.host.Net(m.ID))
	}
	told := func(doing string, want bool) {
		t.Helper()
		if got := w.mustGet(t, "web").NAT; got != want {
			t.Errorf("%s: the row says %v, want %v", doing, got, want)
		}
		if n := w.host.Net(m.ID); n != nil && n.NAT != want {
			t.Errorf("%s: the host goes by %v, want %v", doing, n.NAT, want)
		}
	}
	if got := w.mustSet(t, "web", api.SetMachine{NAT: no()}); got.Network != api.NetworkHost {
		t.Errorf("network %q, want %q", got.Network, api.NetworkHost)
	}
	told("taken while it runs", false)
	w.mustStop(t, "web")
	w.mustSet(t, "web", api.SetMachine{NAT: yes()})
	told("given while it is stopped", true)
	if err := w.x.Start(t.Context(), "web", api.StartMachine{}, nil); err != nil {
		t.Fatal(err)
	}
	told("at the next start", true)
	w.host.FailNAT(errors.New("the helper is gone"))
	if _, err := w.x.Set(t.Context(), "web", api.SetMachine{NAT: no()}); err == nil || !strings.Contains(err.Error(), "the helper is gone") {
		t.Errorf("Set that the host refuses = %v", err)
	}
	if got := w.mustGet(t, "web").NAT; !got {
		t.Error("after a refusal the row says what was refused")
	}
	w.host.FailNAT(nil)
	w.mustSet(t, "web", api.SetMachine{})
	told("before the operation after a refusal", true)
	w.host.FailNAT(errors.New("the helper is gone"))
	if _, err := w.x.Set(t.Context(), "web", api.SetMachine{NAT: no()}); err == nil {
		t.Error("Set that the host refuses = nil")
	}
	w.stop()
	w = newWorld(t, dir, nil)
	told("after a restart of the daemon", true)
	w.clean(t)
}

// A guest that may reach the internet and would find no names there is told of.
func TestNoNameServers(t *testing.T) {
	w := newWorldAs(t, t.TempDir(), on("10.0.0.0/24"), nil)
	for nat, want := range map[bool]bool{true: true, false: false} {
		_, events, err := w.create(t.Context(), api.CreateMachine{NAT: nat})
		said := slices.ContainsFunc(events, func(e api.Event) bool {
			return e.Type == api.EventNotice && strings.Contains(e.Text, "default_dns")
		})
		if err != nil || said != want {
			t.Errorf("NAT %v: %v, a word about name servers: %v, want %v", nat, err, said, want)
		}
	}
}

func TestNATNeedsANetwork(t *testing.T) {
	w := newWorldAs(t, t.TempDir(), userMode, nil)
	_, _, err := w.create(t.Context(), api.CreateMachine{Name: "web", NAT: true})
	if e := api.AsError(err); e.Code != api.Unsupported || !strings.Contains(e.Hint, "system install") || w.state("web") != "" {
		t.Errorf("Create with NAT in user mode = %v, hint %q, VM %q", err, e.Hint, w.state("web"))
	}
	w.mustCreate(t, "web")
	if _, err := w.x.Set(t.Context(), "web", api.SetMachine{NAT: yes()}); api.CodeOf(err) != api.Unsupported {
		t.Errorf("Set NAT in user mode = %v, want unsupported", err)
	}
	w.mustSet(t, "web", api.SetMachine{NAT: no()})
}

// After a restart of the host what has autostart runs, whatever it did before,
// and nothing else does. A restart of the daemon alone starts nothing.
func TestAutostart(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	ids := map[string]string{}
	for _, name := range []string{"ran", "rested", "plain", "lazy"} {
		ids[name] = w.mustCreate(t, name).ID
	}
	for _, name := range []string{"ran", "rested"} {
		if m := w.mustSet(t, name, api.SetMachine{Autostart: yes()}); !m.Autostart {
			t.Errorf("%s: %+v, want autostart", name, m)
		}
	}
	w.mustSet(t, "lazy", api.SetMachine{Autostart: yes()})
	w.mustSet(t, "lazy", api.SetMachine{Autostart: no()})
	w.mustStop(t, "rested")
	w.stop()
	settled := func(when string, want map[string]api.State) {
		t.Helper()
		for name, state := range want {
			if m := w.mustGet(t, name); state == api.Stopped && m.State != state {
				t.Errorf("%s: %s is %s, want %s", when, name, m.State, state)
			}
			w.eventually(t, name, state)
		}
		w.clean(t)
	}
	w = newWorld(t, dir, nil)
	settled("after a restart of the daemon", map[string]api.State{"ran": api.Running, "plain": api.Running, "rested": api.Stopped})
	w.stop()
	for _, name := range []string{"ran", "plain", "lazy"} {
		w.host.End(ids[name], host.Exit{Reason: "the host was restarted"})
	}

	w = newWorldAs(t, dir, boot("second"), nil)
	settled("after a restart of the host", map[string]api.State{"ran": api.Running, "rested": api.Running, "plain": api.Stopped, "lazy": api.Stopped})
	if m := w.mustGet(t, "plain"); m.Reason != "the host was restarted" {
		t.Errorf("plain is stopped because %q", m.Reason)
	}
	w.mustStop(t, "ran")
	w.stop()
	w = newWorldAs(t, dir, boot("second"), nil)
	settled("after another restart of the daemon", map[string]api.State{"ran": api.Stopped, "rested": api.Running})
}

// A start that fails after a restart of the host is said, and not repeated by
// the next daemon.
func TestAutostartThatFails(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir, nil)
	m := w.mustCreate(t, "web")
	w.mustSet(t, "web", api.SetMachine{Autostart: yes()})
	w.mustStop(t, "web")
	w.stop()
	w = newWorldAs(t, dir, boot("second"), behave(fakehost.Behaviour{LaunchErr: errors.New("no helper")}))
	// An operation waits for the start, whatever becomes of it.
	w.mustSet(t, "web", api.SetMachine{})
	if got := w.mustGet(t, "web"); got.State != api.Stopped || !strings.Contains(got.Reason, "no helper") {
		t.Errorf("VM is %s because %q, want it stopped with the reason", got.State, got.Reason)
	}
	w.stop()
	w = newWorldAs(t, dir, boot("second"), nil)
	w.mustSet(t, "web", api.SetMachine{})
	if got := w.state("web"); got != api.Stopped || w.host.Launches(m.ID) != 0 {
		t.Errorf("the next daemon has it %s after %d launches", got, w.host.Launches(m.ID))
	}
}
