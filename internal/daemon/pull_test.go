package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/recipe"
)

// builder writes a root tar with one file of that name, and counts.
func builder(t *testing.T, name string, n *atomic.Int32) client.BuildFunc {
	return func(_ context.Context, w io.Writer) error {
		n.Add(1)
		var b bytes.Buffer
		writeTar(t, &b, map[string]string{name: "content"})
		_, err := w.Write(b.Bytes())
		return err
	}
}

func TestPullIsBuiltOnce(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	var built atomic.Int32
	var ids [8]string
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			im, err := c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, builder(t, "etc-os-release", &built), nil)
			if err != nil {
				t.Errorf("PullImage() = %v", err)
			}
			ids[i] = im.ID
		})
	}
	wg.Wait()
	if built.Load() != 1 || ids[0] == "" || len(slices.Compact(ids[:])) != 1 {
		t.Errorf("%d builds made %v, want one build and one image", built.Load(), ids)
	}
	im, err := c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, nil, nil)
	if err != nil || im.ID != ids[0] || im.Source != "catalog:"+recipe.DefaultImage {
		t.Errorf("PullImage() of what is there = %+v, %v", im, err)
	}
	clean(t, c)
	im, err = c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{Force: true}, builder(t, "another", &built), nil)
	if err != nil || im.ID == ids[0] || built.Load() != 2 {
		t.Errorf("PullImage() by force = %+v, %v after %d builds", im, err, built.Load())
	}
	if is, err := c.Images(t.Context()); err != nil || len(is) != 1 {
		t.Errorf("Images() = %v, %v; want one", is, err)
	}
	clean(t, c)
}

// The builder goes in every way there is; one who waits takes over.
func TestPullIsTakenOver(t *testing.T) {
	broken := errors.New("mmdebstrap ended with status 1")
	for name, build := range map[string]func(cancel context.CancelFunc) client.BuildFunc{
		"before a byte": func(context.CancelFunc) client.BuildFunc {
			return func(context.Context, io.Writer) error { return broken }
		},
		"in the middle": func(context.CancelFunc) client.BuildFunc {
			return func(_ context.Context, w io.Writer) error {
				_, err := w.Write(smallTar(t, "half")[:600])
				return errors.Join(broken, err)
			}
		},
		"at the very end": func(context.CancelFunc) client.BuildFunc {
			return func(_ context.Context, w io.Writer) error {
				_, err := w.Write(smallTar(t, "whole"))
				return errors.Join(broken, err)
			}
		},
		"interrupted": func(cancel context.CancelFunc) client.BuildFunc {
			return func(ctx context.Context, w io.Writer) error {
				_, err := w.Write(smallTar(t, "half")[:600])
				cancel()
				<-ctx.Done()
				return errors.Join(broken, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.serve(t, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			waits, told := make(chan struct{}), false
			var wg sync.WaitGroup
			fail := build(cancel)
			wg.Go(func() {
				_, err := c.PullImage(ctx, recipe.DefaultImage, api.PullRequest{}, func(ctx context.Context, w io.Writer) error {
					wg.Go(func() {
						defer func() {
							if !told {
								close(waits)
							}
						}()
						var built atomic.Int32
						im, err := c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, builder(t, "good", &built), func(ev api.Event) error {
							if ev.Type == api.EventWait && !told {
								told = true
								close(waits)
							}
							return nil
						})
						if err != nil || im.Name != recipe.DefaultImage || built.Load() != 1 {
							t.Errorf("PullImage() of the one who waits = %+v, %v after %d builds", im, err, built.Load())
						}
					})
					<-waits
					return fail(ctx, w)
				}, nil)
				if !errors.Is(err, broken) && !errors.Is(err, context.Canceled) {
					t.Errorf("PullImage() of the builder = %v, want %v", err, broken)
				}
			})
			wg.Wait()
			waitClean(t, c)
			if is, err := c.Images(t.Context()); err != nil || len(is) != 1 {
				t.Errorf("Images() = %v, %v; want the one", is, err)
			}
		})
	}
}

// A tar that is no good fails for all who wait: a second one would be the same.
func TestPullOfABadTarFailsForAll(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	bad := func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, strings.Repeat("no tar ", 1000))
		return err
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, bad, nil); api.CodeOf(err) != api.Invalid {
				t.Errorf("PullImage() = %v (%s), want invalid", err, api.CodeOf(err))
			}
		})
	}
	wg.Wait()
	clean(t, c)
}

func TestPullOfAKernelSaysWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	_, err := c.PullKernel(t.Context(), recipe.DefaultKernel, api.PullRequest{}, func(_ context.Context, w io.Writer) error {
		writeTar(t, w, map[string]string{"boot/vmlinuz-1": "x", "boot/config-1": "", "lib/modules/1/modules.dep.bin": "x"})
		return nil
	}, nil)
	if api.CodeOf(err) != api.Unsupported || !strings.Contains(err.Error(), "CONFIG_OVERLAY_FS") {
		t.Errorf("PullKernel() = %v (%s), want unsupported and what is missing", err, api.CodeOf(err))
	}
	if _, err := c.PullKernel(t.Context(), recipe.DefaultKernel, api.PullRequest{}, nil, nil); api.CodeOf(err) != api.Unsupported {
		t.Errorf("PullKernel() without a builder = %v, want unsupported", err)
	}
	stock(t, c)
	if ks, err := c.Kernels(t.Context()); err != nil || len(ks) != 1 || ks[0].Release != release {
		t.Errorf("Kernels() = %+v, %v", ks, err)
	}
	clean(t, c)
}

// A daemon that is killed in the middle of an import, and one that is told to
// end: the next one finds nothing half-made.
func TestImportThatTheDaemonDoesNotSurvive(t *testing.T) {
	w := newWorld(t)
	defer w.end(t)
	c := w.connect(t)
	_, err := c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, func(ctx context.Context, out io.Writer) error {
		if _, err := out.Write(smallTar(t, "half")[:600]); err != nil {
			return err
		}
		o, err := client.Connect(ctx, client.Options{Layout: w.layout})
		if err != nil {
			return err
		}
		defer o.Close()
		go func() { _ = o.Shutdown(context.WithoutCancel(ctx)) }()
		<-ctx.Done()
		return context.Cause(ctx)
	}, nil)
	if api.CodeOf(err) != api.Interrupted {
		t.Errorf("PullImage() from an ending daemon = %v (%s), want interrupted", err, api.CodeOf(err))
	}
	w.waitUnlocked(t)
	for _, point := range []string{"pull.staged", "pull.made", "pull.placed", "pull.named"} {
		o := w.options()
		o.Env = append(slices.Clone(o.Env), "BANGER_CRASH="+point)
		c, err := client.Connect(t.Context(), o)
		if err != nil {
			t.Fatalf("Connect() = %v", err)
		}
		var built atomic.Int32
		if _, err := c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, builder(t, point, &built), nil); err == nil {
			t.Errorf("PullImage() survived %s", point)
		}
		c.Close()
		w.waitUnlocked(t)
		again := w.connect(t)
		clean(t, again)
		is, err := again.Images(t.Context())
		if want := point == "pull.named"; err != nil || (len(is) == 1) != want {
			t.Errorf("after %s: Images() = %v, %v; want it there: %t", point, is, err, want)
		}
		w.end(t)
	}
	for _, point := range []string{"remove.unnamed", "remove.aside"} {
		o := w.options()
		var built atomic.Int32
		if _, err := w.connect(t).PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, builder(t, point, &built), nil); err != nil {
			t.Fatalf("PullImage() = %v", err)
		}
		w.end(t)
		o.Env = append(slices.Clone(o.Env), "BANGER_CRASH="+point)
		c, err := client.Connect(t.Context(), o)
		if err != nil {
			t.Fatalf("Connect() = %v", err)
		}
		if _, err := c.DeleteImage(t.Context(), recipe.DefaultImage); err == nil {
			t.Errorf("DeleteImage() survived %s", point)
		}
		c.Close()
		w.waitUnlocked(t)
		again := w.connect(t)
		clean(t, again)
		if is, err := again.Images(t.Context()); err != nil || len(is) != 0 {
			t.Errorf("after %s: Images() = %v, %v; want none", point, is, err)
		}
		w.end(t)
	}
}

// A client that never reads its events is cut off, and holds up nobody.
func TestClientThatDoesNotReadItsEvents(t *testing.T) {
	w := newWorld(t)
	c := w.serve(t, nil)
	im := make(chan error, 1)
	_, err := c.PullImage(t.Context(), recipe.DefaultImage, api.PullRequest{}, func(ctx context.Context, out io.Writer) error {
		// It waits, with a callback that does not return.
		stuck, joined := make(chan struct{}), make(chan struct{})
		go func() {
			_, err := c.PullImage(ctx, recipe.DefaultImage, api.PullRequest{}, nil, func(api.Event) error {
				select {
				case <-joined:
				default:
					close(joined)
				}
				<-stuck
				return nil
			})
			im <- err
		}()
		<-joined
		defer close(stuck)
		writeTar(t, out, map[string]string{"big": strings.Repeat("x", 64<<20)})
		return nil
	}, nil)
	if err != nil {
		t.Errorf("PullImage() beside one who does not read = %v", err)
	}
	select {
	case <-im: // a result or the end of its context: what matters is that it came
	case <-time.After(20 * time.Second):
		t.Error("the one who did not read got no end")
	}
	clean(t, c)
}
