package protocol

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// kind is what a JSON value is.
type kind uint8

const (
	kindAbsent kind = iota
	kindNull
	kindBool
	kindNumber
	kindString
	kindObject
	kindArray
)

// value is one complete JSON value inside the scanned data.
type value struct {
	kind    kind
	escaped bool   // a string with at least one backslash
	raw     []byte // as written, quotes and brackets included
}

// Why scanning stopped. The texts stand behind the name of a field, or behind "frame", in an error frame.
const (
	faultEnd       = "unexpected end"
	faultSyntax    = "invalid JSON"
	faultNumber    = "invalid number"
	faultEscape    = "invalid escape"
	faultSurrogate = "lone surrogate"
	faultRawChar   = "control character in a string"
	faultDepth     = "nested deeper than 64 levels"
)

// scanner walks JSON of RFC 8259 and allocates nothing. The data must be valid UTF-8: the scanner looks at ASCII only.
//
// The first fault sticks: everything after it returns at once, so loops ask only more, which is false then.
type scanner struct {
	data  []byte
	pos   int    // of the next byte
	fault string // why scanning stopped; empty while all is well
}

func (s *scanner) fail(why string) {
	if s.fault == "" {
		s.fault = why
	}
}

// peek skips white space and returns the next byte without taking it. At the end it fails and returns 0.
func (s *scanner) peek() byte {
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; c {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return c
		}
	}
	s.fail(faultEnd)
	return 0
}

// atEnd reports whether only white space is left.
func (s *scanner) atEnd() bool {
	for ; s.pos < len(s.data); s.pos++ {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
		default:
			return false
		}
	}
	return true
}

// more stands in the head of the loop over an object or array, whose opening bracket has been taken: it takes the comma before the
// next entry, or the closing bracket after the last.
func (s *scanner) more(closing byte, first bool) bool {
	if s.fault != "" {
		return false
	}
	c := s.peek()
	if c == closing {
		s.pos++
		return false
	}
	if first {
		return s.fault == ""
	}
	if c != ',' {
		s.fail(faultSyntax) // keeps the fault of peek at the end of the data
		return false
	}
	s.pos++
	// "[1,]" and `{"a":1,}` fail in value or key: a bracket begins neither.
	return true
}

// key takes the name of an object's entry and the colon after it.
func (s *scanner) key() value {
	if c := s.peek(); c != '"' {
		s.fail(faultSyntax)
		return value{}
	}
	k := s.text()
	if s.fault != "" {
		return value{}
	}
	if c := s.peek(); c != ':' {
		s.fail(faultSyntax)
		return value{}
	}
	s.pos++
	return k
}

// value takes one complete value that may nest depth levels.
func (s *scanner) value(depth int) value {
	if s.fault != "" {
		return value{}
	}
	c := s.peek()
	start := s.pos
	var v value
	switch {
	case c == '"':
		return s.text()
	case c == '{':
		v.kind = kindObject
		s.object(depth)
	case c == '[':
		v.kind = kindArray
		s.array(depth)
	case c == '-' || '0' <= c && c <= '9':
		v.kind = kindNumber
		s.number()
	case c == 't':
		v.kind = kindBool
		s.literal("true")
	case c == 'f':
		v.kind = kindBool
		s.literal("false")
	case c == 'n':
		v.kind = kindNull
		s.literal("null")
	default:
		s.fail(faultSyntax)
	}
	if s.fault != "" {
		return value{}
	}
	v.raw = s.data[start:s.pos:s.pos]
	return v
}

func (s *scanner) object(depth int) {
	if depth == 0 {
		s.fail(faultDepth)
		return
	}
	s.pos++
	for first := true; s.more('}', first); first = false {
		s.key()
		s.value(depth - 1)
	}
}

func (s *scanner) array(depth int) {
	if depth == 0 {
		s.fail(faultDepth)
		return
	}
	s.pos++
	for first := true; s.more(']', first); first = false {
		s.value(depth - 1)
	}
}

func (s *scanner) literal(word string) {
	if rest := s.data[s.pos:]; len(rest) < len(word) {
		if string(rest) == word[:len(rest)] {
			s.fail(faultEnd)
			return
		}
	} else if string(rest[:len(word)]) == word {
		s.pos += len(word)
		return
	}
	s.fail(faultSyntax)
}

