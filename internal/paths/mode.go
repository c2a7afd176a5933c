package paths

import (
	"errors"
	"fmt"
	"io/fs"

	"banger/internal/api"
	"banger/internal/rootapi"
)

// ModeEnv is the variable with which the owner of an installed banger chooses
// user mode, to reach VMs that were made before the install.
const ModeEnv = "BANGER_MODE"

// For is the layout of this account: system mode's for the owner that the
// install record names, user mode's for everybody else, root included. It is
// the one place that decides, and costs a look at one small file.
func For(getenv func(string) string, uid int, home string) (Layout, error) {
	return choose(rootapi.InstallPath, getenv, uid, home)
}

func choose(record string, getenv func(string) string, uid int, home string) (Layout, error) {
	switch mode := getenv(ModeEnv); mode {
	case "", "system":
	case "user":
		return FromEnv(getenv, uid, home)
	default:
		return Layout{}, &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%s is %q, and can only be user or system", ModeEnv, mode), Hint: "unset " + ModeEnv}
	}
	in, err := rootapi.ReadInstall(record)
	switch {
	case uid != 0 && err == nil && in.Owner.UID == uint32(uid):
		return System(getenv, uid, home)
	case getenv(ModeEnv) == "system" && err == nil:
		return Layout{}, &api.Error{Code: api.Denied, Msg: fmt.Sprintf("system mode is %s's on this host", in.Owner.Name), Hint: "unset " + ModeEnv}
	case getenv(ModeEnv) == "system":
		return Layout{}, &api.Error{Code: api.NotFound, Msg: "system mode is not installed on this host", Hint: `sudo banger system install --owner "$USER"`}
	case uid != 0 && err != nil && !errors.Is(err, fs.ErrNotExist):
		return Layout{}, &api.Error{Code: api.StateDamaged, Msg: "it is not known whose system mode is", Hint: "sudo banger system install writes the record anew; without it: export " + ModeEnv + "=user", Err: err}
	}
	return FromEnv(getenv, uid, home)
}
