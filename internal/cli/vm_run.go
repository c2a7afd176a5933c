package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/answer"
	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/companionapi"
	"banger/internal/config"
	"banger/internal/names"
	"banger/internal/progress"
	"banger/internal/session"
	"banger/internal/usage"
	"banger/internal/workspace"
)

// runFlags are what `vm run` and `vm create` understand.
type runFlags struct {
	sizes       sizeFlags
	name, image string
	nat         bool
	wait        api.Stage

	rm, detach, noStart bool
	timings             string

	branch, from     string
	includeUntracked bool
	dryRun           bool
	guestPath        string
}

func (a *app) vmRun() *cobra.Command {
	f := runFlags{wait: api.StageSockets}
	c := &cobra.Command{
		Use:   "run [PATH] [flags] [-- COMMAND...]",
		Short: "make a VM and enter it, or run a command in it",
		Long: `run makes a VM and boots it. Without a command you get a shell in it; with one,
banger exits with the command's own status. With a path, what git tracks there
is at /root/repo in the guest, uncommitted changes included.

  banger vm run                          a clean shell
  banger vm run ./repo                   the same, in a copy of the repository
  banger vm run ./repo -- make test      run a command there
  banger vm run --rm -- uname -a         delete the VM afterwards

The VM stays when you leave, unless you say --rm: go back in with
"banger vm ssh NAME", end it with "banger vm stop NAME" or with
"banger vm delete NAME". Untracked files stay on the host unless you say
--include-untracked; ignored ones always do.`,
		Args:              usage.Args(0, 1, "at most one path before \"--\""),
		ValidArgsFunction: directoriesOnly,
		RunE: func(cmd *cobra.Command, given []string) error {
			positional, command := usage.Split(cmd, given)
			r := &run{app: a, line: bootLine{app: a}, flags: f, command: command, cmd: cmd}
			if len(positional) > 0 {
				if r.path = positional[0]; r.path == "" { // of a variable that is not set
					return usage.Error("banger vm run ./repo", "the path is empty")
				}
			}
			return r.do(cmd.Context())
		},
	}
	f.addCommon(a, c)
	c.Flags().BoolVar(&f.rm, "rm", false, "delete the VM when the command or session ends")
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "make the VM, print its name and leave")
	c.Flags().StringVar(&f.branch, "branch", "", "with a path: be on a new branch of this name in the guest")
	c.Flags().StringVar(&f.from, "from", "", "with --branch: start it at this commit (default HEAD)")
	c.Flags().BoolVar(&f.includeUntracked, "include-untracked", false, "with a path: bring untracked files too, never ignored ones")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "with a path: list what would be copied, make nothing")
	c.Flags().StringVar(&f.guestPath, "guest-path", "", "with a path: where it is in the guest (default "+workspace.DefaultGuestPath+")")
	c.Flags().StringVar(&f.timings, "timings", "", "\"json\": say at the end, on stderr, how long each phase took")
	usage.Values(c, "timings", "json")
	return c
}

func (f *runFlags) addCommon(a *app, c *cobra.Command) {
	f.sizes.add(c)
	c.Flags().StringVar(&f.name, "name", "", "name of the VM (default: made up)")
	c.Flags().StringVar(&f.image, "image", "", "base image")
	usage.Complete(c, "image", a.complete(a.imageFlag, -1))
	c.Flags().BoolVar(&f.nat, "nat", false, "let the VM reach the internet (in system mode)")
	stageFlag(c, &f.wait)
	a.helpWithDefaults(c)
}

func stageFlag(c *cobra.Command, s *api.Stage) {
	c.Flags().Var((*stageValue)(s), "wait", "how far the guest must have come: agent, sockets or boot")
	usage.Values(c, "wait", string(api.StageAgent), string(api.StageSockets), string(api.StageBoot))
}

// stageValue is a flag of an api.Stage.
type stageValue api.Stage

// String is the stage's name.
func (s *stageValue) String() string { return string(*s) }

// Set accepts the name of a stage.
func (s *stageValue) Set(v string) error {
	if !api.Stage(v).Valid() {
		return fmt.Errorf("%q is not one of agent, sockets, boot", v)
	}
	*s = stageValue(v)
	return nil
}

// Type names the value in help.
func (*stageValue) Type() string { return "stage" }

