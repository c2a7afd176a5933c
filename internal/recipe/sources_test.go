package recipe

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hostWith makes a root directory with these files.
func hostWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, body := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestHostSources(t *testing.T) {
	const keyring = "usr/share/keyrings/debian-archive-keyring.gpg"
	cases := []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"no apt", nil, nil},
		{"one line", map[string]string{"etc/apt/sources.list": "# mine\n" +
			"deb http://mirror.example/debian bookworm main contrib # fast\n" +
			"deb http://mirror.example/debian/ bookworm-updates main\n" +
			"deb-src http://mirror.example/debian bookworm main\n" +
			"deb http://security.example/debian-security bookworm-security main\n" +
			"deb http://mirror.example/debian bookworm-backports main\n" +
			"deb http://mirror.example/debian bookworm non-free\n" +
			"debfoo\ndeb\ndeb [ broken\ndeb http://mirror.example/debian bookworm\n"},
			[]string{"deb http://mirror.example/debian bookworm main", "deb http://mirror.example/debian/ bookworm-updates main",
				"deb http://security.example/debian-security bookworm-security main"}},
		{"options", map[string]string{keyring: "k", "etc/apt/sources.list.d/a.list": "" +
			"deb [arch=amd64,arm64 signed-by=/" + keyring + "] https://mirror.example/deb bookworm main\n" +
			"deb [trusted=yes] https://local.example/debian bookworm main\n" +
			"deb [arch=arm64] https://mirror.example/debian bookworm main\n" +
			"deb [signed-by=/gone.gpg] https://other.example/debian bookworm main\n"},
			[]string{"deb [signed-by=/" + keyring + "] https://mirror.example/deb bookworm main",
				"deb [trusted=yes] https://local.example/debian bookworm main", "deb https://other.example/debian bookworm main"}},
		{"deb822", map[string]string{keyring: "k", "etc/apt/sources.list.d/debian.sources": "# a comment\nTypes: deb deb-src\n# another\nURIs: http://mirror.example/debian\n" +
			"Suites: bookworm\n bookworm-updates\nComponents: main non-free-firmware\nSigned-By: /" + keyring + "\n\n" +
			"Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\n\n" +
			"Types: deb\nEnabled: False\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\n" +
			"Types: deb-src\nURIs: http://src.example/debian\nSuites: bookworm\nComponents: main\n\n" +
			"Types: deb\nURIs: http://key.example/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"},
			[]string{"deb [signed-by=/" + keyring + "] http://mirror.example/debian bookworm main",
				"deb [signed-by=/" + keyring + "] http://mirror.example/debian bookworm-updates main", "deb http://key.example/debian bookworm main"}},
		{"a cloud image", map[string]string{"etc/apt/mirrors/debian.list": "# where\nhttps://cdn.example/debian\tpriority:1\nhttps://second.example/debian\n",
			"etc/apt/sources.list.d/debian.sources": "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm bookworm-updates\nComponents: main\n"},
			[]string{"deb https://cdn.example/debian bookworm main", "deb https://cdn.example/debian bookworm-updates main"}},
		{"a missing mirror list", map[string]string{"etc/apt/sources.list": "deb mirror+file:/etc/none bookworm main\n"}, nil},
		{"other archives", map[string]string{"etc/apt/sources.list": "deb https://download.example/docker bookworm main\ndeb file:/srv/debian bookworm main\n"}, nil},
		{"another release", map[string]string{"etc/apt/sources.list": "deb http://mirror.example/debian trixie main\n"}, nil},
		{"updates alone", map[string]string{"etc/apt/sources.list": "deb http://mirror.example/debian-security bookworm-security main\n"}, nil},
		{"said twice, and a file apt does not read", map[string]string{"etc/apt/sources.list": "deb http://a.example/debian bookworm main\ndeb http://a.example/debian bookworm main\n",
			"etc/apt/sources.list.d/old.list.save": "deb http://b.example/debian bookworm main\n"}, []string{"deb http://a.example/debian bookworm main"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := hostSources(hostWith(t, c.files), "bookworm")
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("hostSources (-want +got):\n%s", d)
			}
		})
	}
}

func TestMirrorFirst(t *testing.T) {
	root := hostWith(t, map[string]string{"etc/apt/sources.list": "deb http://a.example/debian bookworm main\n"})
	cases := []struct {
		mirror string
		want   []string
	}{
		{"", []string{"deb http://a.example/debian bookworm main"}},
		{" http://b.example/debian ", []string{"http://b.example/debian"}},
		{"# mine\ndeb http://b.example/debian bookworm main\n\ndeb http://b.example/s bookworm-security main\n",
			[]string{"deb http://b.example/debian bookworm main", "deb http://b.example/s bookworm-security main"}},
	}
	for _, c := range cases {
		if d := cmp.Diff(c.want, mirrors(c.mirror, root, "bookworm")); d != "" {
			t.Errorf("mirrors(%q) (-want +got):\n%s", c.mirror, d)
		}
	}
}

func TestReachOptions(t *testing.T) {
	const dump = `APT "";
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://127.0.0.1:3142/";
Acquire::http::Proxy::internal.example "DIRECT";
Acquire::http::Proxy-Auto-Detect "/usr/local/bin/detect";
Acquire::https::CaInfo "/etc/ssl/ours.pem";
Acquire::http::Empty "";
Acquire::Retries "3";
Dir::Cache "var/cache/apt";
`
	want := []string{`Acquire::http::Proxy "http://127.0.0.1:3142/";`, `Acquire::http::Proxy::internal.example "DIRECT";`, `Acquire::https::CaInfo "/etc/ssl/ours.pem";`}
	if d := cmp.Diff(want, reachOptions(dump)); d != "" {
		t.Errorf("reachOptions (-want +got):\n%s", d)
	}
}
