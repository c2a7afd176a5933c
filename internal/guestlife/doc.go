// Package guestlife is the agent's part in the life of its guest: who the guest
// is, which stages its boot has reached, how it ends, and the channel over which
// the host hears of all that.
//
// It serves the operations hello, identify, watch, shutdown and clock itself and
// hands every other one to a [Handler]: commands, files and connections are not
// its business. How the root came about is PID 1's (package guestinit).
package guestlife
