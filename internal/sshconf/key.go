// Package sshconf keeps what OpenSSH on the host needs to reach VMs: the user's
// key, a known_hosts file that is written before the first connection, and, if
// the user asks for it, a fenced block in ~/.ssh/config.
//
// There is no trust on first use anywhere: the daemon makes the host keys and
// knows them. The package runs no ssh and knows nothing of VMs but names.
package sshconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"banger/internal/api"
	"banger/internal/atomicfile"
	"banger/internal/sshkey"
)

// EnsureKey returns the public line of the private key at path, "type base64".
// A key of the user's own must exist and is only read; banger's is made if it
// is missing. Processes that race for it end up with the same key.
func EnsureKey(path string, users bool) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !users {
		if err := makeKey(path); err != nil {
			return "", err
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return "", &api.Error{Code: api.Missing, Msg: "reading the ssh key", Hint: "check ssh_key_path in the configuration", Err: err}
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err == nil {
		return sshkey.Line(signer.PublicKey()), nil
	}
	// A key with a passphrase tells its public half all the same.
	if locked, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok && locked.PublicKey != nil {
		return sshkey.Line(locked.PublicKey), nil
	}
	if pub, perr := os.ReadFile(path + ".pub"); perr == nil {
		if key, _, _, _, perr := ssh.ParseAuthorizedKey(pub); perr == nil {
			return sshkey.Line(key), nil
		}
	}
	return "", &api.Error{Code: api.Invalid, Msg: fmt.Sprintf("%s is not a private key", path), Hint: "move it away; banger makes a new one", Err: err}
}

// makeKey writes a new key unless somebody else is faster.
func makeKey(path string) error {
	private, public, err := sshkey.New("banger")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the ssh directory: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key-*")
	if err != nil {
		return fmt.Errorf("making the ssh key: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, werr := tmp.WriteString(private)
	if err := errors.Join(werr, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("writing the ssh key: %w", err)
	}
	// A link fails where the key exists: the first of several writers wins.
	if err := os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("writing the ssh key: %w", err)
	}
	return atomicfile.Write(path+".pub", []byte(public+" banger\n"), 0o644)
}
