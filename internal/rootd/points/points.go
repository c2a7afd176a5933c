// Package points lists where a test kills the root helper. It is apart so that
// the helper does not link the list.
package points

// All are the points of packages rootd and hostnet, by the verb that passes them.
func All() map[string][]string {
	return map[string][]string{
		"launch": {"launch.claimed", "launch.attached", "launch.opened", "launch.started", "launch.found",
			"attach.pinned", "attach.tap", "attach.labelled", "attach.plugged"},
		"adopt":   {"adopt.found"},
		"release": {"release.stopped", "release.detached", "release.removed", "detach.down", "detach.unpinned"},
		"policy":  {"policy.labelled", "policy.allowed"},
	}
}
