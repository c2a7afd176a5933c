package progress

import "time"

// A Timer cuts the time of a command into named phases without gaps: a phase
// ends where the next begins, so their sum is the whole. The zero Timer is
// ready; one goroutine uses it.
type Timer struct {
	phases []Phase
	began  time.Time
}

// Phase is a part of a command's time.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Timings are the phases of a command, in order, and their sum.
type Timings struct {
	Phases []Phase `json:"phases"`
	Total  float64 `json:"total_seconds"`
}

// Start ends the phase before and begins another. The same name again goes on
// with the phase.
func (t *Timer) Start(name string) {
	now := time.Now()
	if n := len(t.phases); n > 0 {
		if t.phases[n-1].Name == name {
			return
		}
		t.phases[n-1].Seconds = now.Sub(t.began).Seconds()
	}
	t.began = now
	t.phases = append(t.phases, Phase{Name: name})
}

// Done ends the last phase and adds up.
func (t *Timer) Done() Timings {
	out := Timings{Phases: []Phase{}}
	if n := len(t.phases); n > 0 {
		t.phases[n-1].Seconds = time.Since(t.began).Seconds()
	}
	for _, p := range t.phases {
		out.Total += p.Seconds
		out.Phases = append(out.Phases, p)
	}
	return out
}
