package sysmon

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/testneed"
)

// slack is what the kernel says of a thread.
func slack(t *testing.T, tid int) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestSlow(t *testing.T) {
	testneed.Root(t)
	tid, err := find()
	if err != nil {
		t.Fatal(err)
	}
	if err := Slow(20 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := slack(t, tid); got != "20000000" {
		t.Errorf("the thread's slack is %s ns, want 20000000", got)
	}
	if got := slack(t, os.Getpid()); got != "50000" {
		t.Errorf("the first thread's slack is %s ns, want the kernel's 50000", got)
	}
}

func TestPrompt(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1_000_000, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	Prompt()
	got, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || got != 50_000 {
		t.Errorf("the slack is %d ns (%v), want 50000", got, err)
	}
}

// sleeps is how often a thread has waited for something.
func sleeps(t *testing.T, tid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nvoluntary_ctxt_switches:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFind keeps one goroutine busy: then the watch alone goes on sleeping and
// waking.
func TestFind(t *testing.T) {
	tid, err := find()
	if err != nil {
		t.Fatal(err)
	}
	before := sleeps(t, tid)
	for deadline := time.Now().Add(time.Minute); sleeps(t, tid) < before+10; {
		if time.Now().After(deadline) {
			t.Fatalf("thread %d has slept %d times while the program computed, want 10", tid, sleeps(t, tid)-before)
		}
	}
}
