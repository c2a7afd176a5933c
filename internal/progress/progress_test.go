package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/recipe"
)

func TestLine(t *testing.T) {
	for _, tt := range []struct {
		name  string
		show  func(*Bar)
		width int
		want  string
	}{
		{"steps", func(p *Bar) {
			p.Recipe(recipe.Progress{Phase: recipe.PhaseInstall, Detail: "jq", Done: 1, Total: 4})
		}, 80, "image x: install [=====>              ]  25% 1m13s jq"},
		{"all steps", func(p *Bar) {
			p.Recipe(recipe.Progress{Phase: recipe.PhaseDownload, Done: 9, Total: 4})
		}, 80, "image x: download [====================] 100% 1m13s"},
		{"a source is asked", func(p *Bar) {
			p.Recipe(recipe.Progress{Phase: recipe.PhaseFetch, Detail: "mise 1", Total: 9})
		}, 80, "image x: fetch 1m13s mise 1"},
		{"given up", func(p *Bar) {
			p.Stop()
			p.Recipe(recipe.Progress{Phase: recipe.PhaseInstall, Detail: "jq", Done: 1, Total: 4})
		}, 80, "image x: stopping 1m13s"},
		{"nothing known", func(p *Bar) {
			p.Recipe(recipe.Progress{Phase: recipe.PhaseBase})
		}, 80, "image x: base system 1m13s"},
		{"bytes after steps", func(p *Bar) {
			p.Recipe(recipe.Progress{Phase: recipe.PhaseInstall, Done: 1, Total: 4})
			p.Recipe(recipe.Progress{Phase: recipe.PhasePack, Done: 8 << 20})
		}, 80, "image x: pack 8MiB 1m13s"},
		{"bytes of bytes", func(p *Bar) {
			p.Recipe(recipe.Progress{Phase: recipe.PhaseFetch, Detail: "mise 1", Done: 1 << 20, Total: 2 << 20})
		}, 80, "image x: fetch [==========>         ] 1MiB of 2MiB 1m13s mise 1"},
		{"a shared pull", func(p *Bar) {
			_ = p.Event(api.Event{Type: api.EventWait})
			_ = p.Event(api.Event{Type: api.EventProgress, Done: 1 << 20})
		}, 80, "image x: waiting for another pull 1MiB 1m13s"},
		{"a narrow terminal", func(p *Bar) {
			p.Recipe(recipe.Progress{Phase: recipe.PhaseBase})
		}, 20, "image x: base sys"},
		{"a boot", func(p *Bar) {
			_ = p.Boot(api.Event{Type: api.EventStarted})
			_ = p.Boot(api.Event{Type: api.EventPhase, Phase: "guest"})
		}, 80, "image x: kernel 1m13s"},
		{"the guest's init", func(p *Bar) {
			_ = p.Boot(api.Event{Type: api.EventStage, Stage: api.StageAgent})
		}, 80, "image x: system 1m13s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := New(Config{Title: "image x", Out: io.Discard})
			tt.show(p)
			if got := p.line(73*time.Second+400*time.Millisecond, tt.width); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestPlain is without a terminal: a line per phase, and no more.
func TestPlain(t *testing.T) {
	var out strings.Builder
	p := New(Config{Title: "kernel k", Out: &out})
	for i := range int64(3) {
		p.Recipe(recipe.Progress{Phase: recipe.PhaseIndex})
		p.Recipe(recipe.Progress{Phase: recipe.PhaseBase, Done: i, Total: 3})
	}
	_ = p.Event(api.Event{Type: api.EventNotice, Text: "something to know"})
	p.End()
	p.End()
	want := strings.Repeat("banger: kernel k: package lists\nbanger: kernel k: base system\n", 3) + "banger: something to know\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("output (-want +got):\n%s", d)
	}
}

func TestSilent(t *testing.T) {
	var out strings.Builder
	p := New(Config{Title: "x", Out: &out, Terminal: true, Silent: true})
	p.Recipe(recipe.Progress{Phase: recipe.PhaseIndex})
	p.End()
	if out.String() != "" {
		t.Errorf("got %q, want nothing", &out)
	}
}

// TestTerminal looks at what reaches a terminal: the line is redrawn and gone
// in the end, a notice stays.
func TestTerminal(t *testing.T) {
	terminal, tty := openTerminal(t)
	got := make(chan string)
	go func() { // ends with an error when the other side is closed
		b, _ := io.ReadAll(terminal)
		got <- string(b)
	}()
	p := New(Config{Title: "image x", Out: tty, Terminal: true})
	p.Recipe(recipe.Progress{Phase: recipe.PhaseInstall, Done: 1, Total: 4})
	_ = p.Event(api.Event{Type: api.EventNotice, Text: "something to know"})
	p.End()
	p.Recipe(recipe.Progress{Phase: recipe.PhasePack}) // late: nobody is told
	tty.Close()
	out := <-got
	if !strings.Contains(out, "banger: something to know\r\n") {
		t.Errorf("the notice is not in %q", out)
	}
	if end := out[strings.LastIndexByte(out, '\n')+1:]; strings.Contains(end, "image x") {
		t.Errorf("the line is still there at the end: %q", end)
	}
	if strings.Contains(out, "pack") {
		t.Errorf("a phase was told after the end: %q", out)
	}
}

// openTerminal makes one of 80 columns: what it shows, and where to write.
func openTerminal(t *testing.T) (shows, tty *os.File) {
	t.Helper()
	shows, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shows.Close() })
	if err := unix.IoctlSetPointerInt(int(shows.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(shows.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return shows, tty
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 849600 * time.Microsecond: "850ms", 4230 * time.Millisecond: "4.2s", 95400 * time.Millisecond: "1m35s",
	} {
		if got := Short(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}
