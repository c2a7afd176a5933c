package agent

import (
	"context"
	"encoding/binary"
	"sync"

	"banger/internal/agentapi"
)

// exec runs a command with frames for its stdin and output.
func (s *Server) exec(ctx context.Context, st Stream, conn *agentapi.Conn, x agentapi.Exec) error {
	p, err := s.start(x, "")
	if err != nil {
		return err
	}
	// From here on the process is waited for, whatever happens.
	defer context.AfterFunc(ctx, p.hangup)()
	in := newInlet(p.stdin, p.pty != nil, acknowledge(conn))
	var wg sync.WaitGroup
	defer wg.Wait()
	if ok(conn, agentapi.Started{PID: p.pid}) != nil {
		p.hangup()
	}
	wg.Go(s.guarded(func() {
		// The stream ends before the command does: its client is gone. After
		// Exit this is the client's way to say that it has it.
		defer p.hangup()
		control(conn, p, in)
	}))
	kinds := []agentapi.Kind{agentapi.KindStdout, agentapi.KindStderr}
	exit := s.run(p, in, func(i int, b []byte) {
		// A client that is gone is seen by control; the rest is thrown away.
		_ = conn.Write(kinds[i], b)
	})
	if conn.WriteJSON(agentapi.KindExit, exit) != nil || st.CloseWrite() != nil {
		_ = st.Close() // ends control
	}
	return nil
}

// control handles the client's frames until the stream ends. It never waits
// for the process.
func control(conn *agentapi.Conn, p *process, in *inlet) {
	for {
		k, b, err := conn.Read()
		if err != nil {
			return
		}
		switch k {
		case agentapi.KindStdin:
			err = in.add(b)
		case agentapi.KindResize:
			var size agentapi.Winsize
			if err = agentapi.Decode(b, &size); err == nil {
				p.resize(size)
			}
		case agentapi.KindSignal:
			var sig agentapi.Signal
			if err = agentapi.Decode(b, &sig); err == nil {
				p.signal(sig.Number)
			}
		default:
			return
		}
		if err != nil {
			return
		}
	}
}

// acknowledge returns a function that tells the client how much stdin has been
// consumed, a quarter of the window at a time.
func acknowledge(conn *agentapi.Conn) func(int) {
	owed := 0
	return func(n int) {
		if owed += n; owed < agentapi.StdinWindow/4 {
			return
		}
		_ = conn.Write(agentapi.KindWindow, binary.BigEndian.AppendUint32(nil, uint32(owed)))
		owed = 0
	}
}

// run moves a process's stdin and output until it has ended, and returns how.
// out gets the number of the output (0 stdout or terminal, 1 stderr) and its
// bytes; it has returned for the last time when run does.
func (s *Server) run(p *process, in *inlet, out func(int, []byte)) agentapi.Exit {
	var pumps, feeder sync.WaitGroup
	outlets := make([]*outlet, len(p.output))
	for i, f := range p.output {
		o := &outlet{f: f, pty: p.pty != nil, sink: func(b []byte) { out(i, b) }}
		outlets[i] = o
		pumps.Go(s.guarded(o.pump))
	}
	feeder.Go(s.guarded(in.pump))
	exit := p.wait()
	in.stop()
	feeder.Wait()
	for _, o := range outlets {
		o.finish()
	}
	pumps.Wait()
	for _, o := range outlets {
		if o.open && !o.pty {
			go o.discard() // ends with the last background process that has the pipe
			continue
		}
		_ = o.f.Close()
	}
	return exit
}
