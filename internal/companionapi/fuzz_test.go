package companionapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/companionapi"
)

// Whatever the first line is, the companion gets a request of its version or an
// error, and reads no further than a line may be long.
func FuzzReadRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"op":"status"}` + "\n"))
	f.Add([]byte(`{"version":1,"op":"kill","signal":-1,"timeout_ns":1e99}` + "\n"))
	f.Add([]byte("[[[[\n"))
	f.Add(bytes.Repeat([]byte("x"), companionapi.MaxLine+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		q, err := companionapi.ReadRequest(bufio.NewReader(r))
		if err == nil && q.Version != companionapi.Version {
			t.Errorf("ReadRequest(%q) = %+v", b, q)
		}
		if read := len(b) - r.Len(); read > companionapi.MaxLine+4096 {
			t.Errorf("%d bytes were read of a line", read)
		}
		if err == nil {
			return
		}
		if _, merr := json.Marshal(companionapi.Reply{Error: api.AsError(err)}); merr != nil {
			t.Errorf("the answer to %q cannot be sent: %v", b, merr)
		}
	})
}

// A companion that answers nonsense, or without end, is an error in time.
func TestClientOfANonsensicalCompanion(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing": "", "no JSON": "\x1b[2J\n", "no status": "{}\n", "half": `{"status":`, "a line without end": string(bytes.Repeat([]byte("x"), companionapi.MaxLine+1)),
	} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = bufio.NewReader(c).ReadBytes('\n')
			_, _ = io.WriteString(c, answer)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if s, err := companionapi.New(path).Status(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("%s: Status() = %+v, %v; want an error", name, s, err)
		}
		cancel()
		l.Close()
	}
}
