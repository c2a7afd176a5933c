package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"banger/internal/api"
	"banger/internal/install/systemctl"
	"banger/internal/rootapi"
	"banger/internal/rootclient"
	"banger/internal/version"
)

// answerLimit is for a daemon that was just started, on a busy machine.
const answerLimit = time.Minute

// ownerLimit is for what is asked as the owner, shutting VMs down included. Who
// does not answer must not keep root from uninstalling.
const ownerLimit = 3 * time.Minute

// await starts the owner daemon and returns when both daemons have answered,
// as this version and by this record. The helper is started by being asked.
func await(ctx context.Context, in rootapi.Install, want string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerLimit, &api.Error{Code: api.Timeout, Msg: fmt.Sprintf("the daemons did not answer within %v", answerLimit), Hint: "see why: journalctl -u " + DaemonUnit + " -u " + helperUnit})
	defer cancel()
	v, err := rootclient.Client{}.Hello(ctx)
	switch {
	case err != nil:
		return failed(ctx, helperUnit, err)
	case !sameBuild(v.Build, want):
		return failed(ctx, helperUnit, fmt.Errorf("it is version %s, and %s is installed", v.Build, want))
	case !reflect.DeepEqual(v.Install, in):
		return failed(ctx, helperUnit, errors.New("it goes by another record than this one"))
	}
	if _, err := systemctl.Run(ctx, "start", DaemonUnit); err != nil {
		return failed(ctx, DaemonUnit, err)
	}
	d, err := askDaemon(ctx, in)
	switch {
	case err != nil:
		return failed(ctx, DaemonUnit, err)
	case d.Version != want:
		return failed(ctx, DaemonUnit, fmt.Errorf("it is version %s, not %s", d.Version, want))
	}
	return nil
}

// sameBuild reports whether the helper, which says of its build only what the Go
// toolchain calls it, can be of the installed version. It is known for that of
// this program.
func sameBuild(helper, installed string) bool {
	info, ok := debug.ReadBuildInfo()
	return !ok || installed != version.Get().String() || helper == info.Main.Version
}

// failed adds what a unit said last.
func failed(ctx context.Context, unit string, err error) error {
	said := systemctl.Log(context.WithoutCancel(ctx), unit, 15)
	return &api.Error{Code: api.Internal, Msg: unit + " does not work", Detail: said, Hint: "see all of it: journalctl -u " + unit, Err: err}
}

// asOwner runs the installed banger as the owner would, and decodes what it
// answers. Root itself asks no daemon of an account's, and believes none: this
// runs with no right that the owner has not.
func asOwner(ctx context.Context, in rootapi.Install, out any, args ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ownerLimit, fmt.Errorf("banger %s did not end within %v", args[0], ownerLimit))
	defer cancel()
	cmd := ownersCommand(ctx, in.Owner, filepath.Join(BinDir, "banger"), append(args, "--json")...)
	stdout, stderr := &bounded{left: 8 << 20}, &bounded{left: 64 << 10}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	b := stdout.b.Bytes()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var said struct {
		Error *api.Error `json:"error"`
	}
	if err != nil && json.Unmarshal(b, &said) == nil && said.Error != nil {
		return said.Error
	}
	if err != nil {
		return fmt.Errorf("running banger %s as %s: %w: %s", strings.Join(args, " "), in.Owner.Name, err, strings.TrimSpace(stderr.b.String()))
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("reading what banger %s says: %w", strings.Join(args, " "), err)
	}
	return nil
}

// ownersCommand is a program with the owner's rights and none of root's. It is
// the owner's in all but name, who may trace it: so it has no terminal, into
// which it could type what a shell of root's would then execute, and what it
// says is bounded. No process of its own keeps the answer from ending.
func ownersCommand(ctx context.Context, o rootapi.Owner, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	cmd.Env = []string{"HOME=" + o.Home, "USER=" + o.Name, "LOGNAME=" + o.Name, "PATH=/usr/local/bin:/usr/bin:/bin"}
	if dir := os.Getenv("GOCOVERDIR"); dir != "" {
		cmd.Env = append(cmd.Env, "GOCOVERDIR="+dir)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.UID, Gid: o.GID}
	}
	return cmd
}

// bounded keeps the first bytes that are written, and takes them all.
type bounded struct {
	b    bytes.Buffer
	left int
}

// Write never fails.
func (w *bounded) Write(p []byte) (int, error) {
	n, _ := w.b.Write(p[:min(len(p), w.left)])
	w.left -= n
	return len(p), nil
}

// askDaemon asks the owner daemon who it is.
func askDaemon(ctx context.Context, in rootapi.Install) (api.Hello, error) {
	var d struct {
		Running bool      `json:"running"`
		Daemon  api.Hello `json:"daemon"`
	}
	if err := asOwner(ctx, in, &d, "daemon", "status"); err != nil {
		return api.Hello{}, err
	}
	if !d.Running {
		return api.Hello{}, errors.New("it does not answer")
	}
	return d.Daemon, nil
}
