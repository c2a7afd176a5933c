package systemctl

import "testing"

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
