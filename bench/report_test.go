package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{0: "-", 1.8: "1.80", 0.30149: "0.301", 12.345: "12.3", 1234.5: "1234", 0.0021: "0.0021", 8: "8.00", -1.5: "-1.50"} {
		if got := number(x); got != want {
			t.Errorf("number(%v) = %q, want %q", x, got, want)
		}
	}
}

func TestReport(t *testing.T) {
	s := func(wall, cpu int) sample {
		return sample{wall: time.Duration(wall) * time.Millisecond, cpu: time.Duration(cpu) * time.Millisecond}
	}
	r := &report{Pairs: 2}
	r.add(row{name: "cold", what: "ours / theirs", bar: 1.8, goal: 1.25},
		measured{figures: figures{a: []sample{s(3000, 900), s(1500, 1100)}, b: []sample{s(1500, 500), s(1000, 700)}, note: "a note"}})
	r.add(row{name: "disk", what: "bytes", unit: "MiB", bar: 8}, measured{figures: figures{values: []float64{9, 9, 9}}})
	r.add(row{name: "list", what: "cut short", bar: 4}, measured{err: errors.New("interrupted"),
		figures: figures{a: []sample{s(30, 1), s(30, 1)}, b: []sample{s(10, 1)}}})
	r.add(row{name: "exec", what: "in vain", bar: 1}, measured{err: errors.New("no guest")})

	file := filepath.Join(t.TempDir(), "out.json")
	var table strings.Builder
	if err := r.print(&table, file); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cold 1.75 [1.62 1.88] 1.80 1.25 ok 2 2.25 [1.88 2.62] 1.00 1.25 [1.12 1.38] 0.600 1.69",
		"disk 9.00 MiB [9.00 9.00] 8.00 - missed 3",
		"list 3.00 [3.00 3.00] 4.00 - ok 1",
		"exec - - 1.00 - not measured -",
		"cold: ours / theirs a note",
		" not measured to the end: no guest",
	} {
		if !strings.Contains(strings.Join(strings.Fields(table.String()), " "), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	if err := r.failed(); err == nil || err.Error() != "measuring list: interrupted\nmeasuring exec: no guest" {
		t.Errorf("failed() = %v, want the rows that were not measured to the end", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.Rows, back.Rows); diff != "" {
		t.Errorf("the JSON says something else: want -, got +\n%s", diff)
	}
}

func TestPrintPutsTheJSONBehindTheTable(t *testing.T) {
	var out strings.Builder
	if err := (&report{}).print(&out, ""); err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(out.String(), "\n{")
	if !found || !json.Valid([]byte("{"+text)) {
		t.Errorf("no JSON behind the table:\n%s", out.String())
	}
}
