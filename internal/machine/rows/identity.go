package rows

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"banger/internal/host"
	"banger/internal/sshkey"
)

// seedBytes is how much randomness a guest gets at each boot: what the
// kernel's generator holds (256 bits), twice.
const seedBytes = 64

// An Identity is made once per VM and told to the guest at each boot.
type Identity struct {
	MachineID  string `json:"machine_id"`
	HostKey    string `json:"host_key"`     // OpenSSH private key, PEM
	HostKeyPub string `json:"host_key_pub"` // one line
}

// NewIdentity makes one that no other VM has.
func NewIdentity() (Identity, error) {
	private, public, err := sshkey.New("")
	if err != nil {
		return Identity{}, err
	}
	// A machine id is 128 random bits marked as a version 4 UUID: machine-id(5).
	var id [16]byte
	rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return Identity{
		MachineID:  hex.EncodeToString(id[:]),
		HostKey:    private,
		HostKeyPub: public,
	}, nil
}

// Introduce fills in who the guest of r is, for one boot.
func (r Row) Introduce(s *host.Spec, now time.Time) {
	s.Identity.Hostname = r.Name
	s.Identity.MachineID = r.Identity.MachineID
	s.Identity.HostKey = r.Identity.HostKey
	s.Identity.HostKeyPub = r.Identity.HostKeyPub
	if r.UserKey != "" {
		s.Identity.AuthorizedKeys = []string{r.UserKey}
	}
	s.Identity.Seed = make([]byte, seedBytes)
	rand.Read(s.Identity.Seed)
	s.Identity.UnixNano = now.UnixNano()
}
