package machine

import (
	"time"

	"banger/internal/api"
)

// A teller tells a caller what happens. It is used by one goroutine at a time:
// the caller's, which waits while the owner works for it.
type teller struct {
	emit    func(api.Event) // may be nil
	told    api.Stage
	attempt int
}

func (t *teller) tell(e api.Event) {
	if t.emit == nil {
		return
	}
	e.At = time.Now()
	t.emit(e)
}

func (t *teller) phase(name string)  { t.tell(api.Event{Type: api.EventPhase, Phase: name}) }
func (t *teller) notice(text string) { t.tell(api.Event{Type: api.EventNotice, Text: text}) }

// machine tells the VM as it is now.
func (t *teller) machine(kind api.EventType, v *vm) {
	m := v.machine()
	e := api.Event{Type: kind, Machine: &m}
	if kind == api.EventStarted {
		e.Attempt = t.attempt
	}
	t.tell(e)
}

// stages tells each stage up to now once, in order.
func (t *teller) stages(now api.Stage) {
	for _, s := range []api.Stage{api.StageAgent, api.StageSockets, api.StageBoot} {
		if now.Reached(s) && !t.told.Reached(s) {
			t.told = s
			t.tell(api.Event{Type: api.EventStage, Stage: s})
		}
	}
}
