package guestinit_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/agentapi"
	"banger/internal/handover"
	"banger/internal/mux"
)

func identity() *agentapi.Identity {
	return &agentapi.Identity{
		Hostname: "box", MachineID: "0123456789abcdef0123456789abcdef",
		HostKey: "-----BEGIN OPENSSH PRIVATE KEY-----\n", HostKeyPub: "ssh-ed25519 AAAA box",
		AuthorizedKeys: []string{"ssh-ed25519 BBBB me"}, Seed: make([]byte, 64), UnixNano: time.Now().UnixNano(),
		Files: []agentapi.File{{Path: "/etc/banger-file", Mode: 0o640, Data: []byte("hi\n")}},
	}
}

// identified has the guest take its identity, and returns its events.
func (v *vm) identified() <-chan agentapi.Event {
	v.t.Helper()
	return v.identifiedAs(identity())
}

func (v *vm) identifiedAs(id *agentapi.Identity) <-chan agentapi.Event {
	v.t.Helper()
	events := v.events()
	st, _, _ := v.call(agentapi.Request{Op: agentapi.OpIdentify, Identity: id})
	_ = st.Close()
	v.await(events, agentapi.EventAgent)
	return events
}

// shutDown asks for a shutdown and wants a clean end of this kind.
func (v *vm) shutDown(events <-chan agentapi.Event, reboot bool) {
	v.t.Helper()
	st, _, _ := v.call(agentapi.Request{Op: agentapi.OpShutdown, Shutdown: &agentapi.Shutdown{Reboot: reboot}})
	_ = st.Close()
	kind := "poweroff"
	if reboot {
		kind = "reboot"
	}
	v.ended(events, kind)
}

// ended wants the guest to end cleanly, in this way.
func (v *vm) ended(events <-chan agentapi.Event, kind string) {
	v.t.Helper()
	asked := time.Now()
	e := v.await(events, agentapi.EventEnding)
	if e.Text == "" { // said again when it is known
		e = v.await(events, agentapi.EventEnding)
	}
	if e.Text != kind {
		v.t.Errorf("the shutdown is a %q, want %q", e.Text, kind)
	}
	v.await(events, agentapi.EventFrozen)
	v.awaitExit()
	v.t.Logf("the end took %d ms", time.Since(asked).Milliseconds())
	v.fsck()
}

// identityIs wants the guest to be who identity says.
func (v *vm) identityIs() {
	v.t.Helper()
	v.wants("hostname; cat /etc/hostname /etc/machine-id", "box\nbox\n0123456789abcdef0123456789abcdef")
	v.wants("grep -c box /etc/hosts", "1")
	v.wants("cat /root/.ssh/authorized_keys", "ssh-ed25519 BBBB me")
	v.wants("stat -c %a /root /root/.ssh /root/.ssh/authorized_keys /run/banger/ssh/host_key /etc/banger-file | tr '\\n' ' '", "700 700 600 600 640")
	v.wants("date +%Y", time.Now().UTC().Format("2006"))
}

func TestImageWithoutAnInit(t *testing.T) {
	t.Parallel()
	v := newVM(t, "")
	start(t, v, 1, 256)
	t.Logf("%6d ms: hello answered", time.Since(v.started).Milliseconds())
	h := v.hello()
	if h.Init != handover.InitNone || h.Identified || h.Version != agentapi.Version {
		t.Errorf("hello = %+v, want init none, not identified", h)
	}
	events := v.identified()
	v.wants("echo hi", "hi")
	v.await(events, agentapi.EventHandover)
	v.identityIs()
	v.wants("cat "+handover.Expedite, "0")
	v.wants("cat /proc/1/comm; mount | grep -c ' on / type overlay'; df -k / | awk 'END { print ($2 > 900000) }'", "init\n1\n1")
	v.wants("kill 1; kill -HUP 1; kill -INT 1; kill -QUIT 1; kill -ABRT 1; sleep 1; cat /proc/1/comm", "init") // as with any init
	v.wants("ping -c1 -W5 127.0.0.1 >/dev/null && echo up", "up")
	v.wants("echo a > /root/kept; echo b > /etc/kept; mount | grep -c ' on /root type ext4'", "1")
	v.shutDown(events, false)

	// The same disk again: what was written is there, the identity once.
	start(t, v, 1, 256)
	events = v.identified()
	v.identityIs()
	v.wants("cat /root/kept /etc/kept", "a\nb")
	v.shutDown(events, true)
}

