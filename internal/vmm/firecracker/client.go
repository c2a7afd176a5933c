package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"banger/internal/api"
	"banger/internal/printable"
)

// What an answer may have at most: a Firecracker whose guest has broken out of
// it must not cost more than this.
const (
	maxAnswer = 1 << 20
	maxLine   = 4 << 10 // of its head
	maxLines  = 50
	maxFault  = 300
)

// A Client speaks to one Firecracker, over one connection which is its own. It
// may be used by several goroutines.
//
// The little of HTTP/1.1 that Firecracker speaks is here: one request at a time
// on a connection that stays, bodies with a length, no transfer encodings.
type Client struct {
	conn    net.Conn
	answers chan answer
	closed  chan struct{} // when nothing more comes

	turn sync.Mutex // held by the one request that is under way
}

// An answer is what came for a request.
type answer struct {
	status int
	body   []byte
}

// errGone is the end of the conversation.
var errGone = errors.New("it has closed the connection")

// NewClient returns a client on conn, which it owns from then on.
func NewClient(conn net.Conn) *Client {
	c := &Client{conn: conn, answers: make(chan answer), closed: make(chan struct{})}
	go c.listen()
	return c
}

// listen reads answers until the connection ends.
func (c *Client) listen() {
	defer close(c.closed)
	defer func() { _ = c.conn.Close() }()
	r := bufio.NewReaderSize(c.conn, maxLine)
	for {
		a, err := read(r)
		if err != nil {
			return
		}
		if c.turn.TryLock() { // nobody has asked anything
			c.turn.Unlock()
			return
		}
		c.answers <- a
	}
}

// read reads one answer.
func read(r *bufio.Reader) (a answer, err error) {
	line, err := headLine(r)
	if err != nil {
		return a, err
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	if a.status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(version, "HTTP/1.") {
		return a, fmt.Errorf("reading an answer: it begins with %.40q", line)
	}
	length := 0
	for range maxLines {
		if line, err = headLine(r); err != nil {
			return a, err
		}
		if line == "" {
			a.body = make([]byte, length)
			_, err = io.ReadFull(r, a.body)
			return a, err
		}
		name, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(name, "Content-Length") {
			continue
		}
		if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil || length < 0 || length > maxAnswer {
			return a, fmt.Errorf("reading an answer: it has a length of %.40q", value)
		}
	}
	return a, errors.New("reading an answer: its head has no end")
}

// headLine reads a line of an answer's head.
func headLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n')
	if err != nil {
		return "", fmt.Errorf("reading an answer: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// Closed is closed when the conversation is over: Firecracker has ended, or
// Close was called.
func (c *Client) Closed() <-chan struct{} { return c.closed }

// Close ends the conversation; the machine runs on.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("leaving Firecracker: %w", err)
	}
	return nil
}

// Do makes a call and decodes its answer into reply, unless that is nil. What
// Firecracker refuses is an [*api.Error] with its words. When ctx ends before
// the answer has come, so does the conversation.
func (c *Client) Do(ctx context.Context, call Call, reply any) error {
	if err := c.do(ctx, call, reply); err != nil {
		return fmt.Errorf("asking Firecracker for %v: %w", call, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, call Call, reply any) error {
	b, err := call.request()
	if err != nil {
		return err
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	defer stop()
	_, err = c.conn.Write(b)
	var a answer
	if err == nil {
		select {
		case a = <-c.answers:
		case <-c.closed:
			err = errGone
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case a.status >= 300:
		return &api.Error{Code: api.Internal, Msg: "Firecracker refused: " + fault(a)}
	case reply == nil:
		return nil
	}
	if err := json.Unmarshal(a.body, reply); err != nil {
		return fmt.Errorf("reading the answer: %v", err)
	}
	return nil
}

// request is the call as it is sent.
func (c Call) request() ([]byte, error) {
	var body []byte
	if c.Body != nil {
		var err error
		if body, err = json.Marshal(c.Body); err != nil {
			return nil, err
		}
	}
	if strings.ContainsAny(c.Path, " \r\n") {
		return nil, fmt.Errorf("%q cannot be a path", c.Path)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n", c.Method, c.Path)
	if body != nil {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes(), nil
}

// fault is what Firecracker says of a refusal.
func fault(a answer) string {
	var f struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(a.body, &f) != nil || f.Message == "" {
		f.Message = "status " + strconv.Itoa(a.status)
	}
	return printable.Line(f.Message, maxFault)
}
