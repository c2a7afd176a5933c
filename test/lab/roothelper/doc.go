// Package roothelper holds the lab's tests of the root helper: the installed
// unit, real Firecrackers, hostile owners. The test binary is also the guest's
// init, where it is process 1, and the owner's daemon, where it is told so.
package roothelper
