package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/daemon"
	"banger/internal/testneed"
)

// ask sends a request as curl would, and returns status and body.
func ask(t *testing.T, socket, method, path, body string, header ...string) (int, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://banger"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return res.StatusCode, string(b)
}

func TestHelloAndPermissions(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, func(cfg *daemon.Config) {
		cfg.Driver = func(context.Context) (string, string) { return "qemu-tcg", "no /dev/kvm" }
	})
	h, err := c.Hello(t.Context())
	if err != nil {
		t.Fatalf("Hello() = %v", err)
	}
	if h.Protocol != api.Protocol || h.PID != os.Getpid() || h.Socket != w.layout.Socket || h.Driver != "qemu-tcg" || h.DriverWhy == "" || h.Machines != 0 {
		t.Errorf("Hello() = %+v", h)
	}
	for path, want := range map[string]os.FileMode{w.layout.Socket: 0o600, filepath.Dir(w.layout.Socket): 0o700, w.layout.State: 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("mode of %s = %v, %v; want %v", path, st.Mode().Perm(), err, want)
		}
	}
	clean(t, c)
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	w.serve(t, nil)
	for name, tt := range map[string]struct {
		method, path, body string
		status             int
		code               api.Code
	}{
		"no such route":            {"GET", "/v1/nothing", "", 404, api.NotFound},
		"no version":               {"GET", "/hello", "", 404, api.NotFound},
		"another method":           {"PUT", "/v1/hello", "", 404, api.NotFound},
		"no such VM":               {"GET", "/v1/machines/web", "", 404, api.NotFound},
		"no such VM to delete":     {"DELETE", "/v1/machines/web", "", 404, api.NotFound},
		"no such VM to start":      {"POST", "/v1/machines/web/start", `{"authorized_key":"k"}`, 404, api.NotFound},
		"no such VM to stop":       {"POST", "/v1/machines/web/stop", "", 404, api.NotFound},
		"no such VM to kill":       {"POST", "/v1/machines/web/kill", "", 404, api.NotFound},
		"no such VM to set":        {"PATCH", "/v1/machines/web", "", 404, api.NotFound},
		"no such VM's console":     {"GET", "/v1/machines/web/console", "", 404, api.NotFound},
		"not JSON":                 {"POST", "/v1/machines", "{", 400, api.Invalid},
		"an unknown field":         {"POST", "/v1/machines", `{"nam":"web"}`, 400, api.Invalid},
		"a wrong type":             {"POST", "/v1/machines", `{"name":7}`, 400, api.Invalid},
		"two objects":              {"POST", "/v1/machines", `{} {}`, 400, api.Invalid},
		"a request without end":    {"POST", "/v1/machines", `{"name":"` + strings.Repeat("a", 1<<20) + `"}`, 400, api.Invalid},
		"a bad name":               {"POST", "/v1/machines", `{"name":"-"}`, 400, api.Invalid},
		"no such image":            {"GET", "/v1/images/deb", "", 404, api.NotFound},
		"no such image to delete":  {"DELETE", "/v1/images/deb", "", 404, api.NotFound},
		"no such kernel":           {"GET", "/v1/kernels/deb", "", 404, api.NotFound},
		"no such kernel to delete": {"DELETE", "/v1/kernels/deb", "", 404, api.NotFound},
		"no such catalog entry":    {"POST", "/v1/images/nix/pull", "", 404, api.NotFound},
		"no such kernel entry":     {"POST", "/v1/kernels/nix/pull", "", 404, api.NotFound},
		"an image's bad name":      {"POST", "/v1/images/..%2Fx/pull", "", 400, api.Invalid},
		"a ticket nobody holds":    {"PUT", "/v1/images/debian-bookworm/build/x", "", 409, api.Conflict},
		"a kernel's ticket":        {"PUT", "/v1/kernels/debian-6.1/build/x", "", 409, api.Conflict},
		"an import of no tar":      {"PUT", "/v1/images/small", strings.Repeat("no tar", 1000), 400, api.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := ask(t, w.layout.Socket, tt.method, tt.path, tt.body)
			var e api.Error
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatalf("%s %s = %d %q: %v", tt.method, tt.path, status, body, err)
			}
			if status != tt.status || e.Code != tt.code || e.Msg == "" {
				t.Errorf("%s %s = %d %s; want %d and %s", tt.method, tt.path, status, body, tt.status, tt.code)
			}
		})
	}
}

func TestEmptyListsAreLists(t *testing.T) {
	w := newWorld(t)
	w.serve(t, nil)
	for _, path := range []string{"/v1/machines", "/v1/images", "/v1/kernels"} {
		if status, body := ask(t, w.layout.Socket, "GET", path, ""); status != 200 || body != "[]\n" {
			t.Errorf("GET %s = %d %q, want []", path, status, body)
		}
	}
}

func TestVersionSkew(t *testing.T) {
	w := newWorld(t)
	w.serve(t, nil)
	if status, body := ask(t, w.layout.Socket, "GET", "/v1/machines", "", api.ProtocolHeader, "999"); status != http.StatusUpgradeRequired || !strings.Contains(body, "daemon restart") {
		t.Errorf("GET /v1/machines of protocol 999 = %d %s", status, body)
	}
	if status, _ := ask(t, w.layout.Socket, "GET", "/v1/hello", "", api.ProtocolHeader, "999"); status != 200 {
		t.Errorf("GET /v1/hello of protocol 999 = %d, want 200", status)
	}
}

