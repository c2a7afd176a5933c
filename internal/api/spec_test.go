package api_test

import (
	"testing"

	"banger/internal/api"
)

func TestSpecCheck(t *testing.T) {
	good := api.Spec{VCPUs: 2, MemoryMiB: 1024, DiskBytes: 8 << 30}
	if err := good.Check(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for name, spoil := range map[string]func(s *api.Spec){
		"no vcpu":    func(s *api.Spec) { s.VCPUs = 0 },
		"few":        func(s *api.Spec) { s.VCPUs = -1 },
		"many":       func(s *api.Spec) { s.VCPUs = api.MaxVCPUs + 1 },
		"no memory":  func(s *api.Spec) { s.MemoryMiB = 0 },
		"too little": func(s *api.Spec) { s.MemoryMiB = api.MinMemoryMiB - 1 },
		"too much":   func(s *api.Spec) { s.MemoryMiB = api.MaxMemoryMiB + 1 },
		"no disk":    func(s *api.Spec) { s.DiskBytes = 0 },
		"tiny disk":  func(s *api.Spec) { s.DiskBytes = api.MinDiskBytes - 1 },
		"huge disk":  func(s *api.Spec) { s.DiskBytes = api.MaxDiskBytes + 1 },
	} {
		s := good
		spoil(&s)
		err := s.Check()
		if api.CodeOf(err) != api.Invalid || api.AsError(err).Hint == "" {
			t.Errorf("%s: Check(%+v) = %v, want an invalid error with a hint", name, s, err)
		}
	}
}

func TestStages(t *testing.T) {
	order := []api.Stage{api.StageNone, api.StageAgent, api.StageSockets, api.StageBoot}
	for i, a := range order {
		for j, b := range order {
			if got, want := a.Reached(b), i >= j; got != want {
				t.Errorf("%q.Reached(%q) = %v, want %v", a, b, got, want)
			}
		}
		if got, want := a.Valid(), i > 0; got != want {
			t.Errorf("%q.Valid() = %v, want %v", a, got, want)
		}
	}
}
