package resolvconf

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestUpstreams(t *testing.T) {
	const stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"
	for _, tt := range []struct{ name, etc, resolved, want string }{
		{"servers", "# by hand\nnameserver 192.0.2.1\n\tnameserver  192.0.2.2 # second\n", "nameserver 192.0.2.9\n", "[192.0.2.1 192.0.2.2]"},
		{"the stub of resolved", stub, "nameserver 192.0.2.9\n", "[192.0.2.9]"},
		{"the stub and nothing else", stub, stub, "[]"},
		{"one of the host's own beside another", "nameserver 127.0.0.1\nnameserver 192.0.2.1\n", "", "[192.0.2.1]"},
		{"what a guest cannot reach", "nameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver 169.254.169.253\nnameserver 0.0.0.0\n", "", "[]"},
		{"nonsense", "nameserver\nnameserver ns.example\nservername 192.0.2.1\n#nameserver 192.0.2.1\n", "", "[]"},
		{"more than are heeded", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", "", "[192.0.2.1 192.0.2.2 192.0.2.3]"},
		{"no files", "", "", "[]"},
	} {
		root := t.TempDir()
		for path, text := range map[string]string{"etc/resolv.conf": tt.etc, "run/systemd/resolve/resolv.conf": tt.resolved} {
			if text == "" {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := fmt.Sprint(Upstreams(root)); got != tt.want {
			t.Errorf("%s: Upstreams() = %s, want %s", tt.name, got, tt.want)
		}
	}
}
