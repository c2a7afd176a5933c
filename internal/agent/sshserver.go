package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/agentapi"
)

// ownSSH is the ssh server for images that have none: public keys only,
// sessions with commands, shells and terminals, and forwards to TCP ports.
func (s *Server) ownSSH(ctx context.Context, st Stream, conn *agentapi.Conn) error {
	pem, err := os.ReadFile(s.HostKey)
	if err != nil {
		return fmt.Errorf("reading the host key: %w", err)
	}
	key, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return fmt.Errorf("reading the host key: %w", err)
	}
	if err := ok(conn, struct{}{}); err != nil {
		return err
	}
	config := &ssh.ServerConfig{ServerVersion: "SSH-2.0-banger", PublicKeyCallback: s.authorized}
	config.AddHostKey(key)
	defer context.AfterFunc(ctx, func() { _ = st.Close() })()
	sc, channels, requests, err := ssh.NewServerConn(&streamConn{Stream: st}, config)
	if err != nil {
		return errGone // the client has been told within ssh
	}
	defer sc.Close()
	ctx, cancel := context.WithCancel(ctx) // ends what the connection's end finds running
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { ssh.DiscardRequests(requests) })
	for nc := range channels {
		wg.Go(s.guarded(func() {
			switch nc.ChannelType() {
			case "session":
				s.session(ctx, sc.User(), nc)
			case "direct-tcpip":
				forward(ctx, nc)
			default:
				_ = nc.Reject(ssh.UnknownChannelType, "banger's own ssh server has sessions and TCP forwards only")
			}
		}))
	}
	return nil
}

// authorized accepts the keys of the identity for every user, and those of a
// user's own file.
func (s *Server) authorized(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	who, err := findAccount(c.User())
	if err != nil {
		return nil, err
	}
	for _, path := range []string{s.AuthorizedKeys, filepath.Join(who.home, ".ssh/authorized_keys")} {
		rest, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for len(rest) > 0 {
			var k ssh.PublicKey
			if k, _, _, rest, err = ssh.ParseAuthorizedKey(rest); err != nil {
				break // no further key
			}
			if bytes.Equal(k.Marshal(), key.Marshal()) {
				return &ssh.Permissions{}, nil
			}
		}
	}
	return nil, errors.New("unknown key")
}

// forward connects a channel with a TCP port, as seen from the guest.
func forward(ctx context.Context, nc ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &to); err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(to.Host, fmt.Sprint(to.Port)))
	if err != nil {
		_ = nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	ch, requests, err := nc.Accept()
	if err != nil {
		_ = c.Close()
		return
	}
	go ssh.DiscardRequests(requests) // ends with the channel
	if half, is := c.(Stream); is {
		splice(ctx, ch, half)
	}
}

// streamConn makes a net.Conn of a stream, which has no addresses and no
// deadlines; ssh asks for neither.
type streamConn struct{ Stream }

func (*streamConn) LocalAddr() net.Addr              { return streamAddr{} }
func (*streamConn) RemoteAddr() net.Addr             { return streamAddr{} }
func (*streamConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (*streamConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (*streamConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type streamAddr struct{}

func (streamAddr) Network() string { return "banger" }
func (streamAddr) String() string  { return "host" }
