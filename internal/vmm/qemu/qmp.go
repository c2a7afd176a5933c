package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"banger/internal/vmm"
)

// maxMessage is the longest QMP message that is read, in bytes. The longest
// that QEMU sends unasked has some hundred.
const maxMessage = 64 << 10

// qmp is a conversation with QEMU's control socket.
type qmp struct {
	conn net.Conn
	in   *bufio.Scanner

	done chan struct{} // closed when nothing more comes

	mu     sync.Mutex
	reason string
}

// message is any message of QMP, as far as we listen.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Reason string `json:"reason"`
	} `json:"data"`
}

// Boot is Attach: the guest runs as soon as QEMU has its connections.
func (d Driver) Boot(ctx context.Context, conn net.Conn, _ vmm.Config) (vmm.Control, error) {
	return d.Attach(ctx, conn)
}

// Attach negotiates QMP on conn and listens from then on. It waits for QEMU's
// greeting, as long as ctx allows. On an error conn is closed.
func (Driver) Attach(ctx context.Context, conn net.Conn) (vmm.Control, error) {
	q := &qmp{conn: conn, in: bufio.NewScanner(conn), done: make(chan struct{})}
	q.in.Buffer(make([]byte, 0, 4096), maxMessage)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := q.negotiate(); err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("attaching to QEMU: %w", err)
	}
	go q.listen()
	return q, nil
}

func (q *qmp) negotiate() error {
	m, err := q.next()
	if err != nil {
		return err
	}
	if m.QMP == nil {
		return errors.New("it does not greet as QMP does")
	}
	if _, err := q.conn.Write([]byte("{\"execute\":\"qmp_capabilities\"}\n")); err != nil {
		return err
	}
	for {
		switch m, err := q.next(); {
		case err != nil:
			return err
		case m.Error != nil:
			return fmt.Errorf("it refused: %.200q", m.Error.Desc)
		case m.Return != nil:
			return nil
		default:
			q.note(m)
		}
	}
}

// next returns the next message.
func (q *qmp) next() (message, error) {
	if !q.in.Scan() {
		if err := q.in.Err(); err != nil {
			return message{}, err
		}
		return message{}, errors.New("it closed the connection")
	}
	var m message
	if err := json.Unmarshal(q.in.Bytes(), &m); err != nil {
		return message{}, fmt.Errorf("reading a message: %v", err)
	}
	return m, nil
}

func (q *qmp) listen() {
	defer close(q.done)
	for {
		m, err := q.next()
		if err != nil {
			return
		}
		q.note(m)
	}
}

// note keeps what an event says of the end. A panic stays the reason, whatever
// QEMU does about it.
func (q *qmp) note(m message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case m.Event == "GUEST_PANICKED":
		q.reason = vmm.EndPanic
	case m.Event == "SHUTDOWN" && q.reason == "":
		q.reason = word(m.Data.Reason)
	}
}

// word translates QEMU's ShutdownCause to the words of package vmm.
func word(cause string) string {
	switch cause {
	case "guest-shutdown":
		return vmm.EndShutdown
	case "guest-reset":
		return vmm.EndReset
	case "guest-panic":
		return vmm.EndPanic
	case "host-signal":
		return vmm.EndSignal
	}
	return ""
}

// Ended waits until QEMU has closed the conversation.
func (q *qmp) Ended(ctx context.Context) string {
	select {
	case <-q.done:
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.reason
}

// Close ends the conversation.
func (q *qmp) Close() error {
	if err := q.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("leaving QEMU: %w", err)
	}
	return nil
}
