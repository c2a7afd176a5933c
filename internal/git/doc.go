// Package git asks the git program what it tracks in one repository, and
// writes the few files of a repository that git itself need not write.
//
// A repository is hostile data: its configuration can name programs (hooks,
// fsmonitor, filters, textconv, ssh and proxy commands) and its files can
// point at other repositories. So every call runs with a cleaned environment
// and overridden settings, only plumbing is used that never looks into work
// tree files, and no call writes into the repository or talks to a network.
//
// It knows nothing about VMs, archives or guests.
package git
