package session

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/api"
	"banger/internal/companionapi"
	"banger/internal/host"
	"banger/internal/procid"
)

// listen is a companion's socket that stays when nobody listens any more.
func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	t.Cleanup(func() { l.Close() })
	return l
}

// answer serves a companion's clients: each operation by its replies, one a line.
func answer(l *net.UnixListener, replies map[companionapi.Op][]any) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		q, err := companionapi.ReadRequest(bufio.NewReader(c))
		if err == nil {
			enc := json.NewEncoder(c)
			for _, r := range replies[q.Op] {
				_ = enc.Encode(r) // who has left does not need it
			}
		}
		c.Close()
	}
}

// A companion that has died is waited for while its socket is there.
func TestStreamWaitsForTheNextCompanion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.sock")
	listen(t, path).Close()
	s := Session{Machine: api.Machine{Companion: path}}
	got := make(chan error, 1)
	go func() {
		st, err := s.stream(t.Context())
		if err == nil {
			err = st.Close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("stream() = %v, want it to wait", err)
	default:
	}
	l := listen(t, path+".new")
	go answer(l, map[companionapi.Op][]any{companionapi.OpStream: {companionapi.Reply{}}})
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("stream() = %v", err)
	}
}

// What OpenSSH's 255 means is found out by asking.
func TestSince(t *testing.T) {
	t.Parallel()
	me, err := procid.Self()
	if err != nil {
		t.Fatal(err)
	}
	other := me
	other.PID++
	status := func(id procid.ID) companionapi.Status {
		return companionapi.Status{Record: host.Record{Companion: id, VMM: me}}
	}
	reply := func(id procid.ID) companionapi.Reply {
		s := status(id)
		return companionapi.Reply{Status: &s}
	}
	exit := companionapi.Event{Type: companionapi.EventExit, Exit: &host.Exit{Reason: "QEMU was killed by signal 9"}}
	for name, tt := range map[string]struct {
		replies map[companionapi.Op][]any
		want    string
	}{
		"another companion": {map[companionapi.Op][]any{companionapi.OpStatus: {reply(other)}}, "companion was lost"},
		"a VMM that ended": {map[companionapi.Op][]any{
			companionapi.OpStatus: {reply(me)},
			companionapi.OpStream: {companionapi.Reply{Error: &api.Error{Code: api.GuestLost, Msg: "no agent"}}},
			companionapi.OpEvents: {companionapi.Reply{}, exit},
		}, "QEMU was killed by signal 9"},
		"an agent that is silent": {map[companionapi.Op][]any{
			companionapi.OpStatus: {reply(me)},
			companionapi.OpStream: {companionapi.Reply{Error: &api.Error{Code: api.GuestLost, Msg: "no agent"}}},
		}, "no agent"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.sock")
			l := listen(t, path)
			go answer(l, tt.replies)
			s := Session{Machine: api.Machine{Companion: path, Name: "web"}}
			err := s.since(t.Context(), status(me))
			if api.CodeOf(err) != api.GuestLost || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("since() = %v, want a guest lost: %s", err, tt.want)
			}
		})
	}
}
