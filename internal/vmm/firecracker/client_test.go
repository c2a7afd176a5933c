package firecracker_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/vmm/firecracker"
)

// serve plays Firecracker: it answers each request with the next of the answers,
// and closes the connection then. What it was asked comes on the channel.
func serve(t *testing.T, answers ...string) (*firecracker.Client, <-chan string) {
	t.Helper()
	ours, theirs := net.Pipe()
	asked := make(chan string, len(answers)+1)
	go func() {
		defer theirs.Close()
		defer close(asked)
		r := bufio.NewReader(theirs)
		for _, a := range answers {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			b, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			asked <- strings.TrimSpace(req.Method + " " + req.URL.Path + " " + string(b))
			if _, err := io.WriteString(theirs, a); err != nil {
				return
			}
		}
	}()
	c := firecracker.NewClient(ours)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, asked
}

const (
	noContent = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
	info      = "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 75\r\n\r\n" +
		`{"id":"banger-1","state":"Running","vmm_version":"1.12.1","app_name":"Fc"} `
)

func TestDo(t *testing.T) {
	c, asked := serve(t, noContent, info)
	if err := c.Do(t.Context(), firecracker.PutVsock(firecracker.Vsock{CID: 3, Path: "/s/v.sock"}), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := <-asked, `PUT /vsock {"guest_cid":3,"uds_path":"/s/v.sock"}`; got != want {
		t.Errorf("it was asked %q, want %q", got, want)
	}
	var i firecracker.InstanceInfo
	if err := c.Do(t.Context(), firecracker.GetInstance(), &i); err != nil || i.State != firecracker.StateRunning || i.Version != "1.12.1" {
		t.Errorf("Do() = %+v, %v; want it running", i, err)
	}
	<-c.Closed()
	if err := c.Do(t.Context(), firecracker.GetInstance(), &i); err == nil {
		t.Error("Do() after the end = nil, want an error")
	}
}

func TestRefusalHasFirecrackersWords(t *testing.T) {
	c, _ := serve(t, "HTTP/1.1 400 \r\ncontent-length: 38\r\n\r\n"+`{"fault_message":"no \u001b[31mdisk"} `)
	err := c.Do(t.Context(), firecracker.Start(), nil)
	e, ok := errors.AsType[*api.Error](err)
	if !ok || !strings.Contains(e.Msg, "disk") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("Do() = %q, want its words, printable", err)
	}
}

// Whatever it answers, it costs no more than an answer may, and no time.
func TestHostileAnswers(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":             "",
		"no HTTP":             "SSH-2.0-OpenSSH\r\n",
		"no status":           "HTTP/1.1 \r\n\r\n",
		"a line without end":  "HTTP/1.1 200 " + strings.Repeat("x", 1<<16),
		"a head without end":  "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 1000),
		"a huge body":         "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
		"a negative body":     "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"half a body":         "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
		"no JSON":             "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>",
		"two answers at once": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>" + info,
	} {
		c, _ := serve(t, answer)
		var i firecracker.InstanceInfo
		if err := c.Do(t.Context(), firecracker.GetInstance(), &i); err == nil {
			t.Errorf("%s: Do() = %+v, want an error", name, i)
		}
	}
}

func TestDoEndsWithItsContext(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() { _, _ = io.Copy(io.Discard, theirs) }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := firecracker.NewClient(ours).Do(ctx, firecracker.GetInstance(), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Do() = %v, want the deadline", err)
	}
}

func TestAttach(t *testing.T) {
	for state, want := range map[string]bool{"Running": true, "Paused": true, "Not started": false} {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err != nil {
				return
			}
			b := `{"state":"` + state + `"}`
			_, _ = io.WriteString(theirs, "HTTP/1.1 200 OK\r\nContent-Length: "+string(rune('0'+len(b)/10))+string(rune('0'+len(b)%10))+"\r\n\r\n"+b)
		}()
		c, err := firecracker.Driver{}.Attach(t.Context(), ours)
		if (err == nil) != want {
			t.Errorf("Attach() of one that is %q = %v, want success: %v", state, err, want)
		}
		if err != nil {
			continue
		}
		if why := c.Ended(t.Context()); why != "" {
			t.Errorf("Ended() = %q, want nothing", why)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
