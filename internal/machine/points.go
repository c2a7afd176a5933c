package machine

// CrashPoints lists where a daemon may die between two steps of an operation,
// in the order in which the operations pass them. A test holds the list to the
// source, and another kills a process at each.
func CrashPoints() []string {
	return []string{
		"create.row", "create.directory", "create.disk", "create.known", "create.made", "create.copied",
		"start.row",
		"boot.opened", "boot.launched", "boot.recorded", "boot.called", "boot.running", "boot.retry", "boot.failed",
		"stop.row", "stop.ended", "kill.sent",
		"settle.released", "settle.done",
		"set.row", "set.told",
		"delete.row", "delete.released", "delete.files", "delete.forgotten", "delete.done",
	}
}
