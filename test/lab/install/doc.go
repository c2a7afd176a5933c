// Package install holds the lab's tests of `banger system`: the real programs,
// put on a real system and taken away again, to the byte.
package install
