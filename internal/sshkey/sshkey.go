// Package sshkey makes ssh keys. Where they are kept, and whom they admit, is for
// others to know.
package sshkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// New makes an ed25519 key pair: the private key in OpenSSH's PEM form, with the
// comment, and the public line, "ssh-ed25519 base64".
func New(comment string) (private, public string, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("making an ssh key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return "", "", fmt.Errorf("encoding an ssh key: %w", err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", "", fmt.Errorf("encoding a public ssh key: %w", err)
	}
	return string(pem.EncodeToMemory(block)), Line(key), nil
}

// Line is the form of a public key in authorized_keys and known_hosts, without
// options, host or comment.
func Line(k ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}
