package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// addGolden seeds a corpus with the frames of testdata and some that are refused.
func addGolden(f *testing.F, add func([]byte)) {
	f.Helper()
	paths, err := filepath.Glob("testdata/*/*.json")
	if err != nil || len(paths) == 0 {
		f.Fatal("no golden frames", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		add(data)
	}
	for _, s := range []string{
		``, `null`, `[]`, `{}`, `{}{}`, "\ufeff{}", `{"type":"message","to":"a","to":"b","content":1}`, `{"TYPE":"heartbeat"}`,
		`{"type":"message","to":"bob","content":"\ud83d\ude42\ud83d"}`, `{"type":"message","to":"bob","content":"\\ud83d"}`,
		`{"type":"message","to":"bob","content":[[[[1e400,-0.0e-1]]]],"id":"\u006d"}`, `{"type":"history","after":1.0,"limit":1e2}`,
		`{"type":"register","userId":"a","rooms":{"x":{"OFFSET":1,"offset":2,"epoch":"\u0065"},"y":null}}`, "{\"type\":\"heartbeat\",\"x\":\"\xff\"}",
	} {
		add([]byte(s))
	}
}

// FuzzDecode holds Decode against a reference made of encoding/json and the stated differences: the same frames are accepted, with
// the same values, and refusals carry the same id.
func FuzzDecode(f *testing.F) {
	addGolden(f, func(data []byte) { f.Add(data) })
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		want := refer(data)
		var got Frame
		err := got.Decode(data)
		if !bytes.Equal(before, data) {
			t.Fatal("Decode wrote into the data")
		}
		switch {
		case err == nil && !want.ok:
			t.Fatalf("%q accepted", data)
		case err == nil:
			wantSame(t, &got, want)
			if got.Type == TypeMessage {
				wantNoSplice(t, &got)
			}
		case want.ok:
			t.Fatalf("%q refused: %v", data, err)
		case want.fields != nil && err.ID != want.id:
			t.Fatalf("%q: error carries id %q, want %q", data, err.ID, want.id)
		case err.ID != "" && !ValidID([]byte(err.ID), MaxMessageIDBytes):
			t.Fatalf("%q: error carries id %q", data, err.ID)
		}
		if err != nil && !json.Valid(AppendError(nil, err)) {
			t.Fatalf("%q: %s", data, AppendError(nil, err))
		}
	})
}

// wantNoSplice encodes a decoded message for its receiver and reads that with encoding/json: it has exactly the fields the gateway
// wrote, each once, and the content is the sender's bytes.
func wantNoSplice(t *testing.T, f *Frame) {
	t.Helper()
	head := MessageHead{ID: f.ID, From: "alice", To: f.To, Room: f.Room, Content: f.Content, Ts: 1795305601234, Ephemeral: f.Ephemeral, Own: f.Copy}
	if head.ID == nil {
		head.ID = []byte("made")
	}
	frame := AppendMessageTail(AppendMessageHead(nil, &head), "9fK2mQx7aZ", 42)
	all, ok := entries(frame)
	if !ok {
		t.Fatalf("not an object: %s", frame)
	}
	address, name := string(f.To), "to"
	if f.To == nil {
		address, name = string(f.Room), "room"
	}
	want := map[string]any{
		"type": "message", "id": string(head.ID), "from": "alice", name: address, "ts": "1795305601234", "epoch": "9fK2mQx7aZ", "offset": "42",
	}
	if head.Ephemeral {
		want["ephemeral"] = true
	}
	if head.Own {
		want["own"] = true
	}
	got := map[string]any{}
	for _, e := range all {
		if e.name == "content" {
			if !bytes.Equal(e.raw, f.Content) {
				t.Fatalf("content is %s, sent was %s", e.raw, f.Content)
			}
			continue
		}
		var v any
		dec := json.NewDecoder(bytes.NewReader(e.raw))
		dec.UseNumber()
		if err := dec.Decode(&v); err != nil {
			t.Fatal(err)
		}
		if n, ok := v.(json.Number); ok {
			v = n.String()
		}
		got[e.name] = v
	}
	if !reflect.DeepEqual(got, want) || len(all) != len(want)+1 {
		t.Fatalf("%s\ngot  %v\nwant %v", frame, got, want)
	}
	// What we send, we accept, fields of other frames and all.
	var again Frame
	if err := again.Decode(frame); err != nil || !bytes.Equal(again.Content, f.Content) || !bytes.Equal(again.To, f.To) {
		t.Fatalf("%s\n%v", frame, err)
	}
}

