package size_test

import (
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/size"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want size.Bytes
	}{
		{"512", 512 * size.MiB},
		{"512M", 512 * size.MiB},
		{"4G", 4 * size.GiB},
		{"4g", 4 * size.GiB},
		{"4GB", 4 * size.GiB},
		{"4GiB", 4 * size.GiB},
		{"4gib", 4 * size.GiB},
		{"1T", size.TiB},
		{"100K", 100 * size.KiB},
		{"17B", 17},
		{"1.5G", 1536 * size.MiB},
		{"0.5", 512 * size.KiB},
		{"2.50G", 2560 * size.MiB},
		{"8388607T", 8388607 * size.TiB},
	} {
		if got, err := size.Parse(tt.in); err != nil || got != tt.want {
			t.Errorf("Parse(%q) = %d, %v; want %d", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{
		"", "G", ".", ".5G", "5.G", "1.2.3G", "-1G", "+1G", "0", "0G", "0.0M", "1X", "1GG", "1 G", " 1G", "1iB",
		"1e9", "0x10", "0.3B", "1.0000001G", "8388608T", "99999999999999999999G", "١G", "1G\n", strings.Repeat("9", 500),
	} {
		got, err := size.Parse(in)
		if err == nil || api.CodeOf(err) != api.Invalid {
			t.Errorf("Parse(%q) = %d, %v; want an invalid error", in, got, err)
		}
	}
}

func TestString(t *testing.T) {
	for _, tt := range []struct {
		in         size.Bytes
		exact, rnd string
	}{
		{0, "0B", "0B"},
		{17, "17B", "17B"},
		{size.KiB, "1KiB", "1KiB"},
		{1500, "1500B", "1.5KiB"},
		{8 * size.GiB, "8GiB", "8GiB"},
		{1536 * size.MiB, "1536MiB", "1.5GiB"},
		{size.GiB + 1, "1073741825B", "1.0GiB"},
		{1000 * size.MiB, "1000MiB", "1.0GiB"},
		{4_194_304, "4MiB", "4MiB"},
		{812_345, "812345B", "793KiB"},
	} {
		if got := tt.in.String(); got != tt.exact {
			t.Errorf("(%d).String() = %q, want %q", tt.in, got, tt.exact)
		}
		if got := tt.in.Short(); got != tt.rnd {
			t.Errorf("(%d).Short() = %q, want %q", tt.in, got, tt.rnd)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"512", "4GiB", "1.5G", "17B", "", "-1", "1.999999T", "9223372036854775807B"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := size.Parse(s)
		if err != nil {
			return
		}
		if b <= 0 {
			t.Errorf("Parse(%q) = %d, want a positive number", s, b)
		}
		if again, err := size.Parse(b.String()); err != nil || again != b {
			t.Errorf("Parse(%q) = %d, %v; want %d as before", b.String(), again, err, b)
		}
	})
}
