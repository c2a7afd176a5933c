package sshconf_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/api"
	"banger/internal/sshconf"
	"banger/internal/testneed"
)

func TestEnsureKeyMakesOneKeyHoweverManyRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ssh", "id_ed25519")
	lines := make([]string, 20)
	var wg sync.WaitGroup
	for i := range lines {
		wg.Go(func() {
			var err error
			if lines[i], err = sshconf.EnsureKey(path, false); err != nil {
				t.Errorf("EnsureKey: %v", err)
			}
		})
	}
	wg.Wait()
	for _, l := range lines {
		if l != lines[0] || !strings.HasPrefix(l, "ssh-ed25519 ") {
			t.Fatalf("EnsureKey gave %q and %q, want one ed25519 key", lines[0], l)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v, %v; want 0600", st.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 {
		t.Errorf("%d files beside the key, %v; want the key and its .pub", len(entries), err)
	}
	out, err := exec.CommandContext(t.Context(), testneed.Tool(t, "ssh-keygen"), "-y", "-f", path).Output()
	if err != nil || !strings.HasPrefix(strings.TrimSpace(string(out)), lines[0]) {
		t.Errorf("ssh-keygen -y says %q, %v; want %q", out, err, lines[0])
	}
}

func TestEnsureKeyOfTheUser(t *testing.T) {
	keygen := testneed.Tool(t, "ssh-keygen")
	dir := t.TempDir()
	if _, err := sshconf.EnsureKey(filepath.Join(dir, "none"), true); api.CodeOf(err) != api.Missing {
		t.Errorf("EnsureKey of a missing key of the user's: %v, want missing", err)
	}
	for _, pass := range []string{"", "secret words"} {
		path := filepath.Join(dir, "id"+fmt.Sprint(len(pass)))
		if out, err := exec.CommandContext(t.Context(), keygen, "-q", "-t", "ed25519", "-N", pass, "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
		pub, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		got, err := sshconf.EnsureKey(path, true)
		if err != nil || !strings.HasPrefix(string(pub), got) {
			t.Errorf("EnsureKey with passphrase %q = %q, %v; want the beginning of %q", pass, got, err, pub)
		}
	}
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sshconf.EnsureKey(bad, true); api.CodeOf(err) != api.Invalid {
		t.Errorf("EnsureKey of nonsense: %v, want invalid", err)
	}
}

func TestKnownHosts(t *testing.T) {
	k := sshconf.KnownHosts{Path: filepath.Join(t.TempDir(), "known_hosts")}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := k.Put(fmt.Sprintf("vm%d", i), "ssh-ed25519 AAAA"+fmt.Sprint(i)); err != nil {
				t.Errorf("Put: %v", err)
			}
		})
	}
	wg.Wait()
	if err := k.Put("vm7", "ssh-ed25519 BBBB\n"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(k.Path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 50 {
		t.Errorf("%d lines after 50 VMs, one of them twice; want 50", n)
	}
	if !strings.Contains(string(text), "vm7.vm ssh-ed25519 BBBB\n") || strings.Contains(string(text), "AAAA7\n") {
		t.Errorf("the key of vm7 was not replaced:\n%s", text)
	}
	for i := range 50 {
		if err := k.Remove(fmt.Sprintf("vm%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if text, err = os.ReadFile(k.Path); err != nil || len(text) != 0 {
		t.Errorf("after all were removed: %q, %v; want nothing", text, err)
	}
}

func TestInstallIsUndoneByteForByte(t *testing.T) {
	for name, before := range map[string][]byte{
		"no file":          nil,
		"an empty file":    {},
		"plain":            []byte("Host a\n    User b\n"),
		"no final newline": []byte("Host a\n    User b"),
		"CRLF":             []byte("Host a\r\n    User b\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			path := filepath.Join(home, ".ssh", "config")
			if before != nil {
				write(t, path, before, 0o640)
			}
			for i, want := range []bool{true, false} {
				if changed, err := sshconf.Install(home, "/x y/ssh_config"); err != nil || changed != want {
					t.Fatalf("Install #%d = %v, %v; want %v", i+1, changed, err, want)
				}
			}
			during, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(during), `Include "/x y/ssh_config"`) || !strings.HasSuffix(string(during), string(before)) {
				t.Errorf("installed: %q, %v", during, err)
			}
			if changed, err := sshconf.Uninstall(home); err != nil || !changed {
				t.Fatalf("Uninstall = %v, %v", changed, err)
			}
			after, err := os.ReadFile(path)
			if before == nil {
				if !os.IsNotExist(err) {
					t.Errorf("after Uninstall: %q, %v; want no file", after, err)
				}
				return
			}
			if string(after) != string(before) {
				t.Errorf("after Uninstall: %q, want %q", after, before)
			}
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v; want 0640", st.Mode(), err)
			}
		})
	}
}

func TestUninstallMakesNothing(t *testing.T) {
	home := t.TempDir()
	if changed, err := sshconf.Uninstall(home); err != nil || changed {
		t.Errorf("Uninstall = %v, %v; want false and no error", changed, err)
	}
	if made, err := os.ReadDir(home); err != nil || len(made) != 0 {
		t.Errorf("Uninstall made %v, %v", made, err)
	}
}

