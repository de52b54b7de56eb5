package protocol

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// Eight bytes at a time or one: the next special byte is the same, wherever it stands in its word and whatever follows it.
func TestPlainTextIsSkippedToTheNextSpecialByte(t *testing.T) {
	special := func(c byte) bool { return c < ' ' || c == '"' || c == '\\' }
	want := func(d []byte, i int) int {
		for i < len(d) && !special(d[i]) {
			i++
		}
		return i
	}
	for c := range 256 {
		for at := range 20 {
			d := bytes.Repeat([]byte{' '}, 24)
			d[at] = byte(c)
			if got := skipPlain(d, 0); got != want(d, 0) {
				t.Fatalf("byte %#x at %d: got %d", c, at, got)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.SliceOf(rapid.OneOf(rapid.Byte(), rapid.ByteRange(0x1f, 0x23), rapid.ByteRange(0x5b, 0x5d), rapid.ByteMin(0x7f))).Draw(t, "d")
		i := rapid.IntRange(0, len(d)).Draw(t, "i")
		if got := skipPlain(d, i); got != want(d, i) {
			t.Fatalf("%q from %d: got %d, want %d", d, i, got, want(d, i))
		}
	})
}
