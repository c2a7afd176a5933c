package client

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"banger/internal/api"
)

func machine(ref, what string) string { return "/machines/" + url.PathEscape(ref) + what }
func image(name, what string) string  { return "/images/" + url.PathEscape(name) + what }
func kernel(name, what string) string { return "/kernels/" + url.PathEscape(name) + what }

// Hello asks the daemon who it is.
func (c *Client) Hello(ctx context.Context) (h api.Hello, err error) {
	err = c.call(ctx, http.MethodGet, "/hello", nil, &h)
	return h, err
}

// Machines lists the VMs, oldest first.
func (c *Client) Machines(ctx context.Context) (ms []api.Machine, err error) {
	err = c.call(ctx, http.MethodGet, "/machines", nil, &ms)
	return ms, err
}

// Machine finds the VM that ref, a name, an id or the beginning of an id,
// means.
func (c *Client) Machine(ctx context.Context, ref string) (m api.Machine, err error) {
	err = c.call(ctx, http.MethodGet, machine(ref, ""), nil, &m)
	return m, err
}

// CreateMachine makes a VM and, unless NoStart is set, boots it. Events up to
// the result go to on, which may be nil; if on returns an error, the request
// ends as if ctx had.
func (c *Client) CreateMachine(ctx context.Context, req api.CreateMachine, on func(api.Event) error) (api.Machine, error) {
	return machineOf(c.stream(ctx, http.MethodPost, "/machines", req, on))
}

// StartMachine boots a stopped VM; see CreateMachine for on.
func (c *Client) StartMachine(ctx context.Context, ref string, req api.StartMachine, on func(api.Event) error) (api.Machine, error) {
	return machineOf(c.stream(ctx, http.MethodPost, machine(ref, "/start"), req, on))
}

// RestartMachine stops a VM, if it runs, and boots it; see CreateMachine for
// on.
func (c *Client) RestartMachine(ctx context.Context, ref string, req api.StartMachine, on func(api.Event) error) (api.Machine, error) {
	return machineOf(c.stream(ctx, http.MethodPost, machine(ref, "/restart"), req, on))
}

// StopMachine shuts a VM down and returns when it has stopped.
func (c *Client) StopMachine(ctx context.Context, ref string, req api.StopMachine) (m api.Machine, err error) {
	err = c.call(ctx, http.MethodPost, machine(ref, "/stop"), req, &m)
	return m, err
}

// KillMachine sends a signal to a VM's VMM.
func (c *Client) KillMachine(ctx context.Context, ref string, req api.KillMachine) (m api.Machine, err error) {
	err = c.call(ctx, http.MethodPost, machine(ref, "/kill"), req, &m)
	return m, err
}

// SetMachine changes a VM.
func (c *Client) SetMachine(ctx context.Context, ref string, req api.SetMachine) (m api.Machine, err error) {
	err = c.call(ctx, http.MethodPatch, machine(ref, ""), req, &m)
	return m, err
}

// DeleteMachine ends and removes a VM; it returns when nothing of it is left.
func (c *Client) DeleteMachine(ctx context.Context, ref string) (m api.Machine, err error) {
	err = c.call(ctx, http.MethodDelete, machine(ref, ""), nil, &m)
	return m, err
}

// Console returns what the last boot of a VM printed, raw: it may hold escape
// sequences. The caller closes it. To follow a running VM, ask its companion.
func (c *Client) Console(ctx context.Context, ref string) (io.ReadCloser, error) {
	res, err := c.send(ctx, http.MethodGet, machine(ref, "/console"), nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Images lists the images in the store.
func (c *Client) Images(ctx context.Context) (is []api.Image, err error) {
	err = c.call(ctx, http.MethodGet, "/images", nil, &is)
	return is, err
}

// Image finds an image by name or id.
func (c *Client) Image(ctx context.Context, name string) (i api.Image, err error) {
	err = c.call(ctx, http.MethodGet, image(name, ""), nil, &i)
	return i, err
}

// DeleteImage removes an image that no VM uses.
func (c *Client) DeleteImage(ctx context.Context, name string) (i api.Image, err error) {
	err = c.call(ctx, http.MethodDelete, image(name, ""), nil, &i)
	return i, err
}

// PullImage gets an image of the catalog into the store. If this caller is the
// one to build it, build is run, and what it writes is sent to the daemon; see
// [BuildFunc]. Events go to on, which may be nil, from one goroutine.
func (c *Client) PullImage(ctx context.Context, name string, req api.PullRequest, build BuildFunc, on func(api.Event) error) (api.Image, error) {
	return imageOf(c.pull(ctx, image(name, ""), req, build, on))
}

// ImportImage makes an image of any root tar. It is refused if the name is
// taken.
func (c *Client) ImportImage(ctx context.Context, name string, tar io.Reader, on func(api.Event) error) (api.Image, error) {
	return imageOf(c.stream(ctx, http.MethodPut, image(name, ""), tar, on))
}

// Kernels lists the kernels in the store.
func (c *Client) Kernels(ctx context.Context) (ks []api.Kernel, err error) {
	err = c.call(ctx, http.MethodGet, "/kernels", nil, &ks)
	return ks, err
}

// Kernel finds a kernel by name or id.
func (c *Client) Kernel(ctx context.Context, name string) (k api.Kernel, err error) {
	err = c.call(ctx, http.MethodGet, kernel(name, ""), nil, &k)
	return k, err
}

// DeleteKernel removes a kernel that no VM uses.
func (c *Client) DeleteKernel(ctx context.Context, name string) (k api.Kernel, err error) {
	err = c.call(ctx, http.MethodDelete, kernel(name, ""), nil, &k)
	return k, err
}

// PullKernel is PullImage for kernels.
func (c *Client) PullKernel(ctx context.Context, name string, req api.PullRequest, build BuildFunc, on func(api.Event) error) (api.Kernel, error) {
	return kernelOf(c.pull(ctx, kernel(name, ""), req, build, on))
}

// Census asks what the daemon finds of its own on the host.
func (c *Client) Census(ctx context.Context) (s api.Census, err error) {
	err = c.call(ctx, http.MethodGet, "/census", nil, &s)
	return s, err
}

// Reconcile makes the daemon compare the world with its rows once, and
// returns what it then found.
func (c *Client) Reconcile(ctx context.Context) (s api.Census, err error) {
	err = c.call(ctx, http.MethodPost, "/reconcile", nil, &s)
	return s, err
}

// Shutdown ends the daemon; VMs go on. It returns when the daemon has begun to
// end and no longer accepts connections.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/shutdown", nil, nil)
}
