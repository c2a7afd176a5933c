// Package systemhost holds the lab's tests of package systemhost: the installed
// root helper, real jailed Firecrackers, and a host that runs as the owner.
package systemhost
