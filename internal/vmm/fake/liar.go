package fake

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"sync"

	"banger/internal/agentapi"
	"banger/internal/mux"
)

// Lie begins a word on the kernel command line; one of [Lies] follows. Such a
// guest calls home like any other, and lies from the first command on.
const Lie = "fake.lie="

// Lies are the ways in which a guest can lie: on a stream of its agent, or below
// that, in the frames of the session or the bytes of the channel.
func Lies() []string {
	var names []string
	for name := range streamLies {
		names = append(names, name)
	}
	for name := range channelLies {
		names = append(names, name)
	}
	return append(names, inShutdown, belowShutdown, inHello)
}

// Lies with a place of their own.
const (
	inShutdown    = "half-an-answer-to-a-shutdown"
	belowShutdown = "half-a-body-to-a-shutdown"
	inHello       = "a-boast-of-a-hello"
)

// lie is the name of the lie that was ordered, or "".
func (m *machine) lie() string {
	for _, w := range m.words {
		if name, ok := strings.CutPrefix(w, Lie); ok {
			return name
		}
	}
	return ""
}

// lies answers a request with the lie, if it is time for it.
func (m *machine) lies(q agentapi.Request, c *agentapi.Conn, st *mux.Stream) bool {
	name := m.lie()
	switch {
	case name == inShutdown && q.Op == agentapi.OpShutdown:
		_, _ = st.Write([]byte("K\x00\x00\x00\x05hal"))
		select {}
	case name == belowShutdown && q.Op == agentapi.OpShutdown:
		m.channel.seize(lie{next: once(append(frames12(0, 0, firstStream+2*Commands, 100), "half"...))})
		select {}
	case name == inHello && q.Op == agentapi.OpHello:
		loud := strings.Repeat("\x1b]0;boo\a", 8_000)
		_ = c.WriteJSON(agentapi.KindOK, agentapi.Hello{Version: agentapi.Version, Agent: loud, Release: loud, BootID: loud, Init: loud})
	case q.Op != agentapi.OpExec:
		return false
	case streamLies[name] != nil:
		streamLies[name](c, st)
		select {} // and never ends the stream
	case channelLies[name].next != nil:
		m.channel.seize(channelLies[name])
		select {}
	default:
		return false
	}
	return true
}

// streamLies are answers to a command.
var streamLies = map[string]func(*agentapi.Conn, *mux.Stream){
	"no-answer":          func(*agentapi.Conn, *mux.Stream) {},
	"a-frame-of-4-GiB":   func(_ *agentapi.Conn, st *mux.Stream) { _, _ = st.Write([]byte("K\xff\xff\xff\xff")) },
	"half-a-frame":       func(_ *agentapi.Conn, st *mux.Stream) { _, _ = st.Write([]byte("K\x00\x10\x00\x00{")) },
	"an-unknown-frame":   func(c *agentapi.Conn, _ *mux.Stream) { _ = c.Write('?', []byte("\x1b[2J")) },
	"no-JSON":            func(c *agentapi.Conn, _ *mux.Stream) { _ = c.Write(agentapi.KindOK, []byte("\x1b[2J")) },
	"deep-JSON":          func(c *agentapi.Conn, _ *mux.Stream) { _ = c.Write(agentapi.KindOK, bytes.Repeat([]byte("["), 1<<20)) },
	"a-megabyte-of-no":   func(c *agentapi.Conn, _ *mux.Stream) { refuse(c, strings.Repeat("\x1b]52;c;AAAA\a", 80_000)) },
	"an-exit-before-all": func(c *agentapi.Conn, _ *mux.Stream) { _ = c.WriteJSON(agentapi.KindExit, agentapi.Exit{}) },
	"an-impossible-exit": func(c *agentapi.Conn, _ *mux.Stream) {
		started(c)
		_ = c.WriteJSON(agentapi.KindExit, agentapi.Exit{Code: -7, Signal: 4711})
	},
	"a-wrong-window": func(c *agentapi.Conn, _ *mux.Stream) {
		started(c)
		_ = c.Write(agentapi.KindWindow, []byte("\xff\xff\xff\xff"))
		_ = c.Write(agentapi.KindWindow, []byte("much more"))
	},
	"output-without-end": func(c *agentapi.Conn, _ *mux.Stream) {
		started(c)
		for c.Write(agentapi.KindStdout, make([]byte, agentapi.Chunk)) == nil {
		}
	},
	"errors-without-end": func(c *agentapi.Conn, _ *mux.Stream) {
		started(c)
		for c.Write(agentapi.KindStderr, nil) == nil {
		}
	},
}

