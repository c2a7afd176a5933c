package rootclient

import (
	"testing"

	"banger/internal/rootapi"
)

// What systemd says of a service's end, and what people are told.
func TestEndOf(t *testing.T) {
	for want, u := range map[string]rootapi.Unit{
		"":                        {Result: "success", Code: 1},
		"ended with code 148":     {Result: "exit-code", Code: 1, Status: 148},
		"was killed by signal 9":  {Result: "signal", Code: 2, Status: 9},
		"was killed by signal 11": {Result: "core-dump", Code: 3, Status: 11},
		"ended with code 203":     {Result: "exit-code", Code: 1, Status: 203},
		"was killed by signal 31": {Result: "signal", Code: 2, Status: 31},
		"was killed: it used more memory than its VM's limit": {Result: "oom-kill", Code: 2, Status: 9},
	} {
		if got := endOf(&u).String(); got != want {
			t.Errorf("endOf(%+v) = %q, want %q", u, got, want)
		}
	}
	if e := endOf(&rootapi.Unit{Result: "success"}); e.String() != "" || e.Status.Signaled() {
		t.Errorf("one that never ran ended as %+v", e)
	}
}
