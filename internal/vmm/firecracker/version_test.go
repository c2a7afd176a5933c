package firecracker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/vmm/firecracker"
)

func parse(t *testing.T, s string) firecracker.Version {
	t.Helper()
	v, err := firecracker.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestParseOutput(t *testing.T) {
	for out, want := range map[string]string{
		"Firecracker v1.14.1\n": "1.14.1",
		"Firecracker v1.12.1\n\n2026-01-02T03:04:05.349220780 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0": "1.12.1",
		"2026-01-02T03:04:05 [anonymous-instance:main] Running Firecracker v9.9.9\nFirecracker v1.5.0":                                 "1.5.0",
		"Firecracker v1.15.0-dev\r\n":     "1.15.0-dev",
		"Firecracker v1.15.0-rc1+g1234\n": "1.15.0-rc1",
		"Firecracker v1.16.1+dirty":       "1.16.1",
		"  Firecracker v10.20.30  ":       "10.20.30",
		// garbage
		"":                                 "",
		"firecracker: command not found":   "",
		"Firecracker v1.14":                "",
		"Firecracker 1.14.1":               "",
		"Firecracker v1.14.1.2":            "",
		"Firecracker v1.014.1":             "",
		"Firecracker v-1.14.1":             "",
		"Firecracker v1.14.1-":             "",
		"Firecracker v1.14.1-\x1b[31m":     "",
		"Firecracker v99999999999.1.1":     "",
		"Jailer v1.14.1":                   "",
		strings.Repeat("Firecracker v", 9): "",
	} {
		v, err := firecracker.ParseOutput(out)
		if got := v.String(); (err != nil) != (want == "") || err == nil && got != want {
			t.Errorf("ParseOutput(%q) = %s, %v; want %q", out, got, err, want)
		}
	}
}

func TestCompare(t *testing.T) {
	order := []string{"0.25.2", "1.4.9", "1.5.0-dev", "1.5.0-rc1", "1.5.0", "1.5.1", "1.9.9", "1.10.0", "1.14.1", "2.0.0"}
	for i, a := range order {
		for j, b := range order {
			if got := parse(t, a).Compare(parse(t, b)); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("Compare(%s, %s) = %d", a, b, got)
			}
		}
	}
}

func TestWindow(t *testing.T) {
	for v, want := range map[string]firecracker.Place{
		"1.4.1": firecracker.Below, "1.5.0-dev": firecracker.Below, "1.5.0": firecracker.Within, "1.12.1": firecracker.Within,
		"1.14.1": firecracker.Within, "1.14.2": firecracker.Above, "1.15.0-dev": firecracker.Above, "2.0.0": firecracker.Above,
	} {
		if got := firecracker.Window(parse(t, v)); got != want {
			t.Errorf("Window(%s) = %v, want %v", v, got, want)
		}
	}
}

func TestCVEs(t *testing.T) {
	for v, want := range map[string]string{
		"1.5.0": "CVE-2026-1386", "1.12.1": "CVE-2026-1386", "1.13.0": "CVE-2026-1386 CVE-2026-5747", "1.13.1": "CVE-2026-1386 CVE-2026-5747",
		"1.13.2": "CVE-2026-5747", "1.14.0": "CVE-2026-1386 CVE-2026-5747", "1.14.1": "CVE-2026-5747", "1.14.3": "CVE-2026-5747", "1.14.4": "",
		"1.15.0": "CVE-2026-5747", "1.15.1": "", "1.16.1": "",
	} {
		var got []string
		for _, c := range firecracker.CVEs(parse(t, v)) {
			got = append(got, c.ID)
			if c.What == "" || c.Fixed == "" {
				t.Errorf("%s is not explained: %+v", c.ID, c)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("CVEs(%s) = %q, want %q", v, s, want)
		}
	}
}

func TestSuits(t *testing.T) {
	const debian, own = "CONFIG_VIRTIO_MMIO=m\n# CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set\n", "CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n"
	for _, tt := range []struct {
		version, config string
		want            bool
	}{
		{"1.7.0", debian, false}, {"1.8.0-dev", debian, false}, {"1.8.0", debian, true}, {"1.5.0", own, true}, {"1.5.0", "", true},
	} {
		err := firecracker.Suits(parse(t, tt.version), tt.config)
		if (err == nil) != tt.want {
			t.Errorf("Suits(%s, %q) = %v, want it to suit: %v", tt.version, tt.config, err, tt.want)
		}
		if err != nil && !strings.Contains(err.Error(), "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES") {
			t.Errorf("Suits() = %v, which does not say what is missing", err)
		}
	}
}

func TestInstallHint(t *testing.T) {
	for release, want := range map[string]string{
		"ID=debian\nVERSION_ID=\"12\"\n":               "/usr/local/bin/firecracker",
		"NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n": "/usr/local/bin/firecracker",
		"ID=arch\n":                  "paru -S firecracker-bin",
		"ID=manjaro\nID_LIKE=arch\n": "paru -S firecracker-bin",
		"ID=nixos\n":                 "nix-env -iA nixos.firecracker",
		"ID=fedora\nPRETTY_NAME='not ID=debian'\n": "get it from " + firecracker.Releases,
		"": "get it from " + firecracker.Releases,
		"ID='rocky'\nID_LIKE=\"rhel centos fedora\"\n": "get it from " + firecracker.Releases,
	} {
		if got := firecracker.InstallHint(release); !strings.Contains(got, want) {
			t.Errorf("InstallHint(%q) = %q, want %q in it", release, got, want)
		}
	}
}

func TestQuery(t *testing.T) {
	dir := t.TempDir()
	for script, want := range map[string]string{
		"echo 'Firecracker v1.14.1'; echo; echo exiting >&2": "1.14.1",
		"exit 1":                               "",
		"yes 'Firecracker' | head -c 10000000": "",
	} {
		p := filepath.Join(dir, "firecracker")
		if err := os.WriteFile(p, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		v, err := firecracker.Query(t.Context(), p)
		if (err != nil) != (want == "") || err == nil && v.String() != want {
			t.Errorf("Query(%q) = %v, %v; want %q", script, v, err, want)
		}
	}
	if _, err := firecracker.Query(t.Context(), "/nowhere"); err == nil {
		t.Error("Query() of nothing = nil, want an error")
	}
}