// number takes RFC 8259 section 6: no leading zero or plus, digits on both sides of the point. Its size is not judged: 1e400 is a
// number, and what it means is the reader's affair.
func (s *scanner) number() {
	if s.data[s.pos] == '-' {
		s.pos++
	}
	if s.pos < len(s.data) && s.data[s.pos] == '0' {
		s.pos++
	} else {
		s.digits()
	}
	if s.pos < len(s.data) && s.data[s.pos] == '.' {
		s.pos++
		s.digits()
	}
	if s.pos < len(s.data) && (s.data[s.pos] == 'e' || s.data[s.pos] == 'E') {
		s.pos++
		if s.pos < len(s.data) && (s.data[s.pos] == '+' || s.data[s.pos] == '-') {
			s.pos++
		}
		s.digits()
	}
}

// digits takes at least one.
func (s *scanner) digits() {
	start := s.pos
	for s.pos < len(s.data) && '0' <= s.data[s.pos] && s.data[s.pos] <= '9' {
		s.pos++
	}
	if s.pos == start {
		if s.pos == len(s.data) {
			s.fail(faultEnd)
		} else {
			s.fail(faultNumber)
		}
	}
}

// text takes a string; the next byte is its opening quote.
func (s *scanner) text() value {
	d, start := s.data, s.pos
	escaped := false
	i := start + 1
	for {
		i = skipPlain(d, i)
		if i == len(d) {
			s.fail(faultEnd)
			return value{}
		}
		switch c := d[i]; {
		case c == '"':
			i++
			s.pos = i
			return value{kind: kindString, escaped: escaped, raw: d[start:i:i]}
		case c == '\\':
			escaped = true
			n, fault := escape(d[i:])
			if fault != "" {
				s.fail(fault)
				return value{}
			}
			i += n
		case c < ' ':
			s.fail(faultRawChar)
			return value{}
		}
	}
}

// skipPlain returns the index of the next quote, backslash or control character of d from i on, or its length. Most bytes of a
// frame are plain ones inside strings, so it looks at eight at a time: (w-n*ones) &^ w has the top bit of a byte set if one byte
// of w is below n, n <= 128, and up to the first such byte the bits are exact
// (https://graphics.stanford.edu/~seander/bithacks.html#HasLessInWord).
func skipPlain(d []byte, i int) int {
	const (
		ones  = 0x0101010101010101
		tops  = 0x80 * ones
		quote = '"' * ones
		slash = '\\' * ones
	)
	for ; i+8 <= len(d); i += 8 {
		w := binary.LittleEndian.Uint64(d[i:])
		q, b := w^quote, w^slash
		if found := ((w-' '*ones)&^w | (q-ones)&^q | (b-ones)&^b) & tops; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for i < len(d) && d[i] >= ' ' && d[i] != '"' && d[i] != '\\' {
		i++
	}
	return i
}

// escape measures the escape at the start of d: 2 bytes, 6 for \uXXXX, 12 for a pair of surrogates.
func escape(d []byte) (n int, fault string) {
	if len(d) < 2 {
		return 0, faultEnd
	}
	switch d[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, ""
	case 'u':
	default:
		return 0, faultEscape
	}
	r, fault := hex4(d)
	switch {
	case fault != "":
		return 0, fault
	case r < 0xd800 || r > 0xdfff:
		return 6, ""
	case r >= 0xdc00 || len(d) > 6 && d[6] != '\\' || len(d) > 7 && d[7] != 'u':
		return 0, faultSurrogate
	}
	low, fault := hex4(d[6:])
	switch {
	case fault != "":
		return 0, fault
	case low < 0xdc00 || low > 0xdfff:
		return 0, faultSurrogate
	}
	return 12, ""
}

// hex4 reads the code unit of the \uXXXX at the start of d.
func hex4(d []byte) (r rune, fault string) {
	for i := 2; i < 6; i++ {
		if i >= len(d) {
			return 0, faultEnd
		}
		switch c := d[i]; {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, faultEscape
		}
	}
	return r, ""
}

// unescape appends what the inside of a scanned string means.
func unescape(dst, inner []byte) []byte {
	for i := 0; i < len(inner); {
		c := inner[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		switch c = inner[i+1]; c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, _ := hex4(inner[i:])
			i += 6
			if r >= 0xd800 && r <= 0xdfff { // the scanner saw to it that a low surrogate follows
				low, _ := hex4(inner[i:])
				r = (r-0xd800)<<10 | (low - 0xdc00) + 0x10000
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
		i += 2
	}
	return dst
}
