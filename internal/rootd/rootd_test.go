package rootd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/jail"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/rootd/points"
	"banger/internal/testneed"

	"golang.org/x/sys/unix"
)

const vm = "0123456789ab"

// quiet is a network and a resolver that nobody may reach in these tests but
// for what it records.
type quiet struct {
	mu     sync.Mutex
	routed []uint16
}

func (*quiet) Attach(context.Context, string, netip.Addr, uint32, bool) error { panic("attached") }
func (*quiet) Detach(context.Context, string) error                           { panic("detached") }
func (*quiet) Policy(context.Context, string, netip.Addr, bool) error         { panic("policy") }
func (*quiet) Repair(context.Context) ([]string, error)                       { panic("repair") }
func (*quiet) Census(context.Context) ([]string, error)                       { panic("census") }
func (q *quiet) Route(_ context.Context, port uint16) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.routed = append(q.routed, port)
	if port == 7 {
		return errors.New("resolved says: bad \xff byte")
	}
	return nil
}

// asked is what was routed so far.
func (q *quiet) asked() []uint16 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.routed)
}

// log is what the helper writes, for tests that read it while it runs.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve runs a helper for an owner who is not us, which serves us if we are
// root.
func serve(t *testing.T) (string, *quiet, *log) {
	t.Helper()
	q, out := &quiet{}, &log{}
	d := &Daemon{Network: q, Resolver: q, Log: slog.New(slog.NewTextHandler(out, nil)), Install: rootapi.Install{
		Owner: rootapi.Owner{UID: 4242}, Prefix: netip.MustParsePrefix("172.16.0.0/24"), Programs: []rootapi.Program{{Firecracker: "/none", Jailer: "/none"}}}}
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	return path, q, out
}

func TestHelloAndResolver(t *testing.T) {
	testneed.Root(t)
	path, q, out := serve(t)
	c := rootclient.Client{Socket: path}
	v, err := c.Hello(t.Context())
	if err != nil || v.Install.Owner.UID != 4242 || v.Protocol != rootapi.Protocol {
		t.Errorf("Hello() = %+v, %v", v, err)
	}
	if err := errors.Join(c.Resolver(t.Context(), 5300), c.Resolver(t.Context(), 0)); err != nil || !slices.Equal(q.asked(), []uint16{5300, 0}) {
		t.Errorf("Resolver() = %v, routed %v", err, q.asked())
	}
	err = c.Resolver(t.Context(), 7)
	var e *rootapi.Error
	if !errors.As(err, &e) || e.Code != rootapi.Failed || !strings.Contains(e.Message, "bad ? byte") {
		t.Errorf("Resolver(7) = %v, want what it says", err)
	}
	for _, want := range []string{"msg=done uid=0 pid=", "verb=hello", "msg=refused uid=0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, out)
		}
	}
}

// as runs f on a thread that is of another uid for good.
func as(t *testing.T, uid uintptr, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uid, ^uintptr(0)); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

// Every verb is refused to another uid, however often it asks, and the owner
// is served beside it.
func TestAnotherUIDIsRefused(t *testing.T) {
	testneed.Root(t)
	path, q, out := serve(t)
	for _, verb := range []rootapi.Verb{rootapi.Hello, rootapi.Start, rootapi.Adopt, rootapi.Release, rootapi.SetPolicy, rootapi.Resolve, rootapi.Census} {
		c := rootclient.Client{Socket: path}
		err := as(t, 4343, func() (err error) {
			switch verb {
			case rootapi.Hello:
				_, err = c.Hello(t.Context())
			case rootapi.Start:
				_, err = c.Launch(t.Context(), vm, rootapi.Launch{VCPUs: 1, MemoryMiB: 128})
			case rootapi.Adopt:
				_, err = c.Adopt(t.Context(), vm)
			case rootapi.Release:
				err = c.Release(t.Context(), vm)
			case rootapi.SetPolicy:
				err = c.Policy(t.Context(), vm, true)
			case rootapi.Resolve:
				err = c.Resolver(t.Context(), 5300)
			case rootapi.Census:
				_, err = c.Census(t.Context())
			}
			return err
		})
		var e *rootapi.Error
		if !errors.As(err, &e) || e.Code != rootapi.Denied {
			t.Errorf("%s by uid 4343 = %v; want it denied", verb, err)
		}
	}
	if err := as(t, 4242, func() error { // the owner
		_, err := rootclient.Client{Socket: path}.Hello(t.Context())
		return err
	}); err != nil {
		t.Errorf("Hello() by the owner = %v", err)
	}
	if len(q.asked()) != 0 || strings.Count(out.String(), "msg=refused uid=4343") != 7 {
		t.Errorf("routed %v, and the log is\n%s", q.asked(), out)
	}
}