// FuzzContentSplice puts anything in the place of content, and strange names around it. If the frame is accepted at all, the receiver
// gets one content and no field that the gateway didn't write; and what is accepted as content is a JSON value of its own.
func FuzzContentSplice(f *testing.F) {
	for _, content := range []string{
		`1`, `{"a":[1,"}",{"b":null}]}`, `1,"from":"root"`, `{"x":1}},"from":"root"`, `"x","offset":1`, `"\"},\"from\":\"root\""`, `[1],"content":2`,
		`"\u007d"`, "1\n", " [ ] ", `"` + "\u2028" + `"`, `}`, `]`, `"`, `\`, `tru`, `-`, `1e`, `"\ud800"`,
	} {
		f.Add([]byte(content), "m-1", "bob", false)
	}
	f.Add([]byte(`null`), `","from":"root`, `b"o\b`, true)
	f.Add([]byte(`null`), "\u2028", "\U0010ffff}{", true)
	f.Fuzz(func(t *testing.T, content []byte, id, address string, room bool) {
		name := "to"
		if room {
			name = "room"
		}
		id, address = strings.ToValidUTF8(id, "\ufffd"), strings.ToValidUTF8(address, "\ufffd")
		quotedID, _ := json.Marshal(id)
		quotedAddress, _ := json.Marshal(address)
		data := fmt.Appendf(nil, `{"type":"message","id":%s,"content":%s,%q:%s}`, quotedID, content, name, quotedAddress)
		var got Frame
		if err := got.Decode(data); err != nil {
			return
		}
		if !json.Valid(got.Content) || len(got.Content) != len(bytes.TrimSpace(got.Content)) {
			t.Fatalf("content is %q", got.Content)
		}
		if string(got.ID) != id || string(got.To)+string(got.Room) != address {
			t.Fatalf("id %q, to %q, room %q", got.ID, got.To, got.Room)
		}
		wantNoSplice(t, &got)
	})
}

// FuzzPosition gives one and the same value as the position of a register, of a room in it and of a join: all take it, and take it for
// the same, or all refuse it. What they take with an epoch is a position that received and history take.
func FuzzPosition(f *testing.F) {
	for _, position := range []string{
		`null`, `{"offset":0}`, `{"epoch":"e","offset":18446744073709551615}`, `{"epoch":"e","offset":18446744073709551616}`, `{"epoch":null,"offset":7}`,
		`{"offset":1e3}`, `{"offset":-1}`, `{"offset":1,"offset":2}`, `{"OFFSET":1}`, `{"epoch":"\u0065","offset":1,"x":[{}]}`, `{"epoch":""}`, `[]`, `""`, `7`,
	} {
		f.Add([]byte(position), "lobby")
	}
	f.Fuzz(func(t *testing.T, position []byte, room string) {
		// Anything else would be more than a value, and what nests as deep as it may is a level too deep in rooms.
		if !json.Valid(position) || levels(position) >= MaxDepth {
			return
		}
		quoted, _ := json.Marshal(room)
		var register, rooms, join, received, history Frame
		one := register.Decode(fmt.Appendf(nil, `{"type":"register","userId":"a","resume":%s}`, position))
		two := rooms.Decode(fmt.Appendf(nil, `{"type":"register","userId":"a","rooms":{%s:%s}}`, quoted, position))
		three := join.Decode(fmt.Appendf(nil, `{"type":"join","room":%s,"resume":%s}`, quoted, position))
		if (two == nil) != (three == nil) {
			t.Fatalf("%s in %s: a register says %v, a join %v", position, quoted, two, three)
		}
		if !ValidID([]byte(room), MaxIDBytes) || !utf8.ValidString(room) {
			return
		}
		if (one == nil) != (two == nil) {
			t.Fatalf("%s: for the inbox %v, for a room %v", position, one, two)
		}
		if one != nil {
			return
		}
		if len(rooms.Rooms) != 1 || string(rooms.Rooms[0].Room) != room || string(join.Room) != room ||
			!reflect.DeepEqual(register.Resume, rooms.Rooms[0].Resume) || !reflect.DeepEqual(register.Resume, join.Resume) {
			t.Fatalf("%s: %+v, %+v and %+v", position, register.Resume, rooms.Rooms, join.Resume)
		}
		at := register.Resume
		if !at.HasEpoch {
			return
		}
		epoch, _ := json.Marshal(string(at.Epoch))
		if err := received.Decode(fmt.Appendf(nil, `{"type":"received","epoch":%s,"offset":%d}`, epoch, at.Offset)); err != nil ||
			received.Offset != at.Offset || !bytes.Equal(received.Epoch, at.Epoch) {
			t.Fatalf("%s: received is %+v, %v", position, received, err)
		}
		if err := history.Decode(fmt.Appendf(nil, `{"type":"history","epoch":%s,"after":%d}`, epoch, at.Offset)); err != nil ||
			history.After != at.Offset || !bytes.Equal(history.Epoch, at.Epoch) {
			t.Fatalf("%s: history is %+v, %v", position, history, err)
		}
	})
}