func refuse(c *agentapi.Conn, text string) {
	_ = c.WriteJSON(agentapi.KindError, agentapi.Error{Code: agentapi.ErrorCode(text[:100]), Msg: text})
}

func started(c *agentapi.Conn) { _ = c.WriteJSON(agentapi.KindOK, agentapi.Started{PID: -1}) }

// firstStream is the first command's: hello, identity and watch were 1, 3 and 5.
const firstStream = 7

// Commands is how many commands a liar expects before its shutdown.
const Commands = 4

// channelLies are what the channel carries from the first command on. The
// function returns the i-th piece, nil to say nothing more; the guest reads
// nothing any more if it is deaf.
var channelLies = map[string]lie{
	"pings-without-end":          {next: func(int) []byte { return frames12(2, 1, 0, 1) }},
	"pings-to-nobody":            {next: func(int) []byte { return frames12(2, 1, 0, 1) }, deaf: true},
	"streams-without-end":        {next: func(i int) []byte { return frames12(1, 1, uint32(2+2*i), 0) }},
	"ends-of-no-streams":         {next: func(i int) []byte { return frames12(1, 4, uint32(1001+2*i), 0) }},
	"resets-without-end":         {next: func(int) []byte { return frames12(1, 8, firstStream, 0) }, deaf: true},
	"farewells-without-end":      {next: func(int) []byte { return frames12(3, 0, 0, 0) }},
	"half-a-body":                {next: once(append(frames12(0, 0, firstStream, 1<<20), "half"...))},
	"a-body-of-4-GiB":            {next: once(append(frames12(0, 0, firstStream, 1<<32-1), "half"...))},
	"bodies-against-the-window":  {next: func(int) []byte { return append(frames12(0, 0, firstStream, 64<<10), make([]byte, 64<<10)...) }, deaf: true},
	"bodies-for-nobody":          {next: func(i int) []byte { return append(frames12(0, 0, uint32(9001+2*i), 64<<10), make([]byte, 64<<10)...) }},
	"windows-that-overflow":      {next: func(int) []byte { return frames12(1, 0, firstStream, 1<<32-1) }},
	"noise":                      {next: func(int) []byte { return noise(4096) }},
	"hellos-of-somebody-else":    {next: func(int) []byte { return []byte("\xf1\x010123456789abcdef0123456789abcdef") }},
	"no-session-again-and-again": {next: func(int) []byte { return []byte("\xf1\x02") }},
	"not-a-byte-read":            {next: func(int) []byte { return nil }, deaf: true},
}

// frames12 is a frame's header as it travels: type, flags, stream, length.
func frames12(kind byte, flags uint16, stream, length uint32) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, kind}, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, length)
	return bytes.ReplaceAll(b, []byte{0xf1}, []byte{0xf1, 0})
}

func once(b []byte) func(int) []byte {
	return func(i int) []byte {
		if i > 0 {
			return nil
		}
		return b
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// A lie is what a seized channel carries.
type lie struct {
	next func(i int) []byte
	deaf bool
}

// A channel is the agent's port, until a lie seizes it.
type channel struct {
	*port
	mu     sync.Mutex // held by Write
	seized bool
	deaf   chan struct{} // closed: nothing is read any more
}

// Write writes what the honest guest says, and forgets it later on.
func (c *channel) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seized {
		return len(b), nil
	}
	return c.port.Write(b)
}

// Read reads nothing when the guest is deaf.
func (c *channel) Read(b []byte) (int, error) {
	select {
	case <-c.deaf:
		select {}
	default:
	}
	return c.port.Read(b)
}

// mostLies is how much a lie says before it falls silent: enough to be felt.
const mostLies = 48 << 20

// seize takes the channel over for good.
func (c *channel) seize(l lie) {
	c.mu.Lock()
	taken := c.seized
	c.seized = true
	c.mu.Unlock()
	if taken {
		return
	}
	if l.deaf {
		close(c.deaf)
	}
	var b []byte
	for i, said := 0, 0; said < mostLies; i++ {
		piece := l.next(i)
		b = append(b, piece...)
		if len(b) >= 64<<10 || piece == nil {
			if _, err := c.port.Write(b); err != nil || piece == nil {
				return
			}
			said += len(b)
			b = b[:0]
		}
	}
}
