package answer

import (
	"errors"
	"fmt"
	"io"

	"banger/internal/api"
)

// ErrTold is returned for what has been told already, as part of the answer.
var ErrTold = errors.New("not all was done, as the answer says")

// An Outcome is what became of one of several VMs, images or kernels.
type Outcome struct {
	Ref     string       `json:"ref"`
	Machine *api.Machine `json:"machine,omitempty"`
	Image   *api.Image   `json:"image,omitempty"`
	Kernel  *api.Kernel  `json:"kernel,omitempty"`
	Error   *api.Error   `json:"error,omitempty"`
}

// Name is the name of what it is about, or what stood for it.
func (o Outcome) Name() string {
	switch {
	case o.Machine != nil:
		return o.Machine.Name
	case o.Image != nil:
		return o.Image.Name
	case o.Kernel != nil:
		return o.Kernel.Name
	}
	return o.Ref
}

// A Deed is the word for what was done; m is nil for what is no VM, and where
// it was not done.
type Deed func(m *api.Machine) string

// Did is a deed whose word is always the same.
func Did(word string) Deed { return func(*api.Machine) string { return word } }

// Tell prints outcomes. The error is that of the only one, or a count.
func (p Printer) Tell(outcomes []Outcome, done Deed) error {
	var failed []*api.Error
	for _, o := range outcomes {
		if o.Error != nil {
			failed = append(failed, o.Error)
		}
	}
	if len(outcomes) == 1 && len(failed) == 1 && !p.JSON {
		return failed[0]
	}
	err := p.Print(outcomes, func(w io.Writer) {
		for _, o := range outcomes {
			if o.Error == nil {
				fmt.Fprintf(w, "%s %s\n", o.Name(), done(o.Machine))
			} else {
				p.Report(o.Error)
			}
		}
	})
	switch {
	case err != nil || len(failed) == 0:
		return err
	case p.JSON:
		return ErrTold
	}
	return &api.Error{Code: failed[0].Code, Msg: fmt.Sprintf("%d of %d were not %s", len(failed), len(outcomes), done(nil))}
}
