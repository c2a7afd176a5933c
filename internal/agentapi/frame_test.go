package agentapi_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"banger/internal/agentapi"
)

func TestFramesComeBackAsSent(t *testing.T) {
	var b bytes.Buffer
	c := agentapi.NewConn(&b)
	for _, tt := range []struct {
		kind    agentapi.Kind
		payload []byte
	}{
		{agentapi.KindStdin, nil},
		{agentapi.KindStdout, []byte("x")},
		{agentapi.KindData, bytes.Repeat([]byte("banger"), 20_000)},
		{agentapi.KindData, make([]byte, agentapi.MaxFrame)},
	} {
		if err := c.Write(tt.kind, tt.payload); err != nil {
			t.Fatalf("Write(%q, %d bytes): %v", tt.kind, len(tt.payload), err)
		}
		k, p, err := c.Read()
		if err != nil || k != tt.kind || !bytes.Equal(p, tt.payload) {
			t.Errorf("Read() = %q, %d bytes, %v; want %q, %d bytes", k, len(p), err, tt.kind, len(tt.payload))
		}
	}
	if _, _, err := c.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("Read() at the end: %v, want io.EOF", err)
	}
}

func TestReadRefuses(t *testing.T) {
	long := binary.BigEndian.AppendUint32([]byte{'d'}, agentapi.MaxFrame+1)
	for name, tt := range map[string]struct {
		in   []byte
		want error
	}{
		"a frame over the cap":  {long, agentapi.ErrFrame},
		"a header cut off":      {[]byte{'d', 0}, io.ErrUnexpectedEOF},
		"a payload cut off":     {[]byte{'d', 0, 0, 0, 9, 'x'}, io.ErrUnexpectedEOF},
		"nothing but the kinds": {[]byte{'d'}, io.ErrUnexpectedEOF},
	} {
		if _, _, err := agentapi.NewConn(bytes.NewBuffer(tt.in)).Read(); !errors.Is(err, tt.want) {
			t.Errorf("%s: Read() = %v, want %v", name, err, tt.want)
		}
	}
}

func TestWriteRefusesOverTheCap(t *testing.T) {
	var b bytes.Buffer
	err := agentapi.NewConn(&b).Write(agentapi.KindData, make([]byte, agentapi.MaxFrame+1))
	if !errors.Is(err, agentapi.ErrFrame) || b.Len() != 0 {
		t.Errorf("Write over the cap = %v, %d bytes sent; want ErrFrame and none", err, b.Len())
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{'d', 0, 0, 0, 1, 'x', 'E', 0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, in []byte) {
		c := agentapi.NewConn(bytes.NewBuffer(in))
		for {
			_, p, err := c.Read()
			if err != nil {
				return
			}
			var e agentapi.Error
			_ = agentapi.Decode(p, &e) // must not panic
		}
	})
}