func TestInstallFollowsLinksWithinTheHomeOnly(t *testing.T) {
	home, elsewhere := t.TempDir(), t.TempDir()
	path := filepath.Join(home, ".ssh", "config")
	inside, outside := filepath.Join(home, "dotfiles", "ssh"), filepath.Join(elsewhere, "ssh")
	write(t, inside, []byte("Host a\n"), 0o600)
	write(t, outside, []byte("Host a\n"), 0o600)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(inside, path); err != nil {
		t.Fatal(err)
	}
	if _, err := sshconf.Install(home, "/x"); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v, %v", st.Mode(), err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, path); err != nil {
		t.Fatal(err)
	}
	if _, err := sshconf.Install(home, "/x"); api.CodeOf(err) != api.Denied {
		t.Errorf("Install through a link out of the home: %v, want denied", err)
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "Host a\n" {
		t.Errorf("the file outside was changed: %q, %v", text, err)
	}
}

func TestUnfinishedBlockIsRefused(t *testing.T) {
	home := t.TempDir()
	text := []byte("# >>> banger >>>\nInclude /x\nHost mine\n")
	write(t, filepath.Join(home, ".ssh", "config"), text, 0o600)
	if _, err := sshconf.Uninstall(home); api.CodeOf(err) != api.Invalid {
		t.Errorf("Uninstall of a block without an end: %v, want invalid", err)
	}
}

// TestSSHUnderstands asks the real ssh what it makes of our options.
func TestSSHUnderstands(t *testing.T) {
	ssh := testneed.Tool(t, "ssh")
	args := sshconf.Args(sshconf.Target{Name: "web", KnownHosts: "/a b/known", Key: "/k%x/id", ProxyCommand: `'/b in/banger' 100% x`})
	out, err := exec.CommandContext(t.Context(), ssh, append(append([]string{"-G"}, args...), "root@web.vm")...).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh -G: %v\n%s", err, out)
	}
	apos, err := exec.CommandContext(t.Context(), ssh, append(append([]string{"-G"}, sshconf.Args(sshconf.Target{Name: "web", KnownHosts: "/o'brien/#1/known", Key: "/o'brien/id", ProxyCommand: "true"})...), "web.vm")...).CombinedOutput()
	if err != nil || !strings.Contains(string(apos), "identityfile /o'brien/id\n") {
		t.Errorf("ssh -G with a quote in its paths: %v\n%s", err, apos)
	}
	for _, want := range []string{"hostkeyalias web.vm", "stricthostkeychecking true", "identityfile /k%%x/id", "userknownhostsfile \"/a b/known\"", "forwardagent no", "user root", "loglevel ERROR"} {
		if !strings.Contains(string(out), want+"\n") && !strings.Contains(string(out), strings.ReplaceAll(want, `"`, "")+"\n") {
			t.Errorf("ssh -G does not say %q:\n%s", want, out)
		}
	}
	home := t.TempDir()
	stanza := filepath.Join(home, "stanza")
	write(t, stanza, []byte(sshconf.Stanza("/opt/it's/banger", "/a/known", "/a/key")), 0o600)
	out, err = exec.CommandContext(t.Context(), ssh, "-G", "-F", stanza, "web.vm").CombinedOutput()
	if err != nil || !strings.Contains(string(out), `proxycommand '/opt/it'\''s/banger' internal ssh-proxy`) {
		t.Errorf("ssh -G of the stanza: %v\n%s", err, out)
	}
}

// The shell that runs ProxyCommand must not read a host's name, whatever it is,
// and banger must not take it for a flag.
func TestStanzaGivesHostNamesToNobody(t *testing.T) {
	ssh := testneed.Tool(t, "ssh")
	dir := t.TempDir()
	self, heard, touched := filepath.Join(dir, "it's 100% a\\ $(false)"), filepath.Join(dir, "heard"), filepath.Join(dir, "touched")
	write(t, self, []byte("#!/bin/sh\nprintf '%s\\n' \"$@\" >'"+heard+"'\n"), 0o755)
	stanza := filepath.Join(dir, "stanza")
	write(t, stanza, []byte(sshconf.Stanza(self, filepath.Join(dir, "known"), filepath.Join(dir, "key"))), 0o600)
	for _, host := range []string{"web.vm", "$(touch$IFS" + touched + ").vm", "`touch " + touched + "`.vm", "x';touch '" + touched + "'.vm", "a b;touch " + touched + ".vm"} {
		if err := os.RemoveAll(heard); err != nil {
			t.Fatal(err)
		}
		_ = exec.CommandContext(t.Context(), ssh, "-F", stanza, "-o", "BatchMode=yes", "--", host).Run() // it never connects
		if _, err := os.Lstat(touched); err == nil {
			t.Fatalf("the shell has read %q", host)
		}
		got, err := os.ReadFile(heard)
		if want := "internal\nssh-proxy\n--\n" + host + "\n"; err == nil && string(got) != want || host == "web.vm" && err != nil {
			t.Errorf("for %q banger was called with %q, %v; want %q or not at all", host, got, err, want)
		}
	}
}

func write(t *testing.T, path string, text []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
