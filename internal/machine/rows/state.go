package rows

import (
	"slices"

	"banger/internal/api"
)

// transitions lists every legal change of state; all others are bugs.
func transitions() map[api.State][]api.State {
	return map[api.State][]api.State{
		"":           {api.Starting}, // a new row
		api.Stopped:  {api.Starting, api.Deleting},
		api.Starting: {api.Running, api.Stopped, api.Failed, api.Deleting},
		// Stopped: the VMM ended; Starting: the guest rebooted.
		api.Running:  {api.Stopping, api.Stopped, api.Starting, api.Deleting},
		api.Stopping: {api.Stopped, api.Deleting},
		// Running: it called home after all.
		api.Failed:   {api.Starting, api.Running, api.Stopped, api.Deleting},
		api.Deleting: {},
	}
}

// Legal reports whether a VM may go from one state to the other.
func Legal(from, to api.State) bool {
	return from == to || slices.Contains(transitions()[from], to)
}
