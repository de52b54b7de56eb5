package protocol

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"testing"
	"unicode/utf8"
)

// entry is one name and value of an object, as encoding/json splits it.
type entry struct {
	name string
	raw  json.RawMessage
}

// entries splits an object with encoding/json alone. It allows what the scanner refuses on purpose.
func entries(data []byte) ([]entry, bool) {
	if !json.Valid(data) {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if token, err := dec.Token(); err != nil || token != json.Delim('{') {
		return nil, false
	}
	var all []entry
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, false
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, false
		}
		all = append(all, entry{name.(string), bytes.TrimSpace(raw)})
	}
	return all, true
}

// levels is how deep valid JSON nests.
func levels(raw []byte) (deepest int) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber() // 1e400 is no float64
	for depth := 0; ; {
		token, err := dec.Token()
		if err != nil {
			return deepest
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

var (
	pairOfSurrogates = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	surrogate        = regexp.MustCompile(`\\u[dD][89a-fA-F][0-9a-fA-F]{2}`)
)

// loneSurrogate looks for one in valid JSON, where a backslash stands in strings only.
func loneSurrogate(data []byte) bool {
	data = bytes.ReplaceAll(data, []byte(`\\`), []byte("  "))
	return surrogate.Match(pairOfSurrogates.ReplaceAll(data, nil))
}

// reference is Decode written the obvious way, on top of encoding/json. It allocates, and it can't say what is wrong.
type reference struct {
	fields map[string]json.RawMessage
	id     string // what an error carries
	ok     bool
}

func refer(data []byte) reference {
	all, ok := entries(data)
	if !ok || !utf8.Valid(data) || loneSurrogate(data) {
		return reference{}
	}
	r := reference{fields: map[string]json.RawMessage{}, ok: true}
	idTwice := false
	for _, e := range all {
		if levels(e.raw) > MaxDepth {
			return reference{}
		}
		if slices.Index(fieldNames[:fieldCount], e.name) < 0 {
			continue
		}
		if _, twice := r.fields[e.name]; twice {
			r.ok = false
			idTwice = idTwice || e.name == "id"
			continue
		}
		r.fields[e.name] = e.raw
	}
	if id, ok := r.ident("id", MaxMessageIDBytes, true); ok && !idTwice {
		r.id = id
	}
	r.ok = r.ok && r.rules()
	return r
}

// has is false for null too.
func (r reference) has(name string) bool {
	raw, ok := r.fields[name]
	return ok && string(raw) != "null"
}

// read is true for what is absent and not needed.
func (r reference) read(name string, into any, needed bool) bool {
	if !r.has(name) {
		return !needed
	}
	return json.Unmarshal(r.fields[name], into) == nil
}

func (r reference) text(name string, needed bool) (s string, ok bool) {
	ok = r.read(name, &s, needed)
	return s, ok && (s != "" || !r.has(name))
}

func (r reference) ident(name string, most int, needed bool) (s string, ok bool) {
	s, ok = r.text(name, needed)
	return s, ok && (s == "" || ValidID([]byte(s), most))
}

func validResume(raw json.RawMessage) bool {
	if string(raw) == "null" {
		return true
	}
	all, ok := entries(raw)
	fields := map[string]json.RawMessage{}
	for _, e := range all {
		if _, twice := fields[e.name]; twice && (e.name == "epoch" || e.name == "offset") {
			return false
		}
		fields[e.name] = e.raw
	}
	r := reference{fields: fields}
	var offset uint64
	_, epoch := r.ident("epoch", MaxIDBytes, false)
	return ok && epoch && r.read("offset", &offset, true)
}

func (r reference) rules() bool {
	var offset uint64
	var flag bool
	all := func(checks ...bool) bool { return !slices.Contains(checks, false) }
	ident := func(name string, needed bool) bool { _, ok := r.ident(name, MaxIDBytes, needed); return ok }
	text := func(name string, needed bool) bool { _, ok := r.text(name, needed); return ok }
	_, id := r.ident("id", MaxMessageIDBytes, false)
	resume := !r.has("resume") || validResume(r.fields["resume"])
	limit := true
	if r.has("limit") {
		var n uint64
		limit = r.read("limit", &n, true) && n > 0
	}
	name, ok := r.text("type", true)
	switch {
	case !ok:
		return false
	case name == "register":
		rooms := true
		if r.has("rooms") {
			list, ok := entries(r.fields["rooms"])
			names := map[string]bool{}
			for _, e := range list {
				ok = ok && ValidID([]byte(e.name), MaxIDBytes) && validResume(e.raw) && !names[e.name]
				names[e.name] = true
			}
			rooms = ok
		}
		meta := true
		if r.has("meta") {
			meta = r.fields["meta"][0] == '{' && len(r.fields["meta"]) <= MaxMetaBytes
		}
		return all(text("token", false), ident("userId", false), ident("deviceId", false), ident("deviceClass", false), meta, resume, rooms)
	case name == "heartbeat":
		return true
	case name == "message":
		_, content := r.fields["content"]
		both := string(r.fields["copy"]) == "true" && string(r.fields["ephemeral"]) == "true"
		return all(id, ident("to", false), ident("room", false), r.has("to") != r.has("room"), content,
			r.read("copy", &flag, false), r.read("ephemeral", &flag, false), !both)
	case name == "received":
		return all(ident("room", false), ident("epoch", true), r.read("offset", &offset, true))
	case name == "join":
		return all(id, ident("room", true), resume)
	case name == "leave":
		return all(id, ident("room", true))
	case name == "history":
		return all(id, ident("room", false), ident("epoch", false), r.read("after", &offset, false), r.read("before", &offset, false),
			!r.has("after") || !r.has("before"), limit)
	case name == "presence", name == "watch", name == "unwatch":
		var users []*string
		ok := r.read("users", &users, true) && len(users) > 0 && len(users) <= MaxUsers
		for _, user := range users {
			ok = ok && user != nil && ValidID([]byte(*user), MaxIDBytes)
		}
		return all(id, ok)
	case name == "members":
		return all(id, ident("room", true), text("after", false), limit)
	case name == "refresh":
		return all(id, text("token", true))
	}
	return false
}

// wantSame compares the decoded fields with what encoding/json reads from the same bytes.
func wantSame(t *testing.T, f *Frame, r reference) {
	t.Helper()
	var resume struct {
		Epoch  *string
		Offset uint64
	}
	texts := map[string][]byte{
		"userId": f.UserID, "token": f.Token, "deviceId": f.DeviceID, "deviceClass": f.Class, "to": f.To, "room": f.Room, "epoch": f.Epoch, "id": f.ID, "after": f.Cursor,
	}
	for name, got := range texts {
		if got == nil {
			continue
		}
		if want, ok := r.text(name, true); !ok || want != string(got) {
			t.Errorf("%s: %q, encoding/json reads %q", name, got, want)
		}
	}
	for name, got := range map[string][]byte{"content": f.Content, "meta": f.Meta} {
		if got != nil && !bytes.Equal(got, r.fields[name]) {
			t.Errorf("%s: %q, encoding/json keeps %q", name, got, r.fields[name])
		}
	}
	if f.Type == TypeMessage && (f.Ephemeral != (string(r.fields["ephemeral"]) == "true") || f.Copy != (string(r.fields["copy"]) == "true")) {
		t.Errorf("ephemeral %v, copy %v", f.Ephemeral, f.Copy)
	}
	for name, got := range map[string]struct {
		set bool
		n   uint64
	}{"offset": {f.Type == TypeReceived, f.Offset}, "after": {f.HasAfter, f.After}, "before": {f.HasBefore, f.Before}} {
		var want uint64
		if got.set && (!r.read(name, &want, true) || want != got.n) {
			t.Errorf("%s: %d, encoding/json reads %d", name, got.n, want)
		}
	}
	if f.Resume.Set {
		raw := exactFields(t, r.fields["resume"], "epoch", "offset")
		if err := json.Unmarshal(raw, &resume); err != nil || resume.Offset != f.Resume.Offset || (resume.Epoch != nil) != f.Resume.HasEpoch ||
			resume.Epoch != nil && *resume.Epoch != string(f.Resume.Epoch) {
			t.Errorf("resume: %+v, encoding/json reads %+v, %v", f.Resume, resume, err)
		}
	}
	if len(f.Users) > 0 {
		var users []string
		if err := json.Unmarshal(r.fields["users"], &users); err != nil {
			t.Error(err)
		}
		got := map[string]bool{}
		for _, user := range f.Users {
			got[string(user)] = true
		}
		want := map[string]bool{}
		for _, user := range users {
			want[user] = true
		}
		if !maps.Equal(got, want) || len(got) != len(f.Users) {
			t.Errorf("users: %q, encoding/json reads %q", f.Users, users)
		}
	}
	if len(f.Rooms) > 0 {
		list, _ := entries(r.fields["rooms"])
		if len(list) != len(f.Rooms) {
			t.Errorf("%d rooms, encoding/json reads %d", len(f.Rooms), len(list))
		}
		for i, e := range list {
			if e.name != string(f.Rooms[i].Room) || f.Rooms[i].Resume.Set != (string(e.raw) != "null") {
				t.Errorf("room %d: %+v, encoding/json reads %q %s", i, f.Rooms[i], e.name, e.raw)
			}
		}
	}
}

// exactFields keeps the named fields of an object: encoding/json would take "OFFSET" for offset.
func exactFields(t *testing.T, raw json.RawMessage, names ...string) []byte {
	t.Helper()
	all, _ := entries(raw)
	kept := map[string]json.RawMessage{}
	for _, e := range all {
		if slices.Contains(names, e.name) {
			kept[e.name] = e.raw
		}
	}
	data, err := json.Marshal(kept)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
