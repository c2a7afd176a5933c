package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is the JSON of a run.
type report struct {
	Began  time.Time  `json:"began"`
	Host   host       `json:"host"`
	Pairs  int        `json:"pairs"`
	Rows   []reported `json:"rows"`
	errors []error
}

// host is what one must know to read figures that are not ratios.
type host struct {
	CPUs    int    `json:"cpus"`
	Model   string `json:"cpu_model"`
	Kernel  string `json:"kernel"`
	VMM     string `json:"vmm"`
	Driver  string `json:"driver"`
	Version string `json:"banger"`
	Load    string `json:"load_at_start"`
}

// reported is one row.
type reported struct {
	Name    string  `json:"name"`
	What    string  `json:"what"`
	Unit    string  `json:"unit,omitempty"` // "" is a ratio
	Bar     float64 `json:"bar,omitempty"`
	Goal    float64 `json:"goal,omitempty"`
	Verdict verdict `json:"verdict"`
	// Figure is what the bar is for: pairwise ratios, or values.
	Figure *summary  `json:"figure,omitempty"`
	Values []float64 `json:"values,omitempty"`
	A      *told     `json:"a,omitempty"`
	B      *told     `json:"b,omitempty"`
	// CPURatio is of the processor time, pairwise: it hardly moves with what
	// else the machine does, but knows nothing of waiting.
	CPURatio *summary `json:"cpu_ratio,omitempty"`
	Note     string   `json:"note,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// told is one side of a row, in seconds.
type told struct {
	Wall summary `json:"wall_seconds"`
	CPU  summary `json:"cpu_seconds"`
}

func newReport(ctx context.Context, l *lab, pairs int) *report {
	r := &report{Began: time.Now().UTC().Truncate(time.Second), Pairs: pairs}
	vmm, err := output(l.command(ctx, l.bare.argv[0], "--version"))
	if err == nil {
		vmm, _, _ = strings.Cut(vmm, "\n")
	}
	load := strings.Fields(firstLine("/proc/loadavg"))
	r.Host = host{
		CPUs: runtime.NumCPU(), Model: field("/proc/cpuinfo", "model name"), Kernel: firstLine("/proc/sys/kernel/osrelease"),
		VMM: vmm, Driver: l.hello.Driver, Version: l.hello.Version, Load: strings.Join(load[:min(3, len(load))], " "),
	}
	return r
}

func firstLine(name string) string {
	b, _ := os.ReadFile(name) // "" says that it is not known
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// field is the value of the first "key : value" line of a file.
func field(name, key string) string {
	b, _ := os.ReadFile(name) // "" says that it is not known
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// add takes the result of a row. What was measured before it was interrupted is
// told with the error.
func (r *report) add(row row, m measured) {
	out := reported{Name: row.name, What: row.what, Unit: row.unit, Bar: row.bar, Goal: row.goal, Note: m.note, Verdict: plain}
	if m.err != nil {
		out.Error = m.err.Error()
		r.errors = append(r.errors, fmt.Errorf("measuring %s: %w", row.name, m.err))
	}
	out.Values = m.values
	if rs := ratios(walls(m.a), walls(m.b)); out.Values == nil && len(rs) > 0 {
		out.Values = rs
	}
	if len(out.Values) > 0 {
		s := summarize(out.Values)
		out.Figure, out.Verdict = &s, judge(s.Median, row.bar, row.goal)
	}
	if len(m.a) > 0 && len(m.b) > 0 {
		out.A = &told{summarize(walls(m.a)), summarize(cpus(m.a))}
		out.B = &told{summarize(walls(m.b)), summarize(cpus(m.b))}
		if rs := ratios(cpus(m.a), cpus(m.b)); len(rs) > 0 { // NaN cannot be written as JSON
			cpu := summarize(rs)
			out.CPURatio = &cpu
		}
	}
	r.Rows = append(r.Rows, out)
}

// failed is what could not be measured.
func (r *report) failed() error { return errors.Join(r.errors...) }

// print writes the table to w and the JSON behind it, or to a file.
func (r *report) print(w io.Writer, file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the JSON: %w", err)
	}
	b = append(b, '\n')
	if err := r.table(w); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	if file != "" {
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return fmt.Errorf("writing the JSON: %w", err)
		}
		return nil
	}
	if _, err := fmt.Fprintf(w, "\n%s", b); err != nil {
		return fmt.Errorf("printing the JSON: %w", err)
	}
	return nil
}

// table prints medians, with quartiles in brackets.
func (r *report) table(w io.Writer) error {
	fmt.Fprintf(w, "%s, %d CPUs (%s), kernel %s, %s, load %s, up to %d pairs\n\n", r.Host.Driver, r.Host.CPUs, r.Host.Model, r.Host.Kernel, r.Host.VMM, r.Host.Load, r.Pairs)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROW\tFIGURE\t[QUARTILES]\tBAR\tGOAL\tVERDICT\tN\tBANGER s [QUARTILES]\tCPU s\tOTHER s [QUARTILES]\tCPU s\tCPU RATIO")
	for _, row := range r.Rows {
		fmt.Fprintln(t, strings.Join(row.cells(), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%s: %s\n", row.Name, row.What)
		if row.Note != "" {
			fmt.Fprintf(w, "    %s\n", row.Note)
		}
		if row.Error != "" {
			fmt.Fprintf(w, "    not measured to the end: %s\n", strings.ReplaceAll(row.Error, "\n", "\n    "))
		}
	}
	return nil
}

func (x reported) cells() []string {
	cells := []string{x.Name, "-", "-", number(x.Bar), number(x.Goal), string(x.Verdict), "-", "-", "-", "-", "-", "-"}
	if x.Error != "" && x.Figure == nil {
		cells[5] = "not measured"
	}
	if x.Figure != nil {
		cells[1] = strings.TrimSpace(number(x.Figure.Median) + " " + x.Unit)
		cells[2] = quartiles(*x.Figure)
		cells[6] = fmt.Sprint(x.Figure.N)
	}
	for i, side := range []*told{x.A, x.B} {
		if side != nil {
			cells[7+2*i] = number(side.Wall.Median) + " " + quartiles(side.Wall)
			cells[8+2*i] = number(side.CPU.Median)
		}
	}
	if x.CPURatio != nil {
		cells[11] = number(x.CPURatio.Median)
	}
	return cells
}

func quartiles(s summary) string { return "[" + number(s.Q1) + " " + number(s.Q3) + "]" }

// number has three digits that count, so that seconds and milliseconds can
// both be read; 0 is nothing.
func number(x float64) string {
	if x == 0 || math.IsNaN(x) {
		return "-"
	}
	digits := min(max(2-int(math.Floor(math.Log10(math.Abs(x)))), 0), 4)
	return fmt.Sprintf("%.*f", digits, x)
}
