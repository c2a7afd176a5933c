package dbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Values to send are byte y, bool b, uint16 q, int32 i, uint32 u, uint64 t,
// string s and o, []byte ay, []string as, and these.
type (
	// Struct is a structure or a dictionary entry; []Struct is an array of them.
	Struct []any
	// Variant is a value that carries its type.
	Variant struct {
		Sig   string
		Value any
	}
	signature string
)

// An encoder appends values, each after as much padding as its type wants. An
// error stays.
type encoder struct {
	b   []byte
	err error
}

func (e *encoder) align(n int) { e.b = append(e.b, make([]byte, -len(e.b)&(n-1))...) }

func (e *encoder) add(values ...any) {
	le := binary.LittleEndian
	for _, v := range values {
		switch v := v.(type) {
		case byte:
			e.b = append(e.b, v)
		case bool:
			e.add(map[bool]uint32{true: 1}[v])
		case uint16:
			e.align(2)
			e.b = le.AppendUint16(e.b, v)
		case int32:
			e.add(uint32(v))
		case uint32:
			e.align(4)
			e.b = le.AppendUint32(e.b, v)
		case uint64:
			e.align(8)
			e.b = le.AppendUint64(e.b, v)
		case string:
			e.add(uint32(len(v)))
			e.b = append(append(e.b, v...), 0)
		case signature:
			e.b = append(append(append(e.b, byte(len(v))), v...), 0)
		case Variant:
			e.add(signature(v.Sig), v.Value)
		case Struct:
			e.align(8)
			e.add(v...)
		case []byte:
			e.add(uint32(len(v)))
			e.b = append(e.b, v...)
		case []string:
			e.array(4, len(v), func(i int) { e.add(v[i]) })
		case []Struct:
			e.array(8, len(v), func(i int) { e.add(v[i]) })
		default:
			e.err = fmt.Errorf("a %T cannot be sent", v)
		}
	}
}

// array appends n elements. Its length does not count the padding before the
// first.
func (e *encoder) array(align, n int, elem func(i int)) {
	e.add(uint32(0))
	at := len(e.b)
	e.align(align)
	from := len(e.b)
	for i := range n {
		elem(i)
	}
	binary.LittleEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-from))
}

// A decoder takes values from the front. An error stays, and everything after
// it is zero.
type decoder struct {
	b   []byte
	at  int
	err error
}

func (d *decoder) take(n uint64) []byte {
	if d.err == nil && n > uint64(len(d.b)-d.at) {
		d.err = errors.New("a message ends too early")
	}
	if d.err != nil {
		return nil
	}
	d.at += int(n)
	return d.b[d.at-int(n) : d.at]
}

// number takes a little-endian number of n bytes, at a multiple of n.
func (d *decoder) number(n int) (v uint64) {
	d.align(n)
	for i, b := range d.take(uint64(n)) {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func (d *decoder) align(n int) { d.take(uint64(-d.at & (n - 1))) }

// sizes of the numbers.
var sizes = map[byte]int{'y': 1, 'n': 2, 'q': 2, 'b': 4, 'i': 4, 'u': 4, 'x': 8, 't': 8}

// values takes values of the types in sig: numbers as uint64 of their bits,
// string, []byte, and what is in a variant. It stops before any other type,
// since nobody asks for those that are made of others.
func (d *decoder) values(sig string) (vs []any) {
	for sig != "" && d.err == nil {
		n := 1
		switch c := sig[0]; {
		case sizes[c] != 0:
			vs = append(vs, d.number(sizes[c]))
		case c == 's' || c == 'o' || c == 'g':
			size := map[byte]int{'g': 1}[c]
			s := d.take(d.number(size | (1-size)<<2)) // a length of one byte, or of four
			d.take(1)                                 // the zero after it
			vs = append(vs, string(s))
		case strings.HasPrefix(sig, "ay"):
			vs, n = append(vs, d.take(d.number(4))), 2
		case c == 'v':
			inner := d.values("g")
			if t, _ := inner[0].(string); !strings.Contains(t, "v") { // none within another
				vs = append(vs, append(d.values(t), nil)[0])
				break
			}
			return vs
		default:
			return vs
		}
		sig = sig[n:]
	}
	return vs
}
