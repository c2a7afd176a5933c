package agentapi

import (
	"encoding/json"
	"unicode/utf8"
)

// execJSON is an [Exec] as it travels. JSON has no bytes beyond UTF-8 and
// silently replaces them, but an argument may be any bytes without NUL: where
// one is not UTF-8, all strings go a second time, as base64, and those count.
type execJSON struct {
	plainExec
	Exact *exactExec `json:"exact,omitempty"`
}

type plainExec Exec // Exec without its methods

type exactExec struct {
	Argv [][]byte `json:"argv"`
	Env  [][]byte `json:"env"`
	Dir  []byte   `json:"dir"`
}

// MarshalJSON keeps every byte of arguments, environment and directory.
func (e Exec) MarshalJSON() ([]byte, error) {
	w := execJSON{plainExec: plainExec(e)}
	if !allUTF8(e.Argv) || !allUTF8(e.Env) || !utf8.ValidString(e.Dir) {
		w.Exact = &exactExec{Argv: toBytes(e.Argv), Env: toBytes(e.Env), Dir: []byte(e.Dir)}
		w.Argv, w.Env, w.Dir = nil, nil, ""
	}
	return json.Marshal(w)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (e *Exec) UnmarshalJSON(b []byte) error {
	var w execJSON
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*e = Exec(w.plainExec)
	if w.Exact != nil {
		e.Argv, e.Env, e.Dir = toStrings(w.Exact.Argv), toStrings(w.Exact.Env), string(w.Exact.Dir)
	}
	return nil
}

func allUTF8(list []string) bool {
	for _, s := range list {
		if !utf8.ValidString(s) {
			return false
		}
	}
	return true
}

func toBytes(list []string) [][]byte {
	out := make([][]byte, len(list))
	for i, s := range list {
		out[i] = []byte(s)
	}
	return out
}

func toStrings(list [][]byte) []string {
	if len(list) == 0 {
		return nil
	}
	out := make([]string, len(list))
	for i, b := range list {
		out[i] = string(b)
	}
	return out
}
