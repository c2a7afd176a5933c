package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"banger/internal/agentapi"
)

// dialTimeout bounds how long a connection may take: within the guest it is
// there at once or never.
const dialTimeout = 30 * time.Second

// dial connects the stream with a socket of the guest.
func (s *Server) dial(ctx context.Context, st Stream, conn *agentapi.Conn, d agentapi.Dial) error {
	if d.Network != "tcp" && d.Network != "unix" {
		return refuse(agentapi.CodeInvalid, "cannot connect to network %q, only tcp and unix", d.Network)
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	c, err := dialer.DialContext(ctx, d.Network, d.Address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return refuse(agentapi.CodeFailed, "nothing listens there")
	}
	if err != nil {
		return refuse(agentapi.CodeFailed, "%v", err)
	}
	half, isHalf := c.(Stream)
	if !isHalf {
		_ = c.Close()
		return fmt.Errorf("%T cannot be half-closed", c)
	}
	if err := ok(conn, struct{}{}); err != nil {
		_ = c.Close()
		return err
	}
	splice(ctx, st, half)
	return nil
}

// splice connects two streams until both directions have ended, and closes
// them. The end of one direction is passed on, an error ends both.
func splice(ctx context.Context, a, b Stream) {
	both := func() {
		_ = a.Close()
		_ = b.Close()
	}
	defer both()
	defer context.AfterFunc(ctx, both)()
	var wg sync.WaitGroup
	for _, d := range [][2]Stream{{a, b}, {b, a}} {
		wg.Go(func() {
			to, from := d[0], d[1]
			if _, err := io.Copy(onlyWriter{to}, onlyReader{from}); err != nil || to.CloseWrite() != nil {
				both()
			}
		})
	}
	wg.Wait()
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo: splicing in the kernel
// gains nothing here, and its code is not small.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }
