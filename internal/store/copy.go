package store

import (
	"encoding/json"
	"fmt"
	"os"

	"banger/internal/atomicfile"
)

// WriteCopy keeps v, the copy of a row, as JSON in a file of its own beside
// what the row is about, so that a damaged state file can be rebuilt. The file
// is replaced as a whole, readable by the owner alone.
func WriteCopy(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("encoding copy of a row: %w", err)
	}
	return atomicfile.Write(path, append(b, '\n'), 0o600)
}

// ReadCopy reads what WriteCopy wrote. It checks no more than that it is JSON.
func ReadCopy(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading copy of a row: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("reading copy of a row from %s: %w", path, err)
	}
	return nil
}
