// Package undo releases what a half-finished operation has acquired.
package undo

import "errors"

// A Stack holds one release function per thing acquired. The zero Stack is
// ready to use; it is not safe for concurrent use.
type Stack struct{ fns []func() error }

// Push adds f, to be run before everything pushed earlier. f must be
// idempotent and must not depend on a context that the failure may have ended.
func (s *Stack) Push(f func() error) { s.fns = append(s.fns, f) }

// OnError runs the stack, last in first out, if *err is set, and joins what
// the releases return to it. Defer it right after declaring the stack.
func (s *Stack) OnError(err *error) {
	if *err == nil {
		return
	}
	for i := len(s.fns) - 1; i >= 0; i-- {
		*err = errors.Join(*err, s.fns[i]())
	}
	s.fns = nil
}
