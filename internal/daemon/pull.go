package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"banger/internal/api"
	"banger/internal/claim"
	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/names"
	"banger/internal/recipe"
)

// pullable is what images and kernels have in common when they are pulled: one
// client runs the recipe and sends the tar, the others wait for it.
type pullable[T any] struct {
	noun    string
	book    *claim.Book[T]
	catalog func() []recipe.Recipe
	find    func(ctx context.Context, name string) (T, error)
	room    func(need int64) error
	build   func(ctx context.Context, name string, r io.Reader, progress func(int64)) (T, error)
	result  func(T) api.Event
}

// source is what an image or kernel of the catalog says of where it is from.
func source(name string) string { return "catalog:" + name }

// fromCatalog is the recipe of that name.
func (p *pullable[T]) fromCatalog(name string) (recipe.Recipe, error) {
	for _, r := range p.catalog() {
		if r.Name == name {
			return r, nil
		}
	}
	return recipe.Recipe{}, &api.Error{
		Code: api.NotFound, Msg: fmt.Sprintf("the catalog has no %s %q", p.noun, name),
		Hint: fmt.Sprintf("see what there is: banger %s list --available", p.noun),
	}
}

// need is about what the store takes of a recipe: a build's work directory
// holds the packages and what comes out of them, the store only the latter.
func need(r recipe.Recipe) int64 { return r.Room / 2 }

// pull answers POST .../pull: see [api.PullRequest].
func (p *pullable[T]) pull(c *call) error {
	var req api.PullRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	name := c.r.PathValue("ref")
	if err := names.CheckImage(name); err != nil {
		return err
	}
	ctx, s := c.stream()
	have := func() (T, bool, error) {
		v, err := p.find(ctx, name)
		if req.Force || api.CodeOf(err) == api.NotFound && err != nil {
			return v, false, nil
		}
		return v, err == nil, err
	}
	if v, ok, err := have(); ok || err != nil {
		return p.tell(s, v, err)
	}
	r, err := p.fromCatalog(name)
	if err != nil {
		return err
	}
	if err := p.room(need(r)); err != nil {
		return err
	}
	cl := p.book.Join(name)
	defer cl.Leave()
	for {
		t, err := cl.Next(ctx)
		if err != nil {
			return err
		}
		switch t.Kind {
		case claim.Over:
			return p.tell(s, t.Value, t.Err)
		case claim.Wait:
			s.emit(api.Event{Type: api.EventWait})
		case claim.Progress:
			s.emit(api.Event{Type: api.EventProgress, Done: t.Done})
		case claim.Build:
			// It may have been finished between the first look and Join.
			if v, ok, err := have(); ok || err != nil {
				return p.tell(s, v, err)
			}
			s.emit(api.Event{Type: api.EventBuild, Build: &api.Build{Ticket: t.Ticket}})
		}
	}
}

// tell ends a stream with its result.
func (p *pullable[T]) tell(s *stream, v T, err error) error {
	if err != nil {
		return err
	}
	s.emit(p.result(v))
	return nil
}

// put answers PUT .../build/TICKET: the tar of the one who builds.
func (p *pullable[T]) put(c *call) error {
	name := c.r.PathValue("ref")
	ctx, w, err := p.book.Begin(c.r.Context(), name, c.r.PathValue("ticket"))
	if errors.Is(err, claim.ErrTicket) {
		return &api.Error{Code: api.Conflict, Msg: fmt.Sprintf("nobody waits for this build of %s", name), Hint: fmt.Sprintf("banger %s pull %s", p.noun, name)}
	}
	if err != nil {
		return err
	}
	var v T
	b := c.body(ctx)
	defer func() { // also of a panic: nobody may wait for ever
		// The end of the work ends ctx, which must not touch the connection any
		// more: the client's next request is on it.
		b.release()
		if b.err != nil || ctx.Err() != nil {
			w.Abandon(&api.Error{Code: api.Interrupted, Msg: fmt.Sprintf("the build of %s was cut off", name), Hint: fmt.Sprintf("banger %s pull %s", p.noun, name)})
			return
		}
		w.Done(v, err)
	}()
	err = errors.New("the build ended in a bug")
	v, err = p.build(ctx, name, b, w.Progress)
	if err != nil {
		return err
	}
	return c.empty()
}

// body is the body of a request that may take as long as it likes.
type body struct {
	r       io.Reader
	err     error // what ended it, other than its end
	release func()
}

// body returns the request's body, whose reads end when ctx does.
func (c *call) body(ctx context.Context) *body {
	b := &body{r: c.r.Body}
	stop := context.AfterFunc(ctx, func() {
		// It can only fail on a connection that has ended by itself.
		_ = c.ctl.SetReadDeadline(time.Now())
	})
	b.release = func() { stop() }
	return b
}

// Read reads, and remembers why it could not.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (d *Daemon) pullImages(book *claim.Book[api.Image]) pullable[api.Image] {
	return pullable[api.Image]{
		noun: "image", book: book, catalog: recipe.Images, find: d.findImage, room: d.images.Room,
		build: func(ctx context.Context, name string, r io.Reader, progress func(int64)) (api.Image, error) {
			return d.images.Import(ctx, image.Import{Name: name, Source: source(name), Replace: true, Progress: progress}, r)
		},
		result: func(i api.Image) api.Event { return api.Event{Type: api.EventResult, Image: &i} },
	}
}

func (d *Daemon) pullKernels(book *claim.Book[api.Kernel]) pullable[api.Kernel] {
	return pullable[api.Kernel]{
		noun: "kernel", book: book, catalog: recipe.Kernels, find: d.findKernel, room: d.kernels.Room,
		build: func(ctx context.Context, name string, r io.Reader, progress func(int64)) (api.Kernel, error) {
			return d.kernels.Import(ctx, kernel.Import{Name: name, Source: source(name), Replace: true, Progress: progress}, r)
		},
		result: func(k api.Kernel) api.Event { return api.Event{Type: api.EventResult, Kernel: &k} },
	}
}

func (d *Daemon) pullImage(c *call) error   { return d.pulls.images.pull(c) }
func (d *Daemon) buildImage(c *call) error  { return d.pulls.images.put(c) }
func (d *Daemon) pullKernel(c *call) error  { return d.pulls.kernels.pull(c) }
func (d *Daemon) buildKernel(c *call) error { return d.pulls.kernels.put(c) }

// importImage answers PUT /images/NAME: any root tar becomes an image.
func (d *Daemon) importImage(c *call) error {
	// Events go out while the tar comes in.
	if err := c.ctl.EnableFullDuplex(); err != nil {
		return fmt.Errorf("reading a tar: %w", err)
	}
	// A full-duplex request that ends before its body would be taken for the next
	// one: net/http panics in the connection's own goroutine.
	c.w.Header().Set("Connection", "close")
	d.imports.Add(1)
	defer d.imports.Add(-1)
	ctx, s := c.stream()
	b := c.body(ctx)
	defer b.release()
	imp := image.Import{Name: c.r.PathValue("ref"), Source: "import", Need: max(c.r.ContentLength, 0)}
	imp.Progress = func(done int64) {
		s.emit(api.Event{Type: api.EventProgress, Done: done, Total: max(c.r.ContentLength, 0)})
	}
	im, err := d.images.Import(ctx, imp, b)
	if err != nil {
		return err
	}
	s.emit(api.Event{Type: api.EventResult, Image: &im})
	return nil
}
