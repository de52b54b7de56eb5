package keyspace

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"chatgate/internal/protocol"
)

// A named key is one of the package's functions applied to an id.
type named struct {
	Function string
	ID       string
}

// functions of an address or of a gateway. Sharded group names are part of what may be confused.
var functions = map[string]func(id string) string{
	"conns":           func(id string) string { return Conns(protocol.UserID(id)) },
	"state":           func(id string) string { return State(protocol.UserID(id)) },
	"user holders":    func(id string) string { return Holders(protocol.UserAddress(protocol.UserID(id))) },
	"room holders":    func(id string) string { return Holders(protocol.RoomAddress(protocol.RoomID(id))) },
	"watchers":        func(id string) string { return Holders(protocol.WatchAddress(protocol.UserID(id))) },
	"user log":        func(id string) string { return Log(protocol.UserAddress(protocol.UserID(id))) },
	"room log":        func(id string) string { return Log(protocol.RoomAddress(protocol.RoomID(id))) },
	"members":         func(id string) string { return Members(protocol.RoomAddress(protocol.RoomID(id))) },
	"member counts":   func(id string) string { return MemberCounts(protocol.RoomAddress(protocol.RoomID(id))) },
	"user stream":     func(id string) string { return Stream(protocol.UserAddress(protocol.UserID(id))) },
	"room stream":     func(id string) string { return Stream(protocol.RoomAddress(protocol.RoomID(id))) },
	"user cursors":    func(id string) string { return Cursors(protocol.UserAddress(protocol.UserID(id)), protocol.UserID(id)) },
	"own":             func(id string) string { return Own(All, protocol.GatewayID(id)) },
	"own in p17":      func(id string) string { return Own("p17", protocol.GatewayID(id)) },
	"channel":         func(id string) string { return Channel(All, protocol.GatewayID(id)) },
	"channel in p17":  func(id string) string { return Channel("p17", protocol.GatewayID(id)) },
	"leases of all":   func(string) string { return Leases(All) },
	"numbers of all":  func(string) string { return Numbers(All) },
	"members of all":  func(string) string { return Memberships(All) },
	"events of all":   func(string) string { return Events(All) },
	"sinks of all":    func(string) string { return Sinks(All) },
	"line of all":     func(string) string { return Line(All) },
	"tombs of all":    func(string) string { return Tombstones(All) },
	"snaps of all":    func(string) string { return Snapshots(All) },
	"revoked of all":  func(string) string { return Revocations(All) },
	"order of all":    func(string) string { return RevocationOrder(All) },
	"replies":         Replies,
	"commands of all": func(string) string { return Commands() },
	"dead of all":     func(string) string { return DeadCommands() },
	"offlines of p17": func(string) string { return Offlines("p17") },
}

// withoutID are the functions that ignore the id.
func withoutID(function string) bool { return strings.Contains(function, " of ") }

// nasty ids are made of our own separators, prefixes and tags.
func nasty() *rapid.Generator[string] {
	pieces := rapid.SampledFrom([]string{
		"a", "b", ":", "{", "}", "{x}", "}{", "a:b", "u:", "r:", "w:", "cg:", "{p17}", "cg:{p49}:c:u:", "h", "own:", "gw:", "*", "\n", "\r\n",
		"\x00", "\x1f", " ", "\xff", "..", "/", "é", "é", "ｕ",
	})
	return rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(pieces, 0, 6).Draw(t, "pieces"), "")
	})
}

// Two different things never share a key, whatever their ids are made of.
func TestKeysAreInjective(t *testing.T) {
	names := make([]string, 0, len(functions))
	for name := range functions {
		names = append(names, name)
	}
	one := rapid.Custom(func(t *rapid.T) named {
		n := named{Function: rapid.SampledFrom(names).Draw(t, "function"), ID: nasty().Draw(t, "id")}
		if withoutID(n.Function) {
			n.ID = ""
		}
		return n
	})
	rapid.Check(t, func(t *rapid.T) {
		many := rapid.SliceOfN(one, 2, 20).Draw(t, "names")
		made := make(map[string]named)
		for _, n := range many {
			key := functions[n.Function](n.ID)
			if other, ok := made[key]; ok && other != n {
				t.Fatalf("%v and %v share the key %q", n, other, key)
			}
			made[key] = n
		}
	})
}

// The slot of a key comes from the tag we put in front, never from braces in an id.
func TestTheHashTagIsTheFirstPairOfBraces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := nasty().Draw(t, "id")
		for name, function := range functions {
			key := function(id)
			rest, ok := strings.CutPrefix(key, "cg:{")
			tag, _, closed := strings.Cut(rest, "}")
			if !ok || !closed || tag == "" || strings.ContainsAny(tag, ":{") {
				t.Fatalf("%s of %q: %q begins with no tag", name, id, key)
			}
			if strings.HasPrefix(name, "user ") {
				if want := tags[Partition(protocol.UserAddress(protocol.UserID(id)))]; tag != want {
					t.Fatalf("%s of %q has tag %q, want %q", name, id, tag, want)
				}
			}
		}
	})
}