// A run is one `vm run`.
type run struct {
	*app
	flags   runFlags
	cmd     *cobra.Command
	path    string
	command []string

	timer   progress.Timer
	plan    *workspace.Plan
	daemon  *client.Client
	machine api.Machine // as last told; ID is "" until the row exists
	lease   *companionapi.Lease
	put     chan error // the outcome of bringing the workspace; nil without one
	line    bootLine
}

// check refuses combinations that mean nothing, before anything is made.
func (r *run) check() error {
	f := r.flags
	switch {
	case f.detach && f.rm:
		return usage.Error("banger vm run --rm -- COMMAND", "--detach leaves a VM behind and --rm does not: choose one")
	case f.detach && len(r.command) > 0:
		return usage.Error("banger vm run --detach --name NAME && banger vm exec NAME -- COMMAND", "--detach makes a VM and leaves: it runs no command")
	case f.timings != "" && f.timings != "json":
		return usage.Error("banger vm run --timings=json", "--timings: there is no format %q, only json", f.timings)
	case r.cmd.ArgsLenAtDash() >= 0 && len(r.command) == 0:
		return usage.Error("banger vm run -- COMMAND", "there is no command after --")
	case r.json && len(r.command) == 0 && !f.detach && !f.dryRun:
		return usage.Error("banger vm run --json -- COMMAND", "--json needs a command, --detach or --dry-run: a shell has no JSON")
	case r.path == "" && r.pathFlag() != "":
		return usage.Error("banger vm run PATH --"+r.pathFlag(), "--%s needs the path of a repository", r.pathFlag())
	case f.from != "" && f.branch == "":
		return usage.Error("banger vm run PATH --branch NAME --from "+f.from, "--from needs --branch")
	}
	if r.cmd.Flags().Changed("name") {
		if err := names.CheckVM(f.name); err != nil {
			return err
		}
	}
	if len(r.command) == 0 && !f.detach && !f.dryRun { // a shell needs it: better now than in minutes
		_, err := session.OpenSSH()
		return err
	}
	return nil
}