// killAgent ends the agent and begins a session with the one after it.
func (v *vm) killAgent() {
	v.t.Helper()
	st, _, _ := v.call(agentapi.Request{Op: agentapi.OpExec, Exec: &agentapi.Exec{Argv: []string{
		"/bin/sh", "-c", "for p in /proc/[0-9]*; do if grep -q ^@banger-agent $p/cmdline; then kill -9 ${p#/proc/}; fi; done"}}})
	defer func() { _ = st.Close() }()
	select {
	case <-v.session.Done():
	case <-v.within(bootDeadline).Done():
		v.t.Fatal("the session does not end with its agent")
	}
	v.redial()
}

// redial begins a session on a new connection, as a new companion would.
func (v *vm) redial() {
	v.t.Helper()
	_ = v.session.Close()
	conn, err := net.Dial("unix", v.channel)
	if err == nil {
		v.conn = conn
		v.session, err = mux.Dial(v.within(bootDeadline), conn)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = v.session.Close() })
}

// TestDefaultImage boots the image that most people use: systemd, Docker, sshd.
func TestDefaultImage(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "image")
	makeImage(t, defaultImage(t), base)
	v := newVM(t, base)
	start(t, v, 2, 1024)
	t.Logf("%6d ms: hello answered", time.Since(v.started).Milliseconds())
	events := v.identified()
	v.await(events, agentapi.EventSockets)
	v.identityIs()
	v.await(events, agentapi.EventBoot)
	v.wants("systemctl is-system-running --wait", "running")
	v.wants("ls /etc/ssh | grep -c ssh_host; cat /etc/ssh/ssh_host_ed25519_key.pub", "2\nssh-ed25519 AAAA box")
	v.wants("systemctl is-active docker.service; systemctl is-active docker.socket ssh.socket; findmnt -no FSTYPE /var/lib/docker", "inactive\nactive\nactive\next4")
	v.wants("cat "+handover.Expedite, "0")
	v.wants("systemctl is-active dbus.service systemd-logind.service; loginctl list-sessions --no-legend; systemctl is-active dbus.service systemd-logind.service",
		"inactive\ninactive\nactive\nactive")
	v.wants("runuser -u nobody -- id -un; stat -c %a /dev/mqueue; findmnt -no FSTYPE /dev/mqueue; test -e /run/nologin || echo open", "nobody\n1777\nmqueue\nopen")
	v.wants("for i in 1 2 3 4 5 6 7 8 9; do ls /var/log/journal/*/system.journal >/dev/null 2>&1 && break; sleep 1; done; journalctl -b -u docker.socket | grep -c Listening; journalctl -b --file /var/log/journal/*/system.journal | grep -c 'Linux version'; systemctl list-units --failed --no-legend | wc -l", "1\n1\n0")
	v.killAgent() // its standby takes over
	events = v.events()
	v.await(events, agentapi.EventBoot)
	v.wants("echo a > /root/kept", "")
	v.run("systemctl", "reboot")
	v.ended(events, "reboot")

	// The same disk again, ended while it boots.
	start(t, v, 2, 1024)
	events = v.identified()
	v.wants("cat /root/kept", "a")
	v.await(events, agentapi.EventHandover)
	v.shutDown(events, false)
}

// TestReconnects cuts the channel of a real guest while it is full, again and
// again: each new session must begin, and work.
func TestReconnects(t *testing.T) {
	t.Parallel()
	v := newVM(t, "")
	start(t, v, 1, 256)
	events := v.identified()
	v.await(events, agentapi.EventHandover)
	var longest time.Duration
	for i := range 40 {
		st, c, _ := v.call(agentapi.Request{Op: agentapi.OpExec, Exec: &agentapi.Exec{Argv: []string{"cat", "/dev/zero"}}})
		read := make(chan struct{})
		go func() {
			defer close(read)
			defer func() { _ = st.Close() }()
			for n := 0; ; n++ {
				if _, _, err := c.Read(); err != nil {
					return
				}
				if n == 5+i%7*10 {
					_ = v.conn.Close() // in the middle of it all
				}
			}
		}()
		<-read
		began := time.Now()
		v.redial()
		v.wants("echo $((6*7))", "42")
		longest = max(longest, time.Since(began))
	}
	t.Logf("the longest reconnect with a command took %d ms", longest.Milliseconds())

	// An agent that dies is replaced, and whoever comes hears everything again.
	v.killAgent()
	events = v.events()
	v.await(events, agentapi.EventAgent)
	if h := v.hello(); !h.Identified || h.Init != handover.InitNone {
		t.Errorf("hello of the new agent = %+v, want identified, init none", h)
	}
	v.wants("hostname; (sleep 0 &); ps | grep -c '[Z] ' || true", "box\n0")
	v.shutDown(events, false)
}
