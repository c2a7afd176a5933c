package daemon

import (
	"encoding/json"
	"errors"
	"os"
	"sync"

	"banger/internal/api"
)

// An Announcer tells whoever started the daemon how that went: one line, once;
// see [api.ReadyFD]. Nothing is said by one without a file.
type Announcer struct {
	mu sync.Mutex
	f  *os.File
}

// NewAnnouncer says it on f, which it closes; f may be nil.
func NewAnnouncer(f *os.File) *Announcer { return &Announcer{f: f} }

// Ready says that the socket accepts connections.
func (a *Announcer) Ready() { a.say([]byte(api.ReadyLine)) }

// Failed says why there will be no daemon, unless it was ready before.
func (a *Announcer) Failed(err error) {
	b, merr := json.Marshal(api.AsError(err))
	if merr != nil { // an api.Error has only strings
		b = []byte(`{"code":"internal","message":"the daemon could not say why"}`)
	}
	a.say(b)
}

func (a *Announcer) say(line []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.f == nil {
		return
	}
	// Whoever started the daemon may be gone by now, which is no loss.
	_, err := a.f.Write(append(line, '\n'))
	_ = errors.Join(err, a.f.Close())
	a.f = nil
}
