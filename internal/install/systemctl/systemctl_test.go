package systemctl

import (
	"os"
	"path/filepath"
	"testing"
)

func TestParse(t *testing.T) {
	got := parse("bangerd.service", "Result=exit-code\nLoadState=loaded\nActiveState=failed\nSubState=failed\nUnitFileState=enabled\nNeedDaemonReload=yes\nOther=x=y\n")
	want := Unit{Name: "bangerd.service", Load: "loaded", Active: "failed", Sub: "failed", Enabled: "enabled", Result: "exit-code", Stale: true}
	if got != want || got.Up() {
		t.Errorf("parse() = %+v, want %+v, not up", got, want)
	}
	if u := parse("x", "LoadState=not-found\nActiveState=inactive\nUnitFileState=\n"); u.Up() || u.Load != "not-found" || u.Enabled != "" {
		t.Errorf("parse() of a unit that is not there = %+v", u)
	}
}

// A service whose file was deleted under it is not found, and goes on.
func TestGone(t *testing.T) {
	for out, want := range map[string]bool{
		"LoadState=not-found\nActiveState=inactive\n": true, "LoadState=not-found\nActiveState=failed\n": true,
		"LoadState=not-found\nActiveState=active\n": false, "LoadState=not-found\nActiveState=activating\n": false,
		"LoadState=loaded\nActiveState=inactive\n": false, "": false,
	} {
		if got := parse("x.service", out).Gone(); got != want {
			t.Errorf("Gone() after %q = %v, want %v", out, got, want)
		}
	}
}

// What an account has put before the system's own programs is not run.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"sh", "banger-none"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	for name, want := range map[string]string{"sh": "/usr/bin/sh", "banger-none": "banger-none"} {
		if got := Program(name); got != want {
			t.Errorf("Program(%q) = %q, want %q", name, got, want)
		}
	}
}