// A client meets a daemon of another protocol.
func TestClientRefusesAnotherProtocol(t *testing.T) {
	w := newWorld(t)
	if err := w.layout.Make(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", w.layout.Socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(rw, `{"protocol":%d,"version":"9.9"}`, api.Protocol+1)
	}), ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	_, err = client.Connect(t.Context(), w.options())
	if e := api.AsError(err); e.Code != api.VersionSkew || !strings.Contains(e.Hint, "banger daemon restart") {
		t.Errorf("Connect() = %v, want version_skew with a hint", err)
	}
	o := w.options()
	o.AnyVersion = true
	c, err := client.Connect(t.Context(), o)
	if err != nil || c.Greeting().Version != "9.9" {
		t.Errorf("Connect() with AnyVersion = %v", err)
	}
}

const strangerEnv = "BANGER_TEST_STRANGER"

// beStranger asks the daemon at socket who it is, and prints the answer.
func beStranger(socket string) int {
	c, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Println("dialling:", err)
		return 0
	}
	defer c.Close()
	fmt.Fprint(c, "GET /v1/machines HTTP/1.0\r\n\r\n")
	_, _ = io.Copy(os.Stdout, c)
	return 0
}

func TestOtherUsersAreRefused(t *testing.T) {
	testneed.Root(t)
	w := newWorld(t)
	w.serve(t, nil)
	stranger := func() string {
		// A copy that another uid can reach.
		dir, err := os.MkdirTemp("", "bs")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "stranger")
		if err := os.WriteFile(name, self, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), name)
		cmd.Dir, cmd.Env = "/", []string{strangerEnv + "=" + w.layout.Socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := stranger(); !strings.Contains(got, "permission denied") {
		t.Errorf("a stranger got %q, want permission denied", got)
	}
	// Even where the file's mode would let it in.
	for dir := filepath.Dir(w.layout.Socket); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(w.layout.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := stranger(); !strings.Contains(got, "403") || !strings.Contains(got, `"denied"`) || !strings.Contains(got, "54321") {
		t.Errorf("a stranger got %q, want a refusal of uid 54321", got)
	}
}

// A client that sends its request drop by drop holds up nobody.
func TestSlowClients(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	for _, begin := range []string{"", "GET /v1/hel", "POST /v1/machines HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"} {
		conn, err := net.Dial("unix", w.layout.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, begin); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Machines(t.Context()); err != nil {
		t.Errorf("Machines() beside slow clients = %v", err)
	}
}

func TestImageLife(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	var progress int
	im, err := c.ImportImage(t.Context(), "small", bytes.NewReader(smallTar(t, "sbin/init")), func(ev api.Event) error {
		if ev.Type == api.EventProgress {
			progress++
		}
		return nil
	})
	if err != nil {
		t.Fatalf("ImportImage() = %v", err)
	}
	if im.Name != "small" || im.Source != "import" || im.Init != "other" || progress == 0 {
		t.Errorf("ImportImage() = %+v after %d progress events", im, progress)
	}
	if _, err := c.ImportImage(t.Context(), "small", bytes.NewReader(smallTar(t, "x")), nil); api.CodeOf(err) != api.Exists {
		t.Errorf("ImportImage() over a name = %v, want exists", err)
	}
	if got, err := c.Image(t.Context(), im.ID[:8]); err != nil || got.Name != "small" {
		t.Errorf("Image() by id = %+v, %v", got, err)
	}
	if is, err := c.Images(t.Context()); err != nil || len(is) != 1 {
		t.Errorf("Images() = %v, %v", is, err)
	}
	clean(t, c)
	if got, err := c.DeleteImage(t.Context(), "small"); err != nil || got.ID != im.ID {
		t.Errorf("DeleteImage() = %+v, %v", got, err)
	}
	clean(t, c)
	if s, err := c.Reconcile(t.Context()); err != nil || len(s.Leaks) != 0 {
		t.Errorf("Reconcile() = %+v, %v", s, err)
	}
}

// What is no tar is refused while most of it has not been read.
func TestImportOfNoTar(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	for range 5 {
		bad := strings.NewReader(strings.Repeat("no tar ", 1000))
		if _, err := c.ImportImage(t.Context(), "small", bad, nil); api.CodeOf(err) != api.Invalid {
			t.Errorf("ImportImage() = %v (%s), want invalid", err, api.CodeOf(err))
		}
	}
	clean(t, c)
}

// The one who imports goes away in the middle.
func TestImportThatIsCutOffLeavesNothing(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r, p := io.Pipe()
	go func() {
		whole := smallTar(t, "x")
		_, _ = p.Write(whole[:700])
		cancel()
	}()
	if _, err := c.ImportImage(ctx, "small", r, nil); err == nil {
		t.Error("ImportImage() succeeded without its end")
	}
	p.Close()
	// The connection's end has to reach the daemon: its next import waits for
	// nothing, so ask until the staging area is empty.
	waitClean(t, c)
	if is, err := c.Images(t.Context()); err != nil || len(is) != 0 {
		t.Errorf("Images() = %v, %v; want none", is, err)
	}
}

// waitClean waits until nothing is half-made, which is told by the daemon's
// own census, not by a clock.
func waitClean(t *testing.T, c *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		s, err := c.Census(ctx)
		if err != nil {
			t.Fatalf("Census() = %v", err)
		}
		if len(s.Staging) == 0 && len(s.Leaks) == 0 {
			return
		}
	}
}
