package protocol

import (
	"errors"
	"strings"
	"testing"
)

// The examples of RFC 7396 appendix A whose target and patch are objects, and what is said of meta beside.
func TestMetaIsMergedAsTheRFCSays(t *testing.T) {
	for name, c := range map[string]struct{ meta, patch, want string }{
		"a value is replaced":          {`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		"a name comes":                 {`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		"a name goes":                  {`{"a":"b"}`, `{"a":null}`, `{}`},
		"one of two goes":              {`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		"a list is a value":            {`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		"a value becomes a list":       {`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		"within":                       {`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		"no list is merged":            {`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		"null in meta is a value":      {`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		"an object takes a value's":    {`{"a":"foo"}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		"there was none":               {``, `{"a":{"b":null,"c":1}}`, `{"a":{"c":1}}`},
		"nothing is asked":             {`{"a": 1}`, `{}`, `{"a":1}`},
		"what goes was not there":      {``, `{"a":null}`, `{}`},
		"null in a list is a value":    {``, `{"a":[null]}`, `{"a":[null]}`},
		"digits stay":                  {`{"a":1e400,"b":9007199254740993}`, `{"c":1.10}`, `{"a":1e400,"b":9007199254740993,"c":1.10}`},
		"spaces go":                    {"{ \"a\" :\n1}", `{"b" : [ 1 , 2 ]}`, `{"a":1,"b":[1,2]}`},
		"an escaped name is the name":  {`{"a":1}`, `{"\u0061":2}`, `{"a":2}`},
		"names keep what they mean":    {`{"\"\n<":1}`, `{"ä":2}`, `{"\"\n<":1,"ä":2}`},
		"of two of a client the last":  {`{"a":1,"a":2}`, `{"b":3}`, `{"a":2,"b":3}`},
		"as large as may be":           {``, `{"a":"` + strings.Repeat("x", MaxMetaBytes-8) + `"}`, `{"a":"` + strings.Repeat("x", MaxMetaBytes-8) + `"}`},
		"large, but not what is left":  {`{"a":"` + strings.Repeat("x", 1000) + `"}`, `{"a":null,"b":"` + strings.Repeat("y", 1000) + `"}`, `{"b":"` + strings.Repeat("y", 1000) + `"}`},
		"as deep as a register may be": {``, `{"a":` + strings.Repeat("[", MaxDepth-1) + strings.Repeat("]", MaxDepth-1) + `}`, `{"a":` + strings.Repeat("[", MaxDepth-1) + strings.Repeat("]", MaxDepth-1) + `}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := MergeMeta(c.meta, []byte(c.patch))
			if err != nil || got != c.want {
				t.Errorf("%s and %s make %q, %v; want %q", c.meta, c.patch, got, err, c.want)
			}
		})
	}
}

func TestWhatMetaCanNotBecome(t *testing.T) {
	for name, c := range map[string]struct {
		meta, patch string
		want        ErrorCode
	}{
		"no object":                  {`{}`, `[]`, CodeBadRequest},
		"null":                       {`{}`, `null`, CodeBadRequest},
		"nothing":                    {`{}`, ``, CodeBadRequest},
		"broken":                     {`{}`, `{"a":}`, CodeBadRequest},
		"a name twice":               {`{}`, `{"a":1,"\u0061":2}`, CodeBadRequest},
		"a name twice within":        {`{}`, `{"b":{"a":1,"a":null}}`, CodeBadRequest},
		"half a surrogate pair":      {`{}`, `{"a":"\ud800"}`, CodeBadRequest},
		"not UTF-8":                  {`{}`, "{\"a\":\"\xff\"}", CodeBadRequest},
		"deeper than a register":     {`{}`, `{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`, CodeBadRequest},
		"a byte too large":           {`{}`, `{"a":"` + strings.Repeat("x", MaxMetaBytes-7) + `"}`, CodeTooLarge},
		"together too large":         {`{"a":"` + strings.Repeat("x", 600) + `"}`, `{"b":"` + strings.Repeat("x", 600) + `"}`, CodeTooLarge},
		"a patch that takes all day": {`{}`, `{"a":"` + strings.Repeat("x", MaxPatchBytes) + `"}`, CodeTooLarge},
		"a token's half pair":        {`{"a":"\ud800"}`, `{"b":1}`, CodeBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := MergeMeta(c.meta, []byte(c.patch))
			refused, ok := errors.AsType[*ReplyError](err)
			if !ok || got != "" || refused.Code != c.want || !strings.HasPrefix(refused.Message, "meta: ") || (refused.Limit == LimitMeta) != (c.want == CodeTooLarge) {
				t.Errorf("got %q, %+v; want %s", got, err, c.want)
			}
		})
	}
}

// Whatever a client bound and a backend says, what comes of it can be in a register again.
func FuzzMergeMeta(f *testing.F) {
	f.Add(`{"a":{"b":1}}`, `{"a":{"b":null,"c":[1,{"d":null}]}}`)
	f.Add(``, `{"\u0061":"ä\n"}`)
	f.Add(`{"a":1,"a":2}`, `{"a":{}}`)
	f.Fuzz(func(t *testing.T, meta, patch string) {
		var frame Frame
		if meta != "" && frame.Decode([]byte(`{"type":"register","userId":"a","meta":`+meta+`}`)) != nil {
			return
		}
		merged, err := MergeMeta(meta, []byte(patch))
		if err != nil {
			return
		}
		if err := frame.Decode([]byte(`{"type":"register","userId":"a","meta":` + merged + `}`)); err != nil {
			t.Fatalf("%q and %q make %q, which is refused: %v", meta, patch, merged, err)
		}
		again, err := MergeMeta(merged, []byte(patch))
		if err != nil || again != merged {
			t.Fatalf("%q and %q make %q, and then %q, %v", meta, patch, merged, again, err)
		}
	})
}
