package api

import "errors"

// A Code tells a program what kind of failure it met. Codes are part of the
// API: never renamed, never reused, only added.
type Code string

// The codes.
const (
	Invalid      Code = "invalid"       // the request itself is wrong: a flag, a size, a name
	NotFound     Code = "not_found"     // no such VM, image, kernel or route
	Ambiguous    Code = "ambiguous"     // a reference matches several
	Exists       Code = "exists"        // the name is taken
	Conflict     Code = "conflict"      // not in this state, or something else is under way
	Timeout      Code = "timeout"       // a deadline passed
	Unsupported  Code = "unsupported"   // this driver, kernel or image cannot do it
	NoSpace      Code = "no_space"      // a disk is full or would be
	Missing      Code = "missing"       // a program or file of the host is missing
	Denied       Code = "denied"        // the peer may not
	GuestLost    Code = "guest_lost"    // the agent or its VM went away in the middle
	GuestFailed  Code = "guest_failed"  // the guest refused or failed to do it
	Interrupted  Code = "interrupted"   // the user or a closing connection ended it
	VersionSkew  Code = "version_skew"  // client and daemon, or daemon and companion, do not fit
	StateDamaged Code = "state_damaged" // the state file cannot be used
	Internal     Code = "internal"      // a bug or an unforeseen failure of the host
)

// An Error crosses process boundaries unchanged, so the CLI prints what the
// place that failed meant to say.
type Error struct {
	Code Code   `json:"code"`
	Msg  string `json:"message"`
	Hint string `json:"hint,omitempty"` // the next command to type, if there is one
	// Detail is further text for a person, such as the last lines of a
	// console. It has passed printable.
	Detail string `json:"detail,omitempty"`
	// Err is the cause; it stays in the process that met it.
	Err error `json:"-"`
}

// Error is the message and, in the process that met it, the cause.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap returns the cause, if it is known here.
func (e *Error) Unwrap() error { return e.Err }

// AsError makes any error fit to cross a process boundary: an *Error in its
// chain gives code, hint and detail, the whole chain gives the message.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: e.Code, Msg: err.Error(), Hint: e.Hint, Detail: e.Detail}
	}
	return &Error{Code: Internal, Msg: err.Error()}
}

// CodeOf returns the code of the first *Error in err's chain, or Internal.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}
