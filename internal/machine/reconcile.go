package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"banger/internal/api"
	"banger/internal/disk"
	"banger/internal/host"
	"banger/internal/machine/rows"
)

// A finding is what a census finds of one id: as a sentence, and what to do.
type finding struct {
	text string
	mend func(ctx context.Context) error // nil: nothing can be done
}

// Census counts what there is and names what no row explains. VMs with an
// operation under way are left out of the leaks. Images are not its business.
func (x *Index) Census(ctx context.Context) (api.Census, error) {
	c, _, err := x.survey(ctx)
	return c, err
}

// Reconcile releases what no row explains and returns what is there then. One
// pass runs at a time.
func (x *Index) Reconcile(ctx context.Context) (api.Census, error) {
	select {
	case x.sweep <- struct{}{}:
		defer func() { <-x.sweep }()
	case <-ctx.Done():
		return api.Census{}, interrupted(ctx, "reconciling")
	}
	_, findings, err := x.survey(ctx)
	if err != nil {
		return api.Census{}, err
	}
	var problems error
	for _, f := range findings {
		if f.mend == nil {
			continue
		}
		x.cfg.Log.Warn("reconciling", "found", f.text)
		if err := f.mend(ctx); err != nil {
			problems = errors.Join(problems, fmt.Errorf("mending %q: %w", f.text, err))
		}
	}
	c, err := x.Census(ctx)
	return c, errors.Join(problems, err)
}

// survey compares the host, the directories and the rows. The rows are looked
// at before and after: a VM that changed meanwhile says nothing.
func (x *Index) survey(ctx context.Context) (api.Census, []finding, error) {
	before := x.snapshots()
	held, err := x.cfg.Host.Census(ctx)
	if err != nil {
		return api.Census{}, nil, fmt.Errorf("counting what the host holds: %w", err)
	}
	dirs, err := x.table.IDs()
	if err != nil {
		return api.Census{}, nil, err
	}
	after := x.snapshots()

	c := api.Census{
		VMMs: []int{}, Companions: []int{}, Disks: []string{}, RunDirs: []string{},
		Staging: []string{}, Leaks: []string{},
	}
	found := map[string]host.Held{}
	var findings []finding
	for _, h := range held {
		found[h.ID] = h
		count(&c, h)
		_, was := before[h.ID]
		if _, is := after[h.ID]; !was && !is {
			findings = append(findings, finding{
				fmt.Sprintf("%s has no VM: VMM %d, companion %d, %s", h.ID, h.VMM, h.Companion, h.Dir),
				func(ctx context.Context) error { return x.cfg.Host.Release(ctx, h.ID) },
			})
		}
	}
	for _, id := range dirs {
		if _, err := os.Lstat(filepath.Join(x.cfg.Dir, id, rows.DiskName)); err == nil {
			c.Disks = append(c.Disks, id)
		}
		_, was := before[id]
		if _, is := after[id]; !was && !is {
			dir := filepath.Join(x.cfg.Dir, id)
			findings = append(findings, finding{
				dir + " has no VM",
				func(context.Context) error { return os.RemoveAll(dir) },
			})
		}
	}
	for id, p := range after {
		if p.row.State == "" {
			continue // it has no row yet
		}
		c.Machines++
		if p.row.State == api.Running {
			c.Running++
		}
		if b, was := before[id]; was && !p.busy && b.version == p.version {
			findings = append(findings, x.compare(p, found[id])...)
		}
	}
	for _, f := range findings {
		c.Leaks = append(c.Leaks, f.text)
	}
	slices.Sort(c.Leaks)
	return c, findings, nil
}

// snapshots are all VMs by id, also those that have no row yet: what they have
// on the host is explained.
func (x *Index) snapshots() map[string]published {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make(map[string]published, len(x.byID))
	for id, v := range x.byID {
		all[id] = v.look()
	}
	return all
}

func count(c *api.Census, h host.Held) {
	if h.VMM != 0 {
		c.VMMs = append(c.VMMs, h.VMM)
	}
	if h.Companion != 0 {
		c.Companions = append(c.Companions, h.Companion)
	}
	if h.Dir != "" {
		c.RunDirs = append(c.RunDirs, h.ID)
	}
}

// compare tells how the row of a VM at rest differs from what there is.
func (x *Index) compare(p published, h host.Held) (findings []finding) {
	r := p.row
	switch {
	case r.State == api.Stopped && h.ID != "":
		findings = append(findings, finding{
			fmt.Sprintf("VM %q is stopped, but there are VMM %d, companion %d, %s", r.Name, h.VMM, h.Companion, h.Dir),
			func(ctx context.Context) error { return x.releaseStopped(ctx, r.ID) },
		})
	case r.State == api.Running && h.VMM == 0:
		findings = append(findings, finding{
			fmt.Sprintf("VM %q is running, but has no VMM", r.Name),
			func(ctx context.Context) error { return x.releaseStopped(ctx, r.ID) },
		})
	case r.State == api.Deleting:
		findings = append(findings, finding{
			fmt.Sprintf("VM %q is half deleted", r.Name),
			func(ctx context.Context) error { _, err := x.Delete(ctx, r.ID); return err },
		})
	}
	if r.Made && r.State != api.Deleting && disk.Used(filepath.Join(x.cfg.Dir, r.ID, rows.DiskName)) == 0 {
		findings = append(findings, finding{fmt.Sprintf("VM %q has no disk", r.Name), nil})
	}
	return findings
}

// releaseStopped releases a VM that should hold nothing, if that is still so;
// one whose VMM has gone is settled before, as before any operation.
func (x *Index) releaseStopped(ctx context.Context, id string) error {
	x.mu.Lock()
	v := x.byID[id]
	x.mu.Unlock()
	if v == nil {
		return nil // it has been deleted meanwhile
	}
	return v.ask(ctx, patient, func(context.Context) error {
		if v.row.State != api.Stopped {
			return nil
		}
		return x.cfg.Host.Release(ctx, id)
	})
}
