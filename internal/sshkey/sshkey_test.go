package sshkey_test

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"banger/internal/sshkey"
)

func TestNewIsAPair(t *testing.T) {
	private, public, err := sshkey.New("banger")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey([]byte(private))
	if err != nil {
		t.Fatalf("ParsePrivateKey: %v", err)
	}
	if got := sshkey.Line(signer.PublicKey()); got != public || !strings.HasPrefix(public, "ssh-ed25519 ") {
		t.Errorf("the private key's public half is %q, New said %q", got, public)
	}
	_, other, err := sshkey.New("banger")
	if err != nil || other == public {
		t.Errorf("a second key is %q, %v; want another one", other, err)
	}
}
