package api

// Census lists what the daemon finds of its own on the host, and what of it no
// row explains. Tests and doctor call it; Leaks must be empty whenever no
// operation is under way.
type Census struct {
	Machines   int      `json:"machines"`
	Running    int      `json:"running"`
	VMMs       []int    `json:"vmms"`       // pids of VMMs
	Companions []int    `json:"companions"` // pids
	Disks      []string `json:"disks"`      // VM disks, by VM id
	RunDirs    []string `json:"run_dirs"`   // runtime directories, by VM id
	Staging    []string `json:"staging"`    // half-made images and kernels
	Leaks      []string `json:"leaks"`      // sentences: what there is that no row explains, or a row without its thing
}
