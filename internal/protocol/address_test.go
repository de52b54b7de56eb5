package protocol

import (
	"strings"
	"testing"
)

func TestIDsAreAnyTextWithoutControlCharacters(t *testing.T) {
	tests := map[string]struct {
		id   string
		want bool
	}{
		"plain":                           {"alice", true},
		"one byte":                        {"a", true},
		"just short enough":               {strings.Repeat("x", MaxIDBytes), true},
		"one byte too long":               {strings.Repeat("x", MaxIDBytes+1), false},
		"bytes count, not letters":        {strings.Repeat("é", MaxIDBytes/2) + "x", false},
		"empty":                           {"", false},
		"spaces":                          {" a b ", true},
		"what a key uses":                 {"a:b{x}}{*", true},
		"a path":                          {"../..", true},
		"our own prefix":                  {"cg:{p17}:u:alice", true},
		"other scripts":                   {"алиса 愛麗絲 🙂", true},
		"looks like another":              {"аlice", true}, // the first letter is Cyrillic
		"replacement character, as typed": {"\ufffd", true},
		"NUL":                             {"a\x00b", false},
		"newline":                         {"a\nb", false},
		"CRLF":                            {"a\r\n", false},
		"DEL":                             {"a\x7f", false},
		"first of C1":                     {"a\u0080", false},
		"last of C1":                      {"a\u009f", false},
		"just above C1":                   {"a\u00a0", true},
		"not UTF-8":                       {"a\xff", false},
		"cut in a letter":                 {"a\xc3", false},
		"surrogate as UTF-8":              {"\xed\xa0\x80", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := ValidID([]byte(tt.id), MaxIDBytes); got != tt.want {
				t.Errorf("ValidID(%q) = %v", tt.id, got)
			}
		})
	}
}

func TestAddressesTellKindAndName(t *testing.T) {
	tests := map[Address]struct {
		kind byte
		name string
	}{
		UserAddress("alice"):   {'u', "alice"},
		RoomAddress("lobby"):   {'r', "lobby"},
		WatchAddress("alice"):  {'w', "alice"},
		UserAddress("r:lobby"): {'u', "r:lobby"},
		"":                     {0, ""},
		"u:":                   {0, ""},
		"x:alice":              {0, ""},
		"alice":                {0, ""},
	}
	for address, want := range tests {
		if address.Kind() != want.kind || address.Name() != want.name {
			t.Errorf("%q: kind %q name %q", address, address.Kind(), address.Name())
		}
	}
}
