package ext4

import "math/bits"

// dirHash returns the major and minor hash of a name: half of MD4 over the
// name's unsigned bytes, with the standard seed. The lowest bit of the major
// hash is always 0: an index uses it to say "continued".
func dirHash(name string) (major, minor uint32) {
	state := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	for {
		in := hashWords(name)
		halfMD4(&state, &in)
		if len(name) <= 32 {
			break
		}
		name = name[32:]
	}
	const end = 0x7fffffff << 1 // reserved: "no more entries"
	major, minor = state[1]&^1, state[2]
	if major == end {
		major = end - 2
	}
	return major, minor
}

// hashWords packs up to 32 bytes of s into words, padded with its length.
func hashWords(s string) (words [8]uint32) {
	pad := uint32(len(s)) | uint32(len(s))<<8
	pad |= pad << 16
	for i := range words {
		words[i] = pad
	}
	for i := range min(len(s), 32) {
		w := words[i/4]
		if i%4 == 0 {
			w = pad
		}
		words[i/4] = w<<8 + uint32(s[i])
	}
	return words
}

// halfMD4 mixes eight words into the state, in three rounds of eight steps.
func halfMD4(state *[4]uint32, in *[8]uint32) {
	rounds := [3]struct {
		f     func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		shift [4]int
	}{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0,
			[8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5a827999,
			[8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1,
			[8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	a, b, c, d := state[0], state[1], state[2], state[3]
	for _, r := range rounds {
		for step, word := range r.order {
			a = bits.RotateLeft32(a+r.f(b, c, d)+in[word]+r.add, r.shift[step%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}
