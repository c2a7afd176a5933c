package machine

import (
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		driver string
		l      Limits
		want   time.Duration
	}{
		{"qemu-kvm", Limits{}, agentKVM},
		{"firecracker", Limits{}, agentKVM},
		{"qemu-tcg", Limits{}, agentTCG},
		{"", Limits{}, agentTCG},
		{"qemu-kvm", Limits{Agent: time.Second}, time.Second},
	} {
		if got := tt.l.forDriver(tt.driver).crowded(1).Agent; got != tt.want {
			t.Errorf("%q %v: agent limit %v, want %v", tt.driver, tt.l, got, tt.want)
		}
	}
	if got := (Limits{Agent: time.Second}).crowded(10_000).Agent; got != crowdMost*time.Second {
		t.Errorf("in a crowd the limit is %v, want %v", got, crowdMost*time.Second)
	}
}
