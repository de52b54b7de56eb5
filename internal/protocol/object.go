package protocol

import (
	"bytes"
	"unicode/utf8"
)

// ScanObject walks data, which must be exactly one JSON object, as strictly as client frames are read: UTF-8 without a byte order
// mark, no lone surrogates, nothing behind the object, at most depth levels inside a field. It calls field with each name, what its
// escapes mean put in, and the value as written, until field returns why it stops.
//
// The result is "" when all is well, or why not, in words that stand behind a name in an error. A name that is given twice is for
// field to notice.
func ScanObject(data []byte, depth int, field func(name string, value []byte) (fault string)) (fault string) {
	if !utf8.Valid(data) {
		return faultNotUTF8
	}
	if bytes.HasPrefix(data, []byte("\ufeff")) {
		return faultBOM
	}
	s := scanner{data: data}
	if s.peek() != '{' {
		if s.fault == "" {
			s.fault = faultNotObject
		}
		return s.fault
	}
	s.pos++
	for first := true; s.more('}', first); first = false {
		key := s.key()
		v := s.value(depth)
		if s.fault != "" {
			break
		}
		name := key.raw[1 : len(key.raw)-1]
		if key.escaped {
			name = unescape(nil, name)
		}
		if why := field(string(name), v.raw); why != "" {
			return why
		}
	}
	if s.fault == "" && !s.atEnd() {
		s.fault = faultTrailing
	}
	return s.fault
}

// ScanArray walks one JSON array that a ScanObject has found: element is called with each of its values as written, until it returns
// why it stops.
func ScanArray(data []byte, element func(value []byte) (fault string)) (fault string) {
	s := scanner{data: data}
	if s.peek() != '[' {
		return faultNotArray
	}
	s.pos++
	for first := true; s.more(']', first); first = false {
		if why := element(s.value(MaxDepth).raw); why != "" {
			return why
		}
	}
	return s.fault
}

// ScanString returns what a JSON string that a ScanObject has found means.
func ScanString(data []byte) (text, fault string) {
	s := scanner{data: data}
	v := s.value(0)
	if v.kind != kindString {
		return "", faultNotString
	}
	inner := v.raw[1 : len(v.raw)-1]
	if v.escaped {
		inner = unescape(nil, inner)
	}
	return string(inner), ""
}

// IDFault says why b can't be an id of at most max bytes; "" when it can.
func IDFault(b string, max int) string { return faultOfID([]byte(b), max) }

// Twins reports whether any object in data has a name twice, however it is spelt: two parsers may choose differently. data is a value that
// has been scanned.
func Twins(data []byte) bool {
	s := scanner{data: data}
	return s.twins()
}

func (s *scanner) twins() bool {
	switch s.peek() {
	case '{':
		s.pos++
		seen := make(map[string]struct{})
		for first := true; s.more('}', first); first = false {
			key := s.key()
			if s.fault != "" {
				return false
			}
			name := key.raw[1 : len(key.raw)-1]
			if key.escaped {
				name = unescape(nil, name)
			}
			if _, there := seen[string(name)]; there {
				return true
			}
			seen[string(name)] = struct{}{}
			if s.twins() {
				return true
			}
		}
	case '[':
		s.pos++
		for first := true; s.more(']', first); first = false {
			if s.twins() {
				return true
			}
		}
	default:
		s.value(0)
	}
	return false
}

// Deep reports whether a JSON value, complete as ScanObject finds it, has more levels than a field of a frame may have.
func Deep(value []byte) bool {
	s := scanner{data: value}
	s.value(MaxDepth)
	return s.fault != ""
}
