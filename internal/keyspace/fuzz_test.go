package keyspace

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"chatgate/internal/protocol"
)

// asID makes an id of anything: what is no character of one is left out.
func asID(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7F && r < 0xA0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	for len(s) > protocol.MaxIDBytes {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	if s == "" {
		return "x"
	}
	return s
}

// FuzzKeys makes two keys of any functions and any ids: they are the same only if all that they were made of is. And each is in the slot
// of its address, whatever braces an id has.
func FuzzKeys(f *testing.F) {
	names := make([]string, 0, len(functions)+1)
	for name := range functions {
		names = append(names, name)
	}
	names = append(names, "cursors in a room")
	slices.Sort(names)
	made := func(kind uint8, id, second string) (key, of string) {
		name := names[int(kind)%len(names)]
		switch {
		case name == "cursors in a room":
			return Cursors(protocol.RoomAddress(protocol.RoomID(id)), protocol.UserID(second)), name + "\x00" + id + "\x00" + second
		case withoutID(name):
			return functions[name](""), name
		}
		return functions[name](id), name + "\x00" + id
	}
	for kind := range uint8(len(names)) {
		f.Add(kind, "a", "b", kind+1, "a:b", "}{")
		f.Add(kind, "u:a", "{x}", kind+7, "cg:{p17}:gw:x", "h")
	}
	// Keys of two partitions differ by their tags, so what separates names is seen in one partition only.
	for i, found := 0, 0; found < 4; i++ {
		rest := strconv.Itoa(i)
		if Partition(protocol.RoomAddress("a")) != Partition(protocol.RoomAddress(protocol.RoomID("a:"+rest))) {
			continue
		}
		found++
		for kind := range uint8(len(names)) {
			f.Add(kind, "a:"+rest, "c", kind, "a", rest+":c")
		}
	}
	f.Fuzz(func(t *testing.T, kind1 uint8, id1, second1 string, kind2 uint8, id2, second2 string) {
		id1, second1, id2, second2 = asID(id1), asID(second1), asID(id2), asID(second2)
		key1, of1 := made(kind1, id1, second1)
		key2, of2 := made(kind2, id2, second2)
		if (key1 == key2) != (of1 == of2) {
			t.Fatalf("%q and %q have the keys %q and %q", of1, of2, key1, key2)
		}
		for _, key := range []string{key1, key2} {
			rest, ok := strings.CutPrefix(key, "cg:{")
			tag, _, closed := strings.Cut(rest, "}:")
			if !ok || !closed || tag != string(All) && tag != "p17" && tag != "cmd" && !slices.Contains(tags[:], tag) {
				t.Fatalf("%q has no tag of ours in front", key)
			}
		}
		a := protocol.RoomAddress(protocol.RoomID(id1))
		want := "cg:{" + tags[Partition(a)] + "}:"
		for _, key := range []string{Holders(a), Log(a), Stream(a), Members(a), MemberCounts(a), Cursors(a, protocol.UserID(second1))} {
			if !strings.HasPrefix(key, want) {
				t.Fatalf("%q is not in the slot of %q", key, a)
			}
		}
	})
}
