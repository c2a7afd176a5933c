package nft_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"banger/internal/nettest"
	"banger/internal/nft"
	"banger/internal/nft/fake"
	"banger/internal/testneed"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

var (
	prefix = netip.MustParsePrefix("172.16.0.0/24")
	pinA   = nft.Pin{Port: "bvm0000000000aa", MAC: [6]byte{2, 0xfc, 172, 16, 0, 2}, Addr: netip.MustParseAddr("172.16.0.2")}
	pinB   = nft.Pin{Port: "bvm0000000000bb", MAC: [6]byte{2, 0xfc, 172, 16, 0, 3}, Addr: netip.MustParseAddr("172.16.0.3"), Internet: true}
)

func withNAT(p nft.Pin) nft.Pin { p.Internet = true; return p }

// TestTransactions runs the same scripts through nft(8) and through the fake,
// and compares what the sets hold afterwards.
func TestTransactions(t *testing.T) {
	nettest.Need(t)
	testneed.Tool(t, "nft")
	f := &fake.Filter{}
	for _, tt := range []struct {
		name, script string
		ok           bool
		elements     int
	}{
		{"a pin without tables", nft.Set(pinA), false, 0},
		{"no pins at all", nft.Load("br-fc", prefix, nil), true, 0},
		{"a pin", nft.Set(pinA), true, 2},
		{"again", nft.Set(pinA), true, 2},
		{"with NAT", nft.Set(withNAT(pinA)), true, 3},
		{"without", nft.Set(pinA), true, 2},
		{"another", nft.Set(pinB), true, 5},
		{"unset", nft.Unset(pinA), true, 3},
		{"unset what is not there", nft.Unset(pinA), true, 3},
		{"a bad line undoes all", nft.Set(pinA) + "delete element inet banger internet { 10.0.0.1 }\n", false, 3},
		{"a set that is not there", nft.Set(pinA) + "add element inet banger nosuch { 10.0.0.1 }\n", false, 3},
		{"all anew", nft.Load("br-fc", prefix, []nft.Pin{pinA}), true, 2},
		{"a rule that refers to nothing", strings.Replace(nft.Load("br-fc", prefix, nil), "goto refuse", "goto nosuch", 1), false, 2},
		{"unload", nft.Unload, true, 0},
		{"unload nothing", nft.Unload, true, 0},
		{"both", nft.Load("br-fc", prefix, []nft.Pin{pinA, pinB}), true, 5},
		{"end", nft.Unload, true, 0},
	} {
		_, err := nft.Exec{}.Run(t.Context(), tt.script)
		_, errFake := f.Run(t.Context(), tt.script)
		if (err == nil) != tt.ok || (errFake == nil) != tt.ok {
			t.Errorf("%s: nft says %v, the fake %v; want success: %v", tt.name, err, errFake, tt.ok)
		}
		ruleset := nettest.Run(t, "nft -n list ruleset")
		got := strings.Count(ruleset, " . 172.16.0.") + strings.Count(ruleset, "{ 172.16.0.2 }") +
			strings.Count(ruleset, "{ 172.16.0.3 }")
		if got != tt.elements || len(f.Elements()) != tt.elements {
			t.Errorf("%s: nft has %d elements, the fake %v; want %d\n%s", tt.name, got, f.Elements(), tt.elements, ruleset)
		}
	}
}

// TestRules compares the number that is read from the text with the kernel's.
func TestRules(t *testing.T) {
	nettest.Need(t)
	if _, err := (nft.Exec{}).Run(t.Context(), nft.Load("br-x", prefix, nil)); err != nil {
		t.Fatal(err)
	}
	defer nettest.Run(t, "nft flush ruleset")
	for _, family := range []string{"bridge", "inet"} {
		table := nettest.Run(t, "nft -a list table "+family+" banger")
		got := 0
		for line := range strings.Lines(table) {
			if strings.HasPrefix(line, "\t\t") && strings.Contains(line, "# handle") {
				got++
			}
		}
		if want := nft.Rules(family); got != want || got < 4 {
			t.Errorf("%s: the kernel has %d rules, Rules says %d\n%s", family, got, want, table)
		}
		if strings.Contains(table, "br-fc") || strings.Contains(table, "BRIDGE") || strings.Contains(table, "PREFIX") {
			t.Errorf("names are not filled in:\n%s", table)
		}
	}
}

// foreign plays the host's own rules.
type foreign struct {
	chains  map[string]string
	scripts []string
}

func (f *foreign) Run(_ context.Context, script string) (string, error) {
	if chain, ok := strings.CutPrefix(script, "list chain ip filter "); ok {
		listing, ok := f.chains[strings.TrimSpace(chain)]
		if !ok {
			return "", errors.New("No such file or directory")
		}
		return listing, nil
	}
	f.scripts = append(f.scripts, script)
	return "", nil
}

func TestBeside(t *testing.T) {
	chain := func(policy string, rules ...string) string {
		return "table ip filter {\n\tchain X { # handle 1\n\t\ttype filter hook forward priority 0; policy " + policy + ";\n" +
			strings.Join(rules, "") + "\t}\n}\n"
	}
	in := "\t\tiifname \"br-fc\" counter packets 7 bytes 9 accept comment \"banger\" # handle 8\n"
	out := "\t\toifname \"br-fc\" counter packets 7 bytes 9 accept comment \"banger\" # handle 9\n"
	reject := "\t\tcounter packets 0 bytes 0 reject # handle 3\n"
	insert := func(chain, d string) string {
		return "insert rule ip filter " + chain + " " + d + " \"br-fc\" counter accept comment \"banger\"\n"
	}
	for _, tt := range []struct {
		name   string
		chains map[string]string
		want   []string
	}{
		{"no such rules", nil, nil},
		{"a policy of accept", map[string]string{"FORWARD": chain("accept")}, nil},
		{"ufw", map[string]string{"FORWARD": chain("drop")}, []string{insert("FORWARD", "iifname") + insert("FORWARD", "oifname")}},
		{"a reject at the end", map[string]string{"FORWARD": chain("accept", reject)}, []string{insert("FORWARD", "iifname") + insert("FORWARD", "oifname")}},
		{"Docker", map[string]string{"FORWARD": chain("drop"), "DOCKER-USER": chain("", reject)},
			[]string{insert("DOCKER-USER", "iifname") + insert("DOCKER-USER", "oifname")}},
		{"both there", map[string]string{"FORWARD": chain("drop", in, out)}, nil},
		{"one there", map[string]string{"FORWARD": chain("drop", in, reject)}, []string{insert("FORWARD", "oifname")}},
		{"of another bridge", map[string]string{"FORWARD": chain("drop", strings.ReplaceAll(in+out, "br-fc", "br-fc2"))},
			[]string{insert("FORWARD", "iifname") + insert("FORWARD", "oifname")}},
	} {
		f := &foreign{chains: tt.chains}
		if err := nft.Beside(t.Context(), f, "br-fc"); err != nil || !slices.Equal(f.scripts, tt.want) {
			t.Errorf("%s: Beside ran %q, %v; want %q", tt.name, f.scripts, err, tt.want)
		}
	}
}
