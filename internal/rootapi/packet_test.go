package rootapi

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pair returns two ends of a SOCK_SEQPACKET connection.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

func files(t *testing.T, n int) []*os.File {
	t.Helper()
	var list []*os.File
	for range n {
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		list = append(list, f)
	}
	return list
}

func open(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPacketRoundTrip(t *testing.T) {
	a, b := pair(t)
	sent := files(t, MaxFiles)
	if err := Send(a, Request{Verb: Release, ID: id}, sent...); err != nil {
		t.Fatal(err)
	}
	var r Request
	got, err := Receive(b, &r)
	if err != nil || r.ID != id || len(got) != len(sent) {
		t.Fatalf("Receive() = %d files, %+v, %v", len(got), r, err)
	}
	for i := range got {
		want, err1 := sent[i].Stat()
		have, err2 := got[i].Stat()
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(want, have) {
			t.Errorf("descriptor %d is another file (%v)", i, err)
		}
		fd, err := FD(got[i])
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is inherited (%v)", i, err)
		}
	}
	CloseAll(got)
}

// Hostile packets are refused, and whatever came with them is closed.
func TestReceiveRefuses(t *testing.T) {
	rights := func(t *testing.T, n int) []byte {
		var fds []int
		for range n {
			fds = append(fds, 0)
		}
		return unix.UnixRights(fds...)
	}
	good := []byte(`{"verb":"hello"}`)
	huge := append([]byte(`{"verb":"`), []byte(strings.Repeat("x", MaxPacket))...)
	for name, tt := range map[string]struct {
		packet []byte
		files  int
		want   string
	}{
		"no more than one zero byte":  {nil, 1, "decoding"},
		"a packet one byte too long":  {append([]byte(nil), huge[:MaxPacket+1]...), 3, "longer than"},
		"a packet far too long":       {append(huge, huge...), 3, "longer than"},
		"one descriptor too many":     {good, MaxFiles + 1, "more than 6 came"},
		"many descriptors too many":   {good, 253, "more than 6 came"},
		"nonsense with descriptors":   {[]byte("\x00\xff"), MaxFiles, "decoding"},
		"half a packet":               {good[:8], 2, "decoding"},
		"a packet and something more": {append(append([]byte(nil), good...), '\n'), 2, "decoding"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			before := open(t)
			if _, _, err := a.WriteMsgUnix(tt.packet, rights(t, tt.files), nil); err != nil {
				t.Fatal(err)
			}
			var r Request
			got, err := Receive(b, &r)
			var e *Error
			if !errors.As(err, &e) || e.Code != Invalid || !strings.Contains(e.Message, tt.want) || got != nil {
				t.Errorf("Receive() = %d files, %v; want none and %q", len(got), err, tt.want)
			}
			if after := open(t); after != before {
				t.Errorf("%d descriptors are open, %d were before", after, before)
			}
		})
	}
	t.Run("the other end closed", func(t *testing.T) {
		a, b := pair(t)
		a.Close()
		var r Request
		if _, err := Receive(b, &r); err == nil {
			t.Error("Receive() = nil")
		}
	})
}

func TestSendRefuses(t *testing.T) {
	a, _ := pair(t)
	if err := Send(a, strings.Repeat("x", MaxPacket)); err == nil {
		t.Error("Send() of too much = nil")
	}
	f := files(t, 1)[0]
	f.Close()
	if err := Send(a, 1, f); err == nil {
		t.Error("Send() of a closed file = nil")
	}
}
