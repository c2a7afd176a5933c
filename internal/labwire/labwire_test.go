package labwire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestFramesComeAsTheyWent(t *testing.T) {
	var b bytes.Buffer
	want := Step{Argv: []string{"sh", "-c", "true"}, User: "owner", LimitMS: 5}
	for _, err := range []error{Write(&b, KindOutput, []byte("a\x00b\n")), WriteJSON(&b, KindStep, want), Write(&b, KindCollect, nil)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if k, body, err := Read(&b); k != KindOutput || string(body) != "a\x00b\n" || err != nil {
		t.Errorf("got %q %q %v, want the output", byte(k), body, err)
	}
	k, body, err := Read(&b)
	var got Step
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if k != KindStep || err != nil || got.User != want.User || strings.Join(got.Argv, " ") != "sh -c true" {
		t.Errorf("got %q %+v %v, want %+v", byte(k), got, err, want)
	}
	if k, body, err := Read(&b); k != KindCollect || len(body) != 0 || err != nil {
		t.Errorf("got %q %q %v, want an empty frame", byte(k), body, err)
	}
	if _, _, err := Read(&b); !errors.Is(err, io.EOF) {
		t.Errorf("got %v at the end, want EOF", err)
	}
}

func TestFramesHaveABound(t *testing.T) {
	if err := Write(io.Discard, KindFiles, make([]byte, maxFrame+1)); err == nil {
		t.Error("a frame too large was sent")
	}
	for name, in := range map[string]string{"long": "O\xff\xff\xff\xff", "cut": "O\x00\x00\x00\x05abc", "head": "O\x00"} {
		if _, _, err := Read(strings.NewReader(in)); err == nil || err == io.EOF {
			t.Errorf("%s: got %v, want an error that is no end", name, err)
		}
	}
}
