package machine

import (
	"cmp"
	"runtime"
	"strings"
	"time"
)

// Limits are how long things may take. Zero values are replaced by ones that
// fit the driver.
type Limits struct {
	// Agent is from the start of the VMM until the agent calls home; Stage from
	// there to the stage that was asked for. Both are multiplied, up to 3 times,
	// while more VMs boot than the host has CPUs.
	Agent, Stage time.Duration
	// Stop is how long a guest has to shut down if the request does not say.
	Stop time.Duration
	// Reconcile is the time between two passes of the reconciler.
	Reconcile time.Duration
}

// For how long a guest may be silent. In emulation on two cores the agent
// calls home after 2 to 4 s and the golden image reaches sockets after 5 to
// 18 s; the rest is room for a busy host. A boot that hangs should be found
// out while somebody still waits for it.
const (
	agentKVM, stageKVM = 20 * time.Second, time.Minute
	agentTCG, stageTCG = 45 * time.Second, 3 * time.Minute
	crowdMost          = 3
)

// forDriver fills in what the configuration leaves open.
func (l Limits) forDriver(driver string) Limits {
	agent, stage := agentTCG, stageTCG
	if strings.HasSuffix(driver, "-kvm") || strings.HasPrefix(driver, "firecracker") { // which knows nothing else
		agent, stage = agentKVM, stageKVM
	}
	l.Agent, l.Stage = cmp.Or(l.Agent, agent), cmp.Or(l.Stage, stage)
	return l
}

// crowded stretches the limits while many VMs boot at once.
func (l Limits) crowded(boots int) Limits {
	factor := time.Duration(min(crowdMost, 1+max(0, boots-1)/runtime.NumCPU()))
	l.Agent *= factor
	l.Stage *= factor
	return l
}

// limits are those of now.
func (x *Index) limits(driver string) Limits {
	return x.cfg.Limits.forDriver(driver).crowded(x.turns.Count())
}