// Sixty hostile requests a verb, by one who may ask: each is refused, and the
// helper answers the next.
func TestHostileRequests(t *testing.T) {
	testneed.Root(t)
	path, q, out := serve(t)
	ask := func(packet []byte, fds ...int) (rootapi.Reply, error) {
		var r rootapi.Reply
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			return r, err
		}
		defer conn.Close()
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := conn.WriteMsgUnix(packet, oob, nil); err != nil {
			return r, err
		}
		_, err = rootapi.Receive(conn, &r)
		return r, err
	}
	before := descriptors(t)
	n := 0
	for _, verb := range []string{"hello", "launch", "adopt", "release", "policy", "resolver", "census"} {
		for _, p := range hostile(verb) {
			n++
			r, err := ask(p.packet, p.fds...)
			if err != nil || r.Error == nil || r.Error.Code != rootapi.Invalid || len(r.Error.Message) > 300 {
				t.Errorf("%.200q with %d descriptors: %+v, %v; want a refusal", p.packet, len(p.fds), r.Error, err)
			}
		}
	}
	if per := n / 7; per < 60 {
		t.Errorf("%d hostile requests a verb, want 60", per)
	}
	if got := strings.Count(out.String(), "msg=refused"); got != n {
		t.Errorf("%d refusals are logged, want %d", got, n)
	}
	if len(q.asked()) != 0 {
		t.Errorf("a hostile request routed %v", q.asked())
	}
	if _, err := (rootclient.Client{Socket: path}).Hello(t.Context()); err != nil {
		t.Errorf("Hello() after them = %v", err)
	}
	if after := descriptors(t); after > before+2 {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

type packet struct {
	packet []byte
	fds    []int
}

// hostile makes the requests: wrong ids, fields of other verbs, wrong types,
// huge numbers, wrong forms, descriptors that do not belong.
func hostile(verb string) (list []packet) {
	add := func(text string, fds ...int) { list = append(list, packet{[]byte(text), fds}) }
	head := `{"verb":"` + verb + `"`
	for _, id := range []string{"", "x", "0123456789a", "0123456789abc", "0123456789AB", "../../../etc", "/etc/passwd1", "0123456789a/", `0123456789a\u0000`,
		`0123456789a\n`, "............", "0123456789a%", "0123456789a$", "0123456789a ", " 123456789ab", strings.Repeat("a", 60000), "*", "banger-vm-*", "-1", "eth0", "docker0"} {
		add(head + `,"id":"` + id + `","x":1}`)
		if id != "" {
			add(head + `,"id":"` + id + `"}`)
		}
	}
	for _, rest := range []string{`,"port":0}`, `,"port":-1}`, `,"port":65536}`, `,"port":"53"}`, `,"path":"/etc/shadow"}`, `,"pid":1}`, `,"argv":["sh"]}`,
		`,"launch":{}}`, `,"launch":null}`, `,"launch":[]}`, `,"launch":{"vcpus":1e9}}`, `,"nat":1}`, `,"nat":"yes"}`, `,"verb":"hello"}`, `}}`, `} `, `}x`, ` }`, ``,
		`,"id":"` + vm + `","nat":false}`, `,"id":"` + vm + `","port":1,"launch":{"vcpus":1}}`} {
		add(head + rest)
	}
	// Descriptors where none belong, too few and too many of them.
	l := `{"vcpus":1,"memory_mib":128,"firecracker":0,"addr":"","nat":false,"read_only":0}`
	for _, n := range []int{1, 2, 7, 100, 253} {
		text := map[string]string{"hello": head + "}", "census": head + "}", "resolver": head + `,"port":5300}`,
			"policy": head + `,"id":"` + vm + `","nat":true}`, "launch": head + `,"id":"` + vm + `","launch":` + l + `}`}[verb]
		if text == "" {
			text = head + `,"id":"` + vm + `"}`
		}
		add(text, make([]int, n)...)
	}
	return list
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A connection that says nothing is let go of, and a thousand of another uid
// keep nobody waiting.
func TestIdleConnections(t *testing.T) {
	testneed.Root(t)
	path, _, _ := serve(t)
	err := as(t, 4343, func() error {
		for range 1000 {
			c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				return err
			}
			defer c.Close()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := (rootclient.Client{Socket: path}).Hello(ctx); err != nil {
		t.Errorf("Hello() beside a thousand idle connections = %v", err)
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(4 * patience))
	var r rootapi.Reply
	if _, err := rootapi.Receive(c, &r); err != nil || r.Error == nil {
		t.Errorf("an idle connection hears %+v, %v; want a refusal", r, err)
	}
}

// Descriptors that prove nothing, or not enough, are refused.
func TestHostileDescriptors(t *testing.T) {
	dir := t.TempDir()
	owner := uint32(os.Getuid())
	file := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain, linked, gone := file("plain"), file("linked"), file("gone")
	if err := errors.Join(os.Link(linked, dir+"/second"), unix.Mkfifo(dir+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	odd := file("odd name")
	for name, tt := range map[string]struct {
		path  string
		flags int
		write bool
		owner uint32
		want  string
	}{
		"O_PATH":                        {plain, unix.O_PATH, false, owner, "O_PATH"},
		"a directory":                   {dir, unix.O_RDONLY, false, owner, "not a regular"},
		"a FIFO":                        {dir + "/fifo", unix.O_RDWR, true, owner, "not a regular"},
		"a device":                      {"/dev/null", unix.O_RDWR, true, owner, "not a regular"},
		"O_PATH to a socket":            {dir + "/socket", unix.O_PATH, false, owner, "O_PATH"},
		"write-only, to read":           {plain, unix.O_WRONLY, false, owner, "not open for"},
		"write-only, to write":          {plain, unix.O_WRONLY, true, owner, "not open for"},
		"read-only, to write":           {plain, unix.O_RDONLY, true, owner, "not open for"},
		"another's":                     {plain, unix.O_RDWR, true, owner + 1, "belongs to uid"},
		"two names, to write":           {linked, unix.O_RDWR, true, owner, "it has 2 names"},
		"no name any more":              {gone, unix.O_RDWR, false, owner, "it has 0 names"},
		"an odd name":                   {odd, unix.O_RDONLY, false, owner, "unusual characters"},
		"elsewhere":                     {plain, unix.O_RDWR, true, owner, "not below"},
		"elsewhere, two names, to read": {linked, unix.O_RDONLY, false, owner, "not below"},
	} {
		fd, err := unix.Open(tt.path, tt.flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if tt.path == gone {
			os.Remove(gone)
		}
		f := os.NewFile(uintptr(fd), name)
		got, err := look(f, tt.write, tt.owner)
		if err == nil || !strings.Contains(err.Error(), tt.want) || got.Path != "" {
			t.Errorf("%s: look() = %+v, %v; want %q", name, got, err, tt.want)
		}
		f.Close()
	}
	mem, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(mem), "memfd")
	defer f.Close()
	if _, err := look(f, true, owner); err == nil {
		t.Error("look() at a memfd = nil")
	}
}

// A launch goes no further than the first thing that is wrong: no network, no
// directory, no conversation with PID 1, which these tests do not have.
func TestLaunchChecksBeforeItDoes(t *testing.T) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	d := &Daemon{Network: &quiet{}, Install: rootapi.Install{Programs: []rootapi.Program{{Firecracker: "/none", Jailer: "/none"}}}}
	_, _, err = d.launch(t.Context(), jail.Systemd{}, vm, &rootapi.Launch{VCPUs: 1, MemoryMiB: 128}, []*os.File{null, null, null})
	var e *rootapi.Error
	if !errors.As(err, &e) || e.Code != rootapi.Denied {
		t.Errorf("launch without a Firecracker = %v, want it denied", err)
	}
}

func TestCheckPrograms(t *testing.T) {
	testneed.Root(t)
	if err := checkPrograms(rootapi.Program{Firecracker: "/etc/passwd", Jailer: "/usr/bin/env"}); err == nil {
		t.Error("checkPrograms(a text file) = nil")
	}
	env, err := filepath.EvalSymlinks("/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	if err := checkPrograms(rootapi.Program{Firecracker: env, Jailer: env}); err == nil || !strings.Contains(err.Error(), "dynamically linked") {
		t.Errorf("checkPrograms(a dynamic program) = %v", err)
	}
	link := filepath.Join(t.TempDir(), "firecracker")
	if err := os.Symlink(env, link); err != nil {
		t.Fatal(err)
	}
	if err := checkPrograms(rootapi.Program{Firecracker: link, Jailer: env}); err == nil {
		t.Error("checkPrograms(a link in a directory of anybody's) = nil")
	}
}

func TestActivatedWantsASocket(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	if _, err := Activated(); err == nil {
		t.Error("Activated() with another's LISTEN_PID = nil")
	}
}

// TestCrashPointsAreListed holds the list to the source, both ways.
func TestCrashPointsAreListed(t *testing.T) {
	var inSource, listed []string
	for _, pattern := range []string{"*.go", "../hostnet/*.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`crash\.Point\("([^"]+)"\)`).FindAllSubmatch(b, -1) {
				inSource = append(inSource, string(m[1]))
			}
		}
	}
	for _, list := range points.All() {
		listed = append(listed, list...)
	}
	slices.Sort(inSource)
	slices.Sort(listed)
	if !slices.Equal(inSource, listed) {
		t.Errorf("points in the source %v\nlisted %v; want the same, once each", inSource, listed)
	}
}

// What is refused is refused in words that a reply can carry.
func TestRepliesAreInTheOneForm(t *testing.T) {
	b, err := json.Marshal(rootapi.Reply{Held: []rootapi.Held{{ID: vm, Unit: &rootapi.Unit{Active: "active", PID: 3}, Addr: netip.MustParseAddr("172.16.0.9")}}})
	if err != nil || !strings.Contains(string(b), `"addr":"172.16.0.9"`) {
		t.Errorf("a census encodes as %s, %v", b, err)
	}
}
