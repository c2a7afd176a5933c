// Package sysmon slows down the thread with which Go's runtime watches over its
// own program.
//
// That thread (sysmon in the runtime's proc.go) sleeps for 20 µs at a time while
// anything runs, and takes the processor of a goroutine whose system call lasts
// longer than that, to give it to a thread that it wakes for the purpose. On one
// emulated processor a sleep of 20 µs is a timer, an interrupt and two changes of
// threads, which take several times as long, and every other system call of a
// boot lasts longer: of 1,140 timer interrupts in a boot, 890 were for this.
package sysmon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// usual is how late the kernel may end a thread's sleep where nobody has said
// anything (prctl(2), PR_SET_TIMERSLACK).
const usual = 50 * time.Microsecond

// Slow lets the thread's sleeps last longer by d, or until an interrupt comes
// shortly before. A goroutine may have to wait as long for the processor of one
// that is in a system call. With a d below a tick of the kernel, which is 4 ms in
// Debian's, each tick would wake the thread. It takes /proc and CAP_SYS_NICE.
func Slow(d time.Duration) error {
	tid, err := find()
	if err == nil {
		// The directory of a thread is not listed in /proc, but it is there.
		err = os.WriteFile("/proc/"+strconv.Itoa(tid)+"/timerslack_ns", strconv.AppendInt(nil, d.Nanoseconds(), 10), 0)
	}
	if err != nil {
		return fmt.Errorf("slowing down the runtime's watch: %w", err)
	}
	return nil
}

// Prompt makes the calling thread, and what it starts, as prompt as usual: a
// thread has the slack of the one that started it, which may be the watch.
// The goroutine must be locked to its thread.
func Prompt() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usual), 0, 0, 0) // of a kernel without: none has slack
}

// find returns the thread's number: the runtime starts it before any other, so
// after the program's first thread it has the lowest.
func find() (tid int, err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		n, err := strconv.Atoi(t.Name())
		if err == nil && n > os.Getpid() && (tid == 0 || n < tid) {
			tid = n
		}
	}
	if tid == 0 {
		return 0, errors.New("there is no such thread")
	}
	return tid, nil
}
