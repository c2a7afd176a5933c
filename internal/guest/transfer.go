package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"banger/internal/agentapi"
	"banger/internal/api"
	"banger/internal/printable"
)

// maxSkipped is how many names of files that were left out are told; a proper
// agent sends no more.
const maxSkipped = 100

// errAnswered stops a pack function whose tar nobody reads any more.
var errAnswered = errors.New("the guest has ended the copy")

// Put unpacks the tar that pack writes below a directory of the guest. If pack
// fails, its error is returned and the guest ends without claiming success; if
// the guest fails, pack's next Write does, and the guest's error is returned.
// What was unpacked before an error stays in the guest. Put closes the stream.
func Put(ctx context.Context, s Stream, p agentapi.Put, pack func(io.Writer) error) (agentapi.Done, error) {
	doing := fmt.Sprintf("copying into %q in the guest", p.Dir)
	if err := exactPath(doing, p.Dir, p.As); err != nil {
		_ = s.Close()
		return agentapi.Done{}, err
	}
	c, stop, err := begin(ctx, s, doing, agentapi.Request{Op: agentapi.OpPut, Put: &p}, &struct{}{})
	if err != nil {
		return agentapi.Done{}, err
	}
	defer s.Close()
	defer stop()

	a := &answer{ready: make(chan struct{})}
	go func() {
		defer close(a.ready)
		if a.done, a.err = c.done(); a.err != nil {
			_ = s.Close() // ends a Write that waits
		}
	}()
	w := &dataWriter{conn: c.conn, answered: a.ready}
	bw := bufio.NewWriterSize(w, agentapi.Chunk)
	perr := pack(bw)
	if perr == nil {
		perr = bw.Flush()
	}
	if perr == nil {
		perr = w.end()
	}
	if perr == nil || w.err != nil {
		<-a.ready // the guest's own word tells more than a failed write
		if a.err == nil && w.err != nil {
			a.err = c.broken(agentapi.KindDone) // success before the end of the tar
		}
		return a.done, a.err
	}
	_ = s.Close()
	<-a.ready
	if _, ok := errors.AsType[*agentapi.Error](a.err); ok {
		return agentapi.Done{}, a.err // it failed first
	}
	if cause := c.cause(); cause != nil {
		perr = cause
	}
	return agentapi.Done{}, fmt.Errorf("%s: %w", doing, perr)
}

// answer is how a put ended.
type answer struct {
	ready chan struct{} // closed when the rest is set
	done  agentapi.Done
	err   error
}

// done reads the frame that ends a put.
func (c *call) done() (agentapi.Done, error) {
	k, b, err := c.conn.Read()
	switch {
	case err != nil:
		return agentapi.Done{}, c.lost(err)
	case k == agentapi.KindError:
		return agentapi.Done{}, c.refused(b)
	case k != agentapi.KindDone:
		return agentapi.Done{}, c.broken(k)
	}
	return c.decodeDone(b)
}

func (c *call) decodeDone(b []byte) (agentapi.Done, error) {
	var d agentapi.Done
	if err := agentapi.Decode(b, &d); err != nil {
		return agentapi.Done{}, c.lost(err)
	}
	d.Files, d.Bytes = max(d.Files, 0), max(d.Bytes, 0)
	d.Skipped = d.Skipped[:min(len(d.Skipped), maxSkipped)]
	for i := range d.Skipped {
		d.Skipped[i] = printable.Line(d.Skipped[i], 300)
	}
	return d, nil
}

// dataWriter sends bytes as data frames until the guest has answered.
type dataWriter struct {
	conn     *agentapi.Conn
	answered <-chan struct{}
	err      error // why nothing more is written
}

func (w *dataWriter) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		k := min(len(b)-n, agentapi.Chunk)
		if err := w.send(b[n : n+k]); err != nil {
			return n, err
		}
		n += k
	}
	return len(b), nil
}

// end sends the empty frame: the tar is whole.
func (w *dataWriter) end() error { return w.send(nil) }

func (w *dataWriter) send(b []byte) error {
	select {
	case <-w.answered:
		w.err = errAnswered
	default:
	}
	if w.err == nil {
		w.err = w.conn.Write(agentapi.KindData, b)
	}
	return w.err
}

// Get writes a tar of a file or directory of the guest to w. The tar is the
// guest's: names, sizes and its very form are to be distrusted, and its length
// has no bound but w's errors, which end the transfer. On an error w has got
// part of a tar. Get closes the stream.
func Get(ctx context.Context, s Stream, g agentapi.Get, w io.Writer) (agentapi.Done, error) {
	doing := fmt.Sprintf("copying %q from the guest", g.Path)
	if err := exactPath(doing, g.Path); err != nil {
		_ = s.Close()
		return agentapi.Done{}, err
	}
	c, stop, err := begin(ctx, s, doing, agentapi.Request{Op: agentapi.OpGet, Get: &g}, &struct{}{})
	if e, ok := errors.AsType[*api.Error](err); ok {
		if ge, ok := errors.AsType[*agentapi.Error](err); ok && ge.Code == agentapi.CodeNotFound {
			e.Code = api.NotFound
		}
	}
	if err != nil {
		return agentapi.Done{}, err
	}
	defer s.Close()
	defer stop()
	var d agentapi.Done
	for {
		k, b, err := c.conn.Read()
		if err != nil {
			return d, c.lost(err)
		}
		switch {
		case k == agentapi.KindData && len(b) == 0:
			return d, nil
		case k == agentapi.KindData:
			if _, err := w.Write(b); err != nil {
				return d, fmt.Errorf("%s: %w", doing, err)
			}
		case k == agentapi.KindDone:
			if d, err = c.decodeDone(b); err != nil {
				return d, err
			}
		case k == agentapi.KindError:
			return d, c.refused(b)
		default:
			return d, c.broken(k)
		}
	}
}
