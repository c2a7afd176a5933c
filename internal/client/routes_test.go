package client

import (
	"strings"
	"testing"

	"banger/internal/api"
)

// A name that is nothing, or a step of a path, asks for something else.
func TestNamesThatArePaths(t *testing.T) {
	c := newClient("/nowhere")
	for _, tt := range []struct{ name, want string }{
		{"", `no VM ""`},
		{".", `no VM "."`},
		{"..", `no VM ".."`},
		{"web", "the daemon is not running"},
		{"../images", "the daemon is not running"}, // escaped, so a name
	} {
		_, err := c.Machine(t.Context(), tt.name)
		if e := api.AsError(err); e.Code != api.NotFound || !strings.HasPrefix(e.Msg, tt.want) {
			t.Errorf("Machine(%q) = %v, want %s", tt.name, err, tt.want)
		}
		_, err = c.StopMachine(t.Context(), tt.name, api.StopMachine{})
		if e := api.AsError(err); !strings.HasPrefix(e.Msg, tt.want) {
			t.Errorf("StopMachine(%q) = %v, want %s", tt.name, err, tt.want)
		}
	}
}
