package protocol

import (
	"bytes"
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// likeEncodingJSON is s as encoding/json writes it without HTML escaping.
func likeEncodingJSON(t interface{ Fatal(...any) }, s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

func TestStringsAreWrittenAsEncodingJSONWritesThem(t *testing.T) {
	tests := map[string]string{
		"empty":                  "",
		"plain":                  "alice",
		"html":                   "<a href='x'>&</a>",
		"quotes and backslashes": `"\"\\`,
		"short escapes":          "\b\f\n\r\t",
		"control characters":     "\x00\x01\x1b\x1f\x7f",
		"other scripts":          "é 愛 🙂 \u00a0",
		"line separators":        "a\u2028b\u2029\u202a",
		"invalid UTF-8":          "\xffa\xc3\xc3\xa9\xed\xa0\x80\xf0\x9f",
		"a real U+FFFD":          "\ufffd",
	}
	for name, s := range tests {
		t.Run(name, func(t *testing.T) {
			want := likeEncodingJSON(t, s)
			if got := string(appendString(nil, s)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if got := string(appendString(nil, []byte(s))); got != want {
				t.Errorf("from bytes: got %s, want %s", got, want)
			}
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "s")
		if got, want := string(appendString(nil, s)), likeEncodingJSON(t, s); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestEncodersAppend(t *testing.T) {
	dst := []byte("before")
	for name, got := range map[string][]byte{
		"registered": AppendRegistered(dst, &Registered{}),
		"heartbeat":  AppendHeartbeat(dst, 1, true),
		"ack":        AppendAck(dst, &Ack{}),
		"error":      AppendError(dst, &ReplyError{}),
		"closing":    AppendClosing(dst, &Closing{}),
		"presence":   AppendPresence(dst, nil, nil),
		"members":    AppendMembers(dst, &Members{}),
		"push":       AppendMembersPush(dst, &MembersPush{Named: true}),
		"message":    AppendMessageTail(AppendMessageHead(dst, &MessageHead{Content: []byte("1")}), "", 0),
	} {
		rest, ok := bytes.CutPrefix(got, dst)
		if !ok || !json.Valid(rest) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// Whatever stands in their strings, frames are JSON that says the same: an operator's reason may hold quotes.
func TestFramesKeepTheirStrings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		var got struct {
			ID, Message, Limit, Reason, By string
			Users                          map[string]struct{ Version string }
		}
		read := func(frame []byte) {
			if err := json.Unmarshal(frame, &got); err != nil {
				t.Fatalf("%s: %v", frame, err)
			}
		}
		read(AppendError(nil, &ReplyError{ID: s, Code: CodeInternal, Message: s, Limit: s}))
		read(AppendClosing(nil, &Closing{Code: CloseKicked, Reason: "x" + s, By: s}))
		read(AppendPresence(nil, []byte(s), []UserPresence{{User: UserID(s), State: StateOnline, Version: s}}))
		if got.ID != s || got.Message != s || got.Limit != s || got.Reason != "x"+s || got.By != s || got.Users[s].Version != s {
			t.Fatalf("%q became %+v", s, got)
		}
	})
}
