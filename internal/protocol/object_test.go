package protocol

import (
	"strings"
	"testing"
)

// What a backend sends is read as strictly as what a client sends.
func TestObjectsAreScannedStrictly(t *testing.T) {
	for name, c := range map[string]struct{ data, want string }{
		"empty object":       {`{}`, ""},
		"spaces":             {" \t\r\n{ \"a\" : [ 1 , {\"b\":null} ] } \n", ""},
		"escaped name":       {`{"\u0061":1}`, ""},
		"at the depth":       {`{"a":` + strings.Repeat("[", 3) + strings.Repeat("]", 3) + `}`, ""},
		"below the depth":    {`{"a":` + strings.Repeat("[", 4) + strings.Repeat("]", 4) + `}`, faultDepth},
		"nothing":            {"", faultEnd},
		"blank":              {"  ", faultEnd},
		"array":              {"[]", faultNotObject},
		"null":               {"null", faultNotObject},
		"string":             {`"{}"`, faultNotObject},
		"cut":                {`{"a":1`, faultEnd},
		"cut in a string":    {`{"a":"b`, faultEnd},
		"two objects":        {`{}{}`, faultTrailing},
		"trailing word":      {`{"a":1}x`, faultTrailing},
		"comma at the end":   {`{"a":1,}`, faultSyntax},
		"no quotes":          {`{a:1}`, faultSyntax},
		"single quotes":      {`{'a':1}`, faultSyntax},
		"no colon":           {`{"a" 1}`, faultSyntax},
		"byte order mark":    {"\ufeff{}", faultBOM},
		"invalid UTF-8":      {"{\"a\":\"\xff\"}", faultNotUTF8},
		"lone surrogate":     {`{"a":"\ud800"}`, faultSurrogate},
		"surrogate in name":  {`{"\udc00":1}`, faultSurrogate},
		"control character":  {"{\"a\":\"\n\"}", faultRawChar},
		"leading zero":       {`{"a":01}`, faultSyntax},
		"not a number":       {`{"a":NaN}`, faultSyntax},
		"stopped by a field": {`{"stop":1}`, "stopped"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ScanObject([]byte(c.data), 3, func(name string, value []byte) string {
				if name == "stop" {
					return "stopped"
				}
				if name != "a" || len(value) == 0 {
					t.Errorf("field %q is %q", name, value)
				}
				return ""
			})
			if got != c.want {
				t.Errorf("%q: %q, want %q", c.data, got, c.want)
			}
		})
	}
}

func TestArraysAndStringsInsideObjects(t *testing.T) {
	var got []string
	fault := ScanArray([]byte(`["a", "😀\n" , "\u00e4"]`), func(value []byte) string {
		text, fault := ScanString(value)
		got = append(got, text)
		return fault
	})
	if want := "a|😀\n|ä"; fault != "" || strings.Join(got, "|") != want {
		t.Errorf("%q, %q", got, fault)
	}
	for data, want := range map[string]string{`{}`: faultNotArray, `null`: faultNotArray, `"x"`: faultNotArray} {
		if got := ScanArray([]byte(data), func([]byte) string { return "" }); got != want {
			t.Errorf("%s: %q, want %q", data, got, want)
		}
	}
	for _, data := range []string{`1`, `null`, `["a"]`, `true`, `{}`} {
		if _, fault := ScanString([]byte(data)); fault != faultNotString {
			t.Errorf("%s: %q", data, fault)
		}
	}
}

// A name that is there twice is found at any depth and however it is spelt, and no two names are taken for one.
func TestTwinsAreFound(t *testing.T) {
	for text, want := range map[string]bool{
		`{"a":1,"a":2}`: true, `{"a":1,"\u0061":2}`: true, `[0,{"b":{"c":[{"d":1},{"d":1,"e":[],"d":2}]}}]`: true, ` { "a" : 1 , "a" : 1 } `: true, `{"":1,"":1}`: true,
		`{"a":1,"A":2}`: false, `{"a":{"a":{"a":1}}}`: false, `[{"a":1},{"a":2}]`: false, `"{\"a\":1,\"a\":2}"`: false, `null`: false, `-1.5e3`: false, `[]`: false, `{}`: false,
		`[[],[1,2],"x",true]`: false, `{"a\\":1,"a":2}`: false,
	} {
		if got := Twins([]byte(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// A value is as deep as a frame says: 64 levels in a field, lists and objects alike, and what stands in a text is none.
func TestWhatIsDeep(t *testing.T) {
	for _, around := range [][2]string{{"[", "]"}, {`{"a":`, "}"}, {`[0,{"a":"[[","b":`, "}]"}} {
		levels := strings.Count(around[1], "]") + strings.Count(around[1], "}")
		for n := MaxDepth - 4; n <= MaxDepth+4; n += levels {
			value := []byte(strings.Repeat(around[0], n/levels) + "1" + strings.Repeat(around[1], n/levels))
			var f Frame
			refused := f.Decode([]byte(`{"type":"message","to":"x","content":`+string(value)+`}`)) != nil
			if got, want := Deep(value), n/levels*levels > MaxDepth; got != want || refused != want {
				t.Errorf("%d levels of %s: %v, refused %v", n, around[0], got, refused)
			}
		}
	}
}
