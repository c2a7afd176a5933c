package recipe

import (
	"bytes"
	"cmp"
	"strconv"
	"strings"
	"sync"

	"banger/internal/printable"
)

// tailLines is how much of mmdebstrap's output goes with an error.
const tailLines = 20

// reporter turns mmdebstrap's output into progress, and keeps its end.
type reporter struct {
	mu       sync.Mutex
	report   func(Progress)
	now      Progress
	phase    Phase // of the installing that goes on
	packages int64 // how many apt announced last
	gets     int64 // of them, those fetched
	steps    int64 // of them, those unpacked plus those set up
	tail     []string
	rest     []byte   // a line whose end has not come
	problems []string // lines that say what went wrong
}

// say reports a phase that does not come from mmdebstrap's output.
func (r *reporter) say(p Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = p
	if r.report != nil {
		r.report(p)
	}
}

// maxLine is where a line without an end is cut.
const maxLine = 64 << 10

// Write takes a piece of the output, for the process's standard error.
func (r *reporter) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rest = append(r.rest, b...)
	for {
		l, rest, ok := bytes.Cut(r.rest, []byte("\n"))
		if !ok {
			break
		}
		r.line(string(l))
		r.rest = rest
	}
	if len(r.rest) > maxLine {
		r.rest = r.rest[:0]
	}
	r.rest = append([]byte(nil), r.rest...) // let go of what was read
	return len(b), nil
}

// line takes one line of mmdebstrap, apt or dpkg.
func (r *reporter) line(l string) {
	l = printable.Line(l, 400)
	r.tail = append(r.tail, l)
	if len(r.tail) > tailLines {
		r.tail = r.tail[1:]
	}
	if p, ok := r.step(l); ok {
		r.now = p
		if r.report != nil {
			r.report(p)
		}
	}
}

// step is what a line means; false if it means no progress.
func (r *reporter) step(l string) (Progress, bool) {
	if own, ok := strings.CutPrefix(l, "I: "); ok {
		return r.own(own)
	}
	f := strings.Fields(l)
	switch {
	case strings.HasPrefix(l, "E: ") || strings.HasPrefix(l, "Err:") || strings.HasPrefix(l, "dpkg: error"):
		r.problems = append(r.problems, l)
	case strings.Contains(l, " newly installed, "):
		for i, w := range f {
			if n, err := strconv.ParseInt(w, 10, 64); err == nil && i+1 < len(f) && f[i+1] == "newly" {
				r.packages = n
			}
		}
	case len(f) >= 5 && strings.HasPrefix(f[0], "Get:") && r.packages > 0:
		r.gets++
		return Progress{PhaseDownload, f[4], r.gets, max(r.packages, r.gets)}, true
	case len(f) >= 2 && f[0] == "Unpacking", len(f) >= 3 && f[0] == "Setting" && f[1] == "up":
		r.steps++
		name := f[1]
		if f[0] == "Setting" {
			name = f[2]
		}
		return Progress{cmp.Or(r.phase, PhaseInstall), name, r.steps, max(2*r.packages, r.steps)}, true
	}
	return Progress{}, false
}

// own is what a line of mmdebstrap itself means.
func (r *reporter) own(l string) (Progress, bool) {
	for _, begin := range []struct {
		prefix string
		phase  Phase
	}{
		{"running apt-get update", PhaseIndex},
		{"downloading packages", PhaseDownload},
		{"extracting archives", PhaseBase},
		{"installing essential packages", PhaseBase},
		{"installing remaining packages", PhaseInstall},
		{"running --extract-hook", PhaseCustomise},
		{"running --customize-hook", PhaseCustomise},
		{"creating tarball", PhasePack},
	} {
		if strings.HasPrefix(l, begin.prefix) {
			r.phase, r.gets, r.steps = begin.phase, 0, 0
			if begin.phase == PhaseInstall {
				r.packages = 0 // apt counts anew
			}
			return Progress{Phase: begin.phase}, true
		}
	}
	return Progress{}, false
}
