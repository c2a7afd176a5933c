// Package workspace packs a repository for a guest: what git tracks, as it
// lies in the work tree now, and a repository around it with its last commits.
//
// The result is one plain tar. Whoever unpacks it needs no git: the `.git` in
// it is complete, with an index that knows the size and time of every file
// that the host's index vouches for, so that the guest's git reads again only
// what may have changed. Nothing but packed history touches a disk of the
// host, and nothing is written into the repository.
//
// What stays behind: untracked files unless asked for, ignored files always,
// hooks, reflogs, other branches and tags, stashes, replace refs, an unfinished
// merge's MERGE_HEAD, credentials, filter drivers (files of Git LFS arrive as
// they are on the host and count as unchanged while their time does not
// change) and every setting but those that decide what git status says.
//
// It runs in the CLI, as the user. It knows nothing about VMs, agents or how
// the tar travels.
package workspace
