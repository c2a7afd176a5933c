package rows

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"time"

	"banger/internal/agentapi"
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

// Net is the network that VMs have their addresses of.
type Net struct {
	Prefix netip.Prefix // its first host is the gateway
	// Resolvers finds the name servers for a guest that may reach the internet,
	// at each boot; there are none if nil.
	Resolvers func() []netip.Addr
}

// join gives the guest of r its place on the network.
func (n *Net) join(s *host.Spec, r Row) {
	if n == nil || !r.Address.IsValid() {
		return
	}
	s.Net = &host.Net{Addr: r.Address, NAT: r.NAT}
	s.Identity.Net = &agentapi.Net{Addr: r.Address, Gateway: n.Prefix.Masked().Addr().Next()}
	if r.NAT && n.Resolvers != nil {
		s.Identity.Net.DNS = n.Resolvers()
	}
}

// Introduce fills in who the guest of r is, and where on the network, for one
// boot.
func (r Row) Introduce(s *host.Spec, n *Net, now time.Time) {
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
	n.join(s, r)
}
