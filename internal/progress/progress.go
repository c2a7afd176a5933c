// Package progress tells a user how a long piece of work goes: a line that is
// redrawn on a terminal, one plain line per phase elsewhere.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"banger/internal/api"
	"banger/internal/recipe"
	"banger/internal/size"
)

// Config says where progress is told. Only Title and Out are required.
type Config struct {
	Title string
	Out   io.Writer
	// Terminal redraws one line on Out.
	Terminal bool
	// Silent tells nothing but notices.
	Silent bool
}

// A Bar is one piece of work. Its methods may be called from several
// goroutines; the last call is End.
type Bar struct {
	c     Config
	began time.Time

	// now is read by the line's own goroutine, which show must not make wait
	// while it waits for that goroutine: so it is not guarded by mu.
	now     atomic.Pointer[state]
	stopped atomic.Bool

	mu   sync.Mutex
	bars *mpb.Progress // nil without a terminal, and after End
	bar  *mpb.Bar
}

// state is what the line says.
type state struct {
	phase, detail string
	done, total   int64 // total is 0 where it is not known
	steps         bool  // not bytes
}

// New begins to tell.
func New(c Config) *Bar {
	p := &Bar{c: c, began: time.Now()}
	p.now.Store(&state{})
	if c.Terminal && !c.Silent {
		p.bars = mpb.New(mpb.WithOutput(c.Out), mpb.WithRefreshRate(120*time.Millisecond))
	}
	return p
}

func (p *Bar) note(format string, args ...any) {
	p.mu.Lock()
	bars := p.bars
	p.mu.Unlock()
	line := fmt.Sprintf("banger: "+format+"\n", args...)
	if bars != nil { // above the line, which is redrawn
		_, _ = io.WriteString(bars, line)
		return
	}
	_, _ = io.WriteString(p.c.Out, line)
}

// show makes the line say s; without a phase, it is one more of the same.
func (p *Bar) show(s state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.now.Load()
	if s.phase == "" {
		s.phase = last.phase
	}
	p.now.Store(&s)
	switch {
	case p.c.Silent || p.c.Terminal && p.bars == nil: // ended
	case p.bars == nil:
		if s.phase != last.phase {
			fmt.Fprintf(p.c.Out, "banger: %s: %s\n", p.c.Title, s.phase)
		}
	case p.bar == nil:
		p.bar = p.bars.New(0, mpb.NopStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Any(func(st decor.Statistics) string {
				return p.line(time.Since(p.began), min(st.AvailableWidth, 80))
			})))
	}
}

// barWidth is that of the bar inside its brackets.
const barWidth = 20

// line is the whole line, at most width columns wide.
func (p *Bar) line(elapsed time.Duration, width int) string {
	s := *p.now.Load()
	if p.stopped.Load() {
		s = state{phase: "stopping"}
	}
	words := []string{p.c.Title + ": " + s.phase}
	if s.total > 0 && (s.done > 0 || s.steps) {
		full := int(barWidth * min(s.done, s.total) / s.total)
		bar := strings.Repeat("=", full)
		if full < barWidth {
			bar += ">" + strings.Repeat(" ", barWidth-full-1)
		}
		words = append(words, "["+bar+"]")
	}
	switch {
	case s.steps && s.total > 0:
		words = append(words, fmt.Sprintf("%3d%%", min(s.done, s.total)*100/s.total))
	case s.total > 0 && s.done > 0:
		words = append(words, bytes(s.done)+" of "+bytes(s.total))
	case !s.steps && s.done > 0:
		words = append(words, bytes(s.done))
	}
	words = append(words, seconds(elapsed), s.detail)
	text := []rune(strings.TrimSpace(strings.Join(words, " ")))
	// The last column would wrap, and so would the ^C that a terminal echoes.
	return string(text[:min(len(text), max(width-3, 1))])
}

// seconds is Short without the tenths, which would only flicker.
func seconds(d time.Duration) string { return d.Truncate(time.Second).String() }

// Event shows what the daemon tells.
func (p *Bar) Event(ev api.Event) error {
	switch ev.Type {
	case api.EventWait:
		p.show(state{phase: "waiting for another pull"})
	case api.EventPhase:
		p.show(state{phase: ev.Phase})
	case api.EventProgress:
		p.show(state{phase: ev.Phase, done: ev.Done, total: ev.Total})
	case api.EventNotice:
		p.note("%s", ev.Text)
	}
	return nil
}

// Boot shows what the daemon tells of a VM that is made.
func (p *Bar) Boot(ev api.Event) error {
	switch {
	case ev.Type == api.EventStarted:
		p.show(state{phase: "kernel"})
	case ev.Type == api.EventStage && ev.Stage == api.StageAgent:
		p.show(state{phase: "system"})
	case ev.Type == api.EventStage && ev.Stage == api.StageSockets:
		p.show(state{phase: "services"})
	case ev.Type == api.EventPhase && ev.Phase != "guest": // the kernel, as said by then
		p.show(state{phase: ev.Phase})
	case ev.Type == api.EventNotice:
		p.note("%s", ev.Text)
	}
	return nil
}

// word is what a phase of a build is called where its name says too little.
func word(p recipe.Phase) string {
	switch p {
	case recipe.PhaseIndex:
		return "package lists"
	case recipe.PhaseBase:
		return "base system"
	case recipe.PhaseCustomise:
		return "settings"
	case recipe.PhaseEnd:
		return "finish"
	}
	return string(p)
}

// Recipe shows what a build tells.
func (p *Bar) Recipe(u recipe.Progress) {
	p.show(state{
		phase: word(u.Phase), detail: u.Detail, done: u.Done, total: u.Total,
		steps: u.Phase != recipe.PhasePack && u.Phase != recipe.PhaseFetch,
	})
}

// Reader shows how far r has been read.
func (p *Bar) Reader(r io.Reader, total int64) io.Reader {
	return &countingReader{r: r, tell: func(n int64) { p.show(state{phase: "convert", done: n, total: total}) }}
}

// Stop says that the work is being given up, which may take a while, until End.
func (p *Bar) Stop() { p.stopped.Store(true) }

// End takes the line away. It may be called twice.
func (p *Bar) End() {
	p.mu.Lock()
	bars, bar := p.bars, p.bar
	p.bars, p.bar = nil, nil
	p.mu.Unlock()
	if bar != nil {
		bar.Abort(true)
	}
	if bars != nil {
		bars.Wait()
	}
}

// countingReader tells at most once per mebibyte.
type countingReader struct {
	r       io.Reader
	n, told int64
	tell    func(int64)
}

// Read reads on.
func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if c.n-c.told >= 1<<20 || c.told == 0 {
		c.told = c.n
		c.tell(c.n)
	}
	return n, err
}

// Short prints a duration for people: 850ms, 4.2s, 1m35s.
func Short(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func bytes(n int64) string { return size.Bytes(n).Short() }
