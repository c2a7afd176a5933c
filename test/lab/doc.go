// Package lab holds the tests that run inside the lab machine, as root, on a
// system of their own. They are built with the tag lab: make lab.
package lab
