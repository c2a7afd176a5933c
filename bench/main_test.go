package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	all, err := choose("")
	if err != nil || len(all) != len(rows()) {
		t.Errorf("choose(\"\") = %d rows, %v, want all %d", len(all), err, len(rows()))
	}
	some, err := choose("version,cold")
	if err != nil || len(some) != 2 || some[0].name != "cold" || some[1].name != "version" {
		t.Errorf("choose(\"version,cold\") = %v, %v, want cold and version in the order of the table", some, err)
	}
	if _, err := choose("cold,colder"); err == nil || !strings.Contains(err.Error(), `"colder"; there are cold, `) {
		t.Errorf("choosing an unknown row: %v, want its name and the names there are", err)
	}
}

func TestRowsAreSound(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rows() {
		switch {
		case seen[r.name] || r.name == "" || strings.ContainsAny(r.name, ", "):
			t.Errorf("row %q: its name is taken, or cannot be given to -only", r.name)
		case r.measure == nil || r.what == "":
			t.Errorf("row %s: it measures nothing", r.name)
		case r.goal > r.bar:
			t.Errorf("row %s: the goal %v is easier than the bar %v", r.name, r.goal, r.bar)
		}
		seen[r.name] = true
	}
}

func TestLackingNamesWhatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	missing := lacking(filepath.Join(dir, "banger"), []row{{needs: []string{"strace"}}, {needs: []string{"strace", "ssh"}}})
	for _, want := range []string{"the program qemu-system-x86_64", "the program ssh", filepath.Join(dir, "bangerd")} {
		if !slices.Contains(missing, want) {
			t.Errorf("lacking() = %q, want %q among them", missing, want)
		}
	}
	if n := strings.Count(strings.Join(missing, "|"), "strace"); n != 1 {
		t.Errorf("strace is named %d times, want once", n)
	}
}

func TestAllocatedLeavesHolesOut(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	got, err := allocated(dir)
	if err != nil || got < 64<<10 || got > 1<<20 {
		t.Errorf("allocated = %d, %v, want about 64 KiB of the 1 GiB", got, err)
	}
}

func TestTextIsTheSameEachTimeAndCompressible(t *testing.T) {
	write := func() []byte {
		r := rand.New(rand.NewPCG(1, 2))
		return text(r, vocabulary(r), 10_000)
	}
	a, b := write(), write()
	if !bytes.Equal(a, b) || len(a) != 10_000 {
		t.Errorf("two texts of %d and %d bytes differ, want the same 10,000 bytes", len(a), len(b))
	}
	if words := len(bytes.Fields(a)); words < 1000 || bytes.Count(a, []byte("\n")) < 50 {
		t.Errorf("%d words in %d lines do not look like text", words, bytes.Count(a, []byte("\n")))
	}
}
