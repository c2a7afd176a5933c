package recipe

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// transcript is what mmdebstrap 1.3.5 wrote for an image, shortened.
const transcript = `I: chroot architecture amd64 is equal to the host's architecture
I: using /var/tmp/work/mmdebstrap.abc as tempdir
I: running special hook: sync-in debs /var/cache/apt/archives
I: running apt-get update...
Get:1 http://mirror.example/debian bookworm InRelease [151 kB]
Fetched 9417 kB in 1s (6500 kB/s)
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Need to get 61.4 kB/38.0 MB of archives.
Get:1 http://mirror.example/debian bookworm/main amd64 dash amd64 0.5.12-2 [91.7 kB]
Get:2 http://mirror.example/debian bookworm/main amd64 sed amd64 4.9-1 [329 kB]
I: extracting archives...
I: installing essential packages...
Selecting previously unselected package dash.
Unpacking dash (0.5.12-2) ...
Unpacking sed (4.9-1) ...
Setting up dash (0.5.12-2) ...
Setting up sed (4.9-1) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://mirror.example/debian bookworm/main amd64 jq amd64 1.6-2.1 [64.4 kB]
Unpacking jq (1.6-2.1) ...
Setting up jq (1.6-2.1) ...
I: running --customize-hook in shell: sh -c 'true' exec /var/tmp/work
I: creating tarball...
I: done
`

func TestProgress(t *testing.T) {
	var got []Progress
	r := &reporter{report: func(p Progress) { got = append(got, p) }}
	for piece := range slices.Chunk([]byte(transcript), 7) { // lines come in pieces
		if n, err := r.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("got %d, %v, want all of it taken", n, err)
		}
	}
	want := []Progress{
		{PhaseIndex, "", 0, 0},
		{PhaseDownload, "", 0, 0},
		{PhaseDownload, "dash", 1, 2},
		{PhaseDownload, "sed", 2, 2},
		{PhaseBase, "", 0, 0},
		{PhaseBase, "", 0, 0},
		{PhaseBase, "dash", 1, 4},
		{PhaseBase, "sed", 2, 4},
		{PhaseBase, "dash", 3, 4},
		{PhaseBase, "sed", 4, 4},
		{PhaseInstall, "", 0, 0},
		{PhaseDownload, "jq", 1, 1},
		{PhaseInstall, "jq", 1, 2},
		{PhaseInstall, "jq", 2, 2},
		{PhaseCustomise, "", 0, 0},
		{PhasePack, "", 0, 0},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("progress (-want +got):\n%s", d)
	}
	if len(r.tail) != tailLines || r.tail[tailLines-1] != "I: done" {
		t.Errorf("the tail has %d lines that end with %q, want %d with the last", len(r.tail), r.tail[len(r.tail)-1], tailLines)
	}
}

func TestProgressReadsAnything(t *testing.T) {
	r := &reporter{}
	for _, piece := range []string{"E: bad \x1b[2Jthing\nErr:3 gone\n", strings.Repeat("x", 3<<20), "\nnewly installed, \n5 newly installed, x\nGet:\nSetting up\n"} {
		if _, err := r.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.rest) != 0 {
		t.Errorf("%d bytes of a line are kept, want none", len(r.rest))
	}
	if len(r.problems) != 2 || strings.Contains(r.problems[0], "\x1b") {
		t.Errorf("got problems %q, want two, harmless", r.problems)
	}
}
