package dns_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/nettest"
	"banger/internal/testneed"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// TestRecipe does what docs/dns-routing.md says for hosts without
// systemd-resolved: dnsmasq on port 53, two lines for our zone, and a plain
// resolv.conf. Then an ordinary program looks names up.
func TestRecipe(t *testing.T) {
	nettest.Need(t)
	at := serve(t)
	doc, err := os.ReadFile("../../docs/dns-routing.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := fmt.Sprintf("server=/vm/127.0.0.1#%d\nrev-server=172.16.0.0/24,127.0.0.1#%d\n", at.Port(), at.Port())
	for line := range strings.Lines(strings.ReplaceAll(conf, fmt.Sprint(at.Port()), "42069")) {
		if !strings.Contains(string(doc), strings.TrimSpace(line)) {
			t.Errorf("docs/dns-routing.md lacks the line %s", line)
		}
	}
	// What dnsmasq forwards for other names goes to a server that is not there.
	conf += "no-resolv\nserver=192.0.2.53\nlisten-address=127.0.0.1\nbind-interfaces\nno-hosts\nuser=root\n"
	for name, text := range map[string]string{"dnsmasq.conf": conf, "resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, testneed.Tool(t, "dnsmasq"), "--keep-in-foreground", "--conf-file="+dir+"/dnsmasq.conf")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); _ = cmd.Wait() })
	// A mount namespace gives getent a resolv.conf of its own.
	getent := func(what string) string {
		script := fmt.Sprintf("mount --bind %s/resolv.conf /etc/resolv.conf && exec getent -s dns hosts %s", dir, what)
		out, _ := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", script).CombinedOutput()
		return strings.Join(strings.Fields(string(out)), " ")
	}
	got := ""
	for deadline := time.Now().Add(20 * time.Second); got == "" && time.Now().Before(deadline); { // until dnsmasq listens
		got = getent("web.vm")
	}
	if want := "172.16.0.2 web.vm"; got != want {
		t.Errorf("getent hosts web.vm: %q, want %q", got, want)
	}
	if got, want := getent("172.16.0.2"), "172.16.0.2 web.vm"; got != want {
		t.Errorf("getent hosts 172.16.0.2: %q, want %q", got, want)
	}
	if got := getent("nobody.vm"); got != "" {
		t.Errorf("getent hosts nobody.vm: %q, want nothing", got)
	}
}
