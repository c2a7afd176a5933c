package session

import (
	"context"
	"io"

	"banger/internal/agentapi"
	"banger/internal/guest"
)

// Packer writes a workspace as a tar.
type Packer interface {
	WriteTar(ctx context.Context, w io.Writer, progress func(written int64)) error
}

// Bring streams a workspace into dir of the guest, as soon as its agent answers.
func (s Session) Bring(ctx context.Context, p Packer, dir string) error {
	stream, err := s.stream(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	_, err = guest.Put(ctx, stream, agentapi.Put{Dir: dir}, func(w io.Writer) error {
		return p.WriteTar(ctx, w, nil)
	})
	return err
}