// pathFlag is a flag that was given and means nothing without a path.
func (r *run) pathFlag() string {
	for _, name := range []string{"branch", "from", "include-untracked", "dry-run", "guest-path"} {
		if r.cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

func (r *run) do(ctx context.Context) (err error) {
	r.timer.Start("check")
	if err := r.check(); err != nil {
		return err
	}
	if r.path != "" {
		if err := r.inspect(ctx); err != nil {
			return err
		}
		if r.flags.dryRun {
			return r.printPlan()
		}
	}
	defer r.tellTimings()
	if err := r.boot(ctx); err != nil {
		return r.afterFailedBoot(ctx, err)
	}
	err = r.inside(ctx)
	return r.leave(ctx, err)
}

// inspect looks at the workspace before anything is made.
func (r *run) inspect(ctx context.Context) (err error) {
	if err := r.load(); err != nil {
		return err
	}
	if err := r.layout.Make(); err != nil {
		return err
	}
	r.plan, err = workspace.Inspect(ctx, r.path, workspace.Options{
		Branch: r.flags.branch, From: r.flags.from,
		IncludeUntracked: r.flags.includeUntracked, GuestPath: r.flags.guestPath,
		Scratch: r.layout.Runtime, Spill: r.layout.Cache,
	})
	if err != nil {
		return err
	}
	for _, n := range r.plan.Notices() {
		r.note("banger: %s", n)
	}
	return nil
}

// printPlan answers --dry-run.
func (r *run) printPlan() error {
	return r.print(r.plan, func(w io.Writer) {
		files := 0
		for _, f := range r.plan.Files {
			if f.Mode != 0 {
				files++
				fmt.Fprintf(w, "%06o %8d %-9s %s\n", f.Mode, f.Size, f.State, answer.Line(f.Path, 1<<12))
			}
		}
		r.note("%s, %s, would go to %s; nothing was made", answer.Count(files, "file"), answer.Bytes(r.plan.Bytes), r.plan.GuestPath)
	})
}

// boot makes the VM and waits until it has come as far as asked and the
// workspace is in place.
func (r *run) boot(ctx context.Context) error {
	r.timer.Start("daemon")
	var err error
	if r.daemon, err = r.dial(ctx); err != nil {
		return err
	}
	req, err := r.request(ctx)
	if err != nil {
		return err
	}
	r.timer.Start("request")
	began := time.Now()
	defer r.line.unwatch()
	m, err := r.daemon.CreateMachine(ctx, req, func(ev api.Event) error { return r.event(ctx, ev) })
	if err != nil {
		return err
	}
	r.machine = m
	if r.flags.rm && r.lease == nil {
		if err := r.takeLease(ctx); err != nil {
			return err
		}
	}
	if r.put != nil {
		r.timer.Start("workspace")
		r.line.watch(ctx, r.machine.Name, api.Event{Type: api.EventPhase, Phase: "workspace"})
		if err := <-r.put; err != nil {
			return fmt.Errorf("bringing %s into the VM: %w", r.plan.Root, err)
		}
	}
	r.line.unwatch()
	if !r.flags.noStart && !r.json {
		r.dim("ready in %s", progress.Short(time.Since(began)))
	}
	return nil
}

// request resolves everything the daemon wants to be told: image and kernel
// are pulled if they are missing, sizes are decided, the user's key is made.
func (r *run) request(ctx context.Context) (api.CreateMachine, error) {
	r.timer.Start("image")
	vcpus, memory, disk, err := r.flags.sizes.parse(r.cmd)
	if err != nil {
		return api.CreateMachine{}, err
	}
	sized, err := r.config.Resolve(config.Sizes{VCPUs: vcpus, Memory: memory, Disk: disk}, config.ThisHost())
	if err != nil {
		return api.CreateMachine{}, err
	}
	nat, err := r.nat(r.daemon.Greeting())
	if err != nil {
		return api.CreateMachine{}, err
	}
	if err := r.nameFree(ctx); err != nil { // before a pull that takes minutes
		return api.CreateMachine{}, err
	}
	key, err := r.publicKey()
	if err != nil {
		return api.CreateMachine{}, err
	}
	l, err := r.lacks(ctx, r.daemon, r.flags.image)
	if err != nil {
		return api.CreateMachine{}, err
	}
	r.specLine(sized.Spec, r.daemon.Greeting(), nat)
	if err := r.fetch(ctx, r.daemon, l); err != nil {
		return api.CreateMachine{}, err
	}
	req := api.CreateMachine{
		Name: r.flags.name, Image: l.image, Spec: sized.Spec, Wait: r.flags.wait,
		Ephemeral: r.flags.rm, NoStart: r.flags.noStart, NAT: nat, AuthorizedKey: key,
	}
	if r.plan != nil {
		req.Workspace = &api.Workspace{GuestPath: r.plan.GuestPath, Source: r.plan.Root, Commit: r.plan.Commit}
	}
	return req, nil
}

// event follows the boot: the lease is taken as soon as there is a companion,
// and the workspace begins to flow as soon as there is an agent, while the
// image's own init still starts.
func (r *run) event(ctx context.Context, ev api.Event) error {
	if ev.Machine != nil {
		r.machine = *ev.Machine
	}
	r.line.watch(ctx, r.machine.Name, ev)
	switch ev.Type {
	case api.EventStarted:
		if !r.flags.rm {
			return nil
		}
		// A VMM that ended at once took its companion along: the boot is tried
		// once more, or said to have failed.
		if err := r.takeLease(ctx); api.CodeOf(err) != api.GuestLost {
			return err
		}
	case api.EventStage:
		r.timer.Start(r.after(ev.Stage))
		if ev.Stage == api.StageAgent && r.plan != nil && r.put == nil {
			r.put = make(chan error, 1)
			s := r.session(r.machine) // which later events change
			go func() { r.put <- s.Bring(ctx, r.plan, r.plan.GuestPath) }()
		}
	case api.EventPhase:
		r.timer.Start(ev.Phase)
	}
	return nil
}

// after names the phase that follows a stage.
func (r *run) after(s api.Stage) string {
	switch {
	case s.Reached(r.flags.wait):
		return "answer"
	case s == api.StageAgent:
		return "boot to " + string(api.StageSockets)
	}
	return "boot to " + string(api.StageBoot)
}

func (r *run) takeLease(ctx context.Context) error {
	if r.lease != nil { // of a first attempt that did not call home
		r.lease.Close()
		r.lease = nil
	}
	l, err := companionapi.New(r.machine.Companion).Lease(ctx)
	if err != nil {
		return fmt.Errorf("taking the lease of %s: %w", r.machine.Name, err)
	}
	r.lease = l
	return nil
}

// inside runs the command, or a shell.
func (r *run) inside(ctx context.Context) error {
	c := session.Command{Argv: r.command}
	if r.plan != nil {
		c.Dir = r.plan.GuestPath
	}
	switch {
	case r.flags.detach:
		r.timer.Start("print")
		return r.print(r.machine, func(w io.Writer) { fmt.Fprintln(w, r.machine.Name) })
	case len(r.command) > 0:
		r.timer.Start("command")
		return r.app.command(ctx, r.machine, c, nil)
	}
	r.timer.Start("session")
	l, err := r.login(r.machine, nil)
	if err != nil {
		return err
	}
	return status(r.session(r.machine).SSH(ctx, l))
}

// leave deletes a VM that was to be gone, whatever happened inside, and says
// what became of one that stays.
func (r *run) leave(ctx context.Context, outcome error) error {
	if r.flags.rm {
		r.timer.Start("delete")
		if err := r.remove(ctx); err != nil {
			r.note("banger: deleting %s: %v", r.machine.Name, err)
			r.note("banger: hint: banger vm delete %s", r.machine.Name)
			if outcome == nil {
				return &guestExit{exitOnly(exitBanger)}
			}
		}
		return outcome
	}
	switch {
	case r.flags.detach:
	case len(r.command) == 0:
		r.reminder(ctx, r.daemon, r.machine, outcome)
	case r.live(): // a script knows, and wants no more words
		r.dim("%[1]s is still running; delete it: banger vm delete %[1]s", r.machine.Name)
	}
	return outcome
}

// deleteLimit bounds the clean-up after an interrupt, which must not be
// interrupted itself.
const deleteLimit = 30 * time.Second

func (r *run) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteLimit)
	defer cancel()
	if r.lease != nil {
		// Deleting is quicker than the companion's own end, and says when it is done.
		defer r.lease.Close()
	}
	// The daemon may have died meanwhile: a new one finishes the work.
	d, err := r.dial(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.DeleteMachine(ctx, r.machine.ID); err != nil && api.CodeOf(err) != api.NotFound {
		return err
	}
	return nil
}

// afterFailedBoot decides what stays: a guest that did not call home is kept
// for `vm logs`, even with --rm; after an interrupt or any other failure what
// the command made is taken away.
func (r *run) afterFailedBoot(ctx context.Context, err error) error {
	if r.machine.ID == "" || r.daemon == nil {
		return err
	}
	if code := api.CodeOf(err); code == api.Timeout || code == api.GuestLost {
		if r.lease != nil {
			_ = r.lease.Keep() // what cannot be kept has ended already
			r.lease.Close()
		}
		if _, gone := r.daemon.Machine(context.WithoutCancel(ctx), r.machine.ID); r.flags.rm && gone == nil {
			r.note("banger: %[1]s stays although --rm was given, so that you can look at it; delete it with: banger vm delete %[1]s", r.machine.Name)
		}
		return err
	}
	if derr := r.remove(ctx); derr != nil {
		r.note("banger: deleting %s: %v", r.machine.Name, derr)
	}
	return err
}

func (a *app) vmCreate() *cobra.Command {
	f := runFlags{wait: api.StageSockets}
	c := &cobra.Command{
		Use:   "create [--name NAME]",
		Short: "make a VM and boot it, without entering it",
		Long: `create makes a VM and boots it, and prints its name: "banger vm run --detach"
for scripts.

  banger vm create --name web --memory 2G
  banger vm create --name later --no-start`,
		Args: usage.Args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.detach = true
			r := &run{app: a, line: bootLine{app: a}, flags: f, cmd: cmd}
			return r.do(cmd.Context())
		},
	}
	f.addCommon(a, c)
	c.Flags().BoolVar(&f.noStart, "no-start", false, "do not boot it")
	return c
}

// tellTimings answers --timings.
func (r *run) tellTimings() {
	if r.flags.timings == "" {
		return
	}
	// A terminal that is gone cannot be told.
	_ = json.NewEncoder(r.Stderr).Encode(r.timer.Done())
}
