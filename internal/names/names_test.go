package names_test

import (
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/names"
)

func TestCheckVM(t *testing.T) {
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"web", true},
		{"a", true},
		{"0", true},
		{"a-b--c", true},
		{strings.Repeat("x", 63), true},
		{"", false},
		{strings.Repeat("x", 64), false},
		{"-web", false},
		{"web-", false},
		{"-", false},
		{"Web", false},
		{"web.vm", false},
		{"web_1", false},
		{"wéb", false},
		{"web\n", false},
		{"../etc", false},
	} {
		err := names.CheckVM(tt.name)
		if (err == nil) != tt.ok {
			t.Errorf("CheckVM(%q) = %v, want ok = %v", tt.name, err, tt.ok)
		}
		if err != nil && (api.CodeOf(err) != api.Invalid || api.AsError(err).Hint == "") {
			t.Errorf("CheckVM(%q) = %#v, want an invalid error with a hint", tt.name, err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("CheckVM(%q): message %q has several lines", tt.name, err)
		}
	}
}

func TestCheckImage(t *testing.T) {
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"debian-bookworm", true},
		{"node_22.1", true},
		{"6.1.0-44-cloud-amd64", true},
		{"", false},
		{".", false},
		{"..", false},
		{".hidden", false},
		{"a/b", false},
		{"Debian", false},
		{"-x", false},
		{strings.Repeat("a", 129), false},
	} {
		if err := names.CheckImage(tt.name); (err == nil) != tt.ok {
			t.Errorf("CheckImage(%q) = %v, want ok = %v", tt.name, err, tt.ok)
		}
	}
}

func TestMadeUpNamesAreNames(t *testing.T) {
	seen := map[string]bool{}
	for range 2000 {
		n := names.Random()
		if err := names.CheckVM(n); err != nil {
			t.Fatalf("Random() = %q: %v", n, err)
		}
		seen[n] = true
	}
	if len(seen) < 1000 {
		t.Errorf("2000 names had only %d different ones", len(seen))
	}
}

func TestIDs(t *testing.T) {
	a, b := names.NewID(), names.NewID()
	if a == b || !names.IsID(a) || !names.IsPrefix(a) {
		t.Errorf("NewID() = %q, %q: want two different ids", a, b)
	}
	for _, tt := range []struct {
		ref  string
		want bool
	}{
		{a[:4], true},
		{a[:3], false},
		{"ABCD", false},
		{"wxyz", false},
		{a + "0", false},
	} {
		if got := names.IsPrefix(tt.ref); got != tt.want {
			t.Errorf("IsPrefix(%q) = %v, want %v", tt.ref, got, tt.want)
		}
	}
}
