// Package size reads and prints numbers of bytes as people write them: 512M,
// 4GiB, 1.5G.
//
// All units are powers of 1024: K, KB and KiB are the same, since nobody who
// types --memory 4G for a VM means anything else.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"banger/internal/api"
)

// Bytes is a number of bytes.
type Bytes int64

// The units.
const (
	KiB Bytes = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

// Parse reads a size: digits with an optional fraction, then a unit of B, K, M,
// G or T, upper or lower case, with or without B or iB. A bare number means
// MiB. The result is positive; a fraction must come out as whole bytes.
func Parse(s string) (Bytes, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit, ok := unitOf(strings.ToLower(s[len(digits):]))
	if !ok || digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return 0, invalid(s, "is not a size")
	}
	whole, fraction, dotted := strings.Cut(digits, ".")
	if whole == "" || dotted && fraction == "" {
		return 0, invalid(s, "is not a size")
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || n > math.MaxInt64/int64(unit) {
		return 0, invalid(s, "is too large")
	}
	part, ok := fractionOf(fraction, unit)
	if !ok {
		return 0, invalid(s, "is not a whole number of bytes")
	}
	total := n * int64(unit)
	if part > math.MaxInt64-total {
		return 0, invalid(s, "is too large")
	}
	if total += part; total <= 0 {
		return 0, invalid(s, "is not more than zero")
	}
	return Bytes(total), nil
}

// invalid keeps to one line whatever was typed.
func invalid(s, why string) error {
	if len(s) > 40 {
		s = strings.ToValidUTF8(s[:40], "") + "..."
	}
	return &api.Error{
		Code: api.Invalid,
		Msg:  fmt.Sprintf("%q %s", s, why),
		Hint: "write sizes such as 512M, 4G or 4GiB; a bare number means MiB",
	}
}

// unitOf knows the units in lower case; none is MiB, as the flags promise.
func unitOf(s string) (Bytes, bool) {
	switch s {
	case "", "m", "mb", "mib":
		return MiB, true
	case "b":
		return 1, true
	case "k", "kb", "kib":
		return KiB, true
	case "g", "gb", "gib":
		return GiB, true
	case "t", "tb", "tib":
		return TiB, true
	}
	return 0, false
}

// fractionOf is .digits of unit, exactly or not at all. Six digits are enough
// for anybody and keep the product below 2^63.
func fractionOf(digits string, unit Bytes) (int64, bool) {
	digits = strings.TrimRight(digits, "0")
	if digits == "" {
		return 0, true
	}
	if len(digits) > 6 {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, false
	}
	scale := int64(1)
	for range len(digits) {
		scale *= 10
	}
	product := n * int64(unit)
	return product / scale, product%scale == 0
}

// String prints b in the largest unit of which it is a whole number, so that
// Parse reads it back exactly: 4GiB, 1536MiB, 17B.
func (b Bytes) String() string {
	for _, u := range []struct {
		unit Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b != 0 && b%u.unit == 0 {
			return strconv.FormatInt(int64(b/u.unit), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// Short prints b rounded to at most three digits, for tables: 1.4GiB, 812KiB.
func (b Bytes) Short() string {
	v, name := float64(b), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if math.Abs(v) < 999.5 {
			break
		}
		v, name = v/1024, next
	}
	if name == "B" || math.Abs(v) >= 9.95 || v == math.Trunc(v) {
		return fmt.Sprintf("%.0f%s", v, name)
	}
	return fmt.Sprintf("%.1f%s", v, name)
}
