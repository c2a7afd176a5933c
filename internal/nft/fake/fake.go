// Package fake is a packet filter in memory: it takes the texts that package
// nft writes, whole or not at all, and refuses what nft(8) refuses: a reference
// to a table, chain or set that is not there, and a "delete" of a missing element.
package fake

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// A Filter implements nft.Runner. The zero Filter has no tables.
type Filter struct {
	mu    sync.Mutex
	names map[string]bool // "table bridge banger", "set bridge banger arp4", "chain ..."
	elems map[string]bool // set, a space, the element
	Fail  error           // returned by the next Run, which then does nothing
	Runs  int             // transactions so far
}

// Run applies a script or returns an error and changes nothing.
func (f *Filter) Run(ctx context.Context, script string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Runs++
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := f.Fail; err != nil {
		f.Fail = nil
		return "", err
	}
	next := &Filter{names: maps.Clone(f.names), elems: maps.Clone(f.elems)}
	if next.names == nil {
		next.names, next.elems = map[string]bool{}, map[string]bool{}
	}
	table := ""
	var references []string // from rules, in force at the end of the script
	for i, line := range strings.Split(script, "\n") {
		var err error
		if table, err = next.line(table, line, &references); err != nil {
			return "", fmt.Errorf("line %d: %q: %w", i+1, line, err)
		}
	}
	for _, r := range references {
		if !next.names[r] {
			return "", fmt.Errorf("no %s", r)
		}
	}
	f.names, f.elems = next.names, next.elems
	return "", nil
}

var (
	opens   = regexp.MustCompile(`^(table \w+ \w+)( \{)?$`)
	inner   = regexp.MustCompile(`^\t(set|chain) (\w+) \{$`)
	element = regexp.MustCompile(`^(add|delete) element (\w+ \w+ \w+) \{ (.*) \}$`)
	refers  = regexp.MustCompile(`(goto|@)\s?(\w+)`)
)

// line applies one line inside table, if it is not empty, and returns the
// table that the next line is in.
func (f *Filter) line(table, line string, references *[]string) (string, error) {
	if gone, ok := strings.CutPrefix(line, "delete table "); ok {
		if !f.names["table "+gone] {
			return table, fmt.Errorf("no table %s", gone)
		}
		within := func(name string, _ bool) bool { return strings.Contains(" "+name+" ", " "+gone+" ") }
		maps.DeleteFunc(f.names, within)
		maps.DeleteFunc(f.elems, within)
		return table, nil
	}
	if m := opens.FindStringSubmatch(line); m != nil {
		if f.names[m[1]] = true; m[2] != "" {
			table = strings.TrimPrefix(m[1], "table ")
		}
		return table, nil
	}
	if m := element.FindStringSubmatch(line); m != nil {
		key := m[2] + " " + m[3]
		switch {
		case !f.names["set "+m[2]]:
			return table, fmt.Errorf("no set %s", m[2])
		case m[1] == "delete" && !f.elems[key]:
			return table, fmt.Errorf("no such element")
		case m[1] == "delete":
			delete(f.elems, key)
		default:
			f.elems[key] = true
		}
		return table, nil
	}
	code, _, _ := strings.Cut(line, "#")
	if m := inner.FindStringSubmatch(code); m != nil {
		f.names[m[1]+" "+table+" "+m[2]] = true
	}
	for _, m := range refers.FindAllStringSubmatch(code, -1) {
		*references = append(*references, map[string]string{"goto": "chain ", "@": "set "}[m[1]]+table+" "+m[2])
	}
	if line == "}" {
		table = ""
	}
	if table == "" && line != "}" && strings.TrimSpace(code) != "" {
		return table, fmt.Errorf("not understood")
	}
	return table, nil
}

// Elements lists what the sets hold, each as "FAMILY TABLE SET ELEMENT".
func (f *Filter) Elements() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.elems))
}
