package keyspace

import (
	"fmt"
	"hash/fnv"
	"strings"
	"testing"

	"chatgate/internal/protocol"
)

const slots = 16384

// slotOf is the Cluster slot of a key as the Redis Cluster specification has it: CRC16 (XMODEM) of what is between the
// first '{' and the next '}', if that is not empty, else of the whole key.
func slotOf(key string) int {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			key = tag
		}
	}
	var crc uint16
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % slots
}

// The example of the specification: a slip in the test's own CRC would bless any table.
func TestSlotOfKnowsTheSpecification(t *testing.T) {
	for key, want := range map[string]int{
		"123456789":           0x31C3,
		"{user1000}.followed": 3443,
		"foo":                 12182,
		"foo{}{bar}":          8363,
		"foo{{bar}}zap":       4015,
	} {
		if got := slotOf(key); got != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	}
}

// Each 1,024 slots hold four partitions, so any even split of the slots gives every master its share: 16 masters have
// four each, three have 21 or 22.
func TestPartitionsAreSpreadEvenlyOverTheSlots(t *testing.T) {
	seen := make(map[string]bool)
	var each [slots / 1024]int
	for i, tag := range tags {
		if seen[tag] {
			t.Errorf("tag %q is used twice", tag)
		}
		seen[tag] = true
		slot := slotOf("cg:{" + tag + "}:x")
		if slot/256 != i {
			t.Errorf("partition %d (%q) is in slot %d, want one of %d to %d", i, tag, slot, 256*i, 256*i+255)
		}
		each[slot/1024]++
	}
	for i, n := range each {
		if n != 4 {
			t.Errorf("slots %d to %d hold %d partitions, want 4", 1024*i, 1024*i+1023, n)
		}
	}
	for masters := 1; masters <= 64; masters++ {
		count := make([]int, masters)
		for _, tag := range tags {
			count[slotOf(tag)*masters/slots]++
		}
		for m, n := range count {
			if n < Partitions/masters-1 || n > Partitions/masters+2 {
				t.Errorf("of %d masters, master %d has %d partitions, want about %.1f", masters, m, n, float64(Partitions)/float64(masters))
			}
		}
	}
}

// The partition is part of the stored model: whatever computes it anew must agree.
func TestPartitionIsFNV1aOfTheAddress(t *testing.T) {
	for _, a := range []protocol.Address{"u:alice", "u:", "r:lobby", "u:алиса", "u:}{", "r:a:b", ""} {
		h := fnv.New32a()
		h.Write([]byte(a))
		if got, want := Partition(a), int(h.Sum32()%Partitions); got != want {
			t.Errorf("partition of %q is %d, want %d", a, got, want)
		}
	}
}

// Names as people choose them fill all partitions alike.
func TestOrdinaryNamesFillAllPartitions(t *testing.T) {
	const each = 1000
	for _, pattern := range []string{"user%d", "%08d", "anna.%d@example.org", "00000000-0000-7000-8000-%012d"} {
		var n [Partitions]int
		for i := range each * Partitions {
			n[Partition(protocol.UserAddress(protocol.UserID(fmt.Sprintf(pattern, i))))]++
		}
		for p, got := range n {
			if got < each*8/10 || got > each*12/10 {
				t.Errorf("%s: partition %d has %d of %d names, want about %d", pattern, p, got, each*Partitions, each)
			}
		}
	}
}

// One script changes a user's state and tells who watches it, so both must be in one slot.
func TestAWatchLivesWithTheUserItWatches(t *testing.T) {
	for _, u := range []protocol.UserID{"alice", "bob", "w:x", "", "}{"} {
		if p, q := Partition(protocol.UserAddress(u)), Partition(protocol.WatchAddress(u)); p != q {
			t.Errorf("%q is in partition %d, its watchers in %d", u, p, q)
		}
	}
	if Holders(protocol.UserAddress("alice")) == Holders(protocol.WatchAddress("alice")) {
		t.Error("alice and those who watch her share a key")
	}
}

// All a script call may touch for one user is in one slot, on Cluster together with the keys of the group.
func TestEverythingOfAUserIsInOneSlot(t *testing.T) {
	l := Layout{Sharded: true}
	for _, u := range []protocol.UserID{"alice", "{x}", "}{", "a:b", "{", "}", "cg:{p17}:h:u:x", "\u007b\u007d"} {
		a := protocol.UserAddress(u)
		g, gw := l.GroupOf(a), protocol.GatewayID("a-1")
		want := slotOf(Conns(u))
		for _, key := range []string{
			Holders(a), Log(a), Stream(a), State(u), Holders(protocol.WatchAddress(u)),
			Leases(g), Line(g), Numbers(g), Offlines(g), Tombstones(g), Snapshots(g), Events(g), Own(g, gw), Channel(g, gw),
		} {
			if got := slotOf(key); got != want {
				t.Errorf("%q: %q is in slot %d, its conns in %d", u, key, got, want)
			}
		}
	}
}

// On anything but Cluster there is one group; on Cluster one for each partition.
func TestGroupsFollowTheLayout(t *testing.T) {
	alone := Layout{}
	if g := alone.Groups(); len(g) != 1 || g[0] != All {
		t.Errorf("groups of a single Redis: %v", g)
	}
	if g, i := alone.GroupOf("u:alice"), alone.GroupIndex("u:alice"); g != All || i != 0 {
		t.Errorf("u:alice is in group %q, %d", g, i)
	}
	sharded := Layout{Sharded: true}
	groups := sharded.Groups()
	if len(groups) != Partitions {
		t.Fatalf("%d groups, want %d", len(groups), Partitions)
	}
	for i := range 1000 {
		a := protocol.RoomAddress(protocol.RoomID(fmt.Sprint("room", i)))
		if g := sharded.GroupOf(a); g != groups[sharded.GroupIndex(a)] || g != Group(tags[Partition(a)]) {
			t.Errorf("%s: group %q, index %d, partition %d", a, g, sharded.GroupIndex(a), Partition(a))
		}
	}
}

// A move from one Redis to Cluster is a copy: the keys of an address have the same names on both.
func TestAddressKeysAreTheSameOnEveryKindOfRedis(t *testing.T) {
	for key, want := range map[string]string{
		Conns("alice"):      "cg:{p49}:c:u:alice",
		State("alice"):      "cg:{p49}:o:u:alice",
		Holders("u:alice"):  "cg:{p49}:h:u:alice",
		Holders("w:alice"):  "cg:{p49}:h:w:alice",
		Log("u:alice"):      "cg:{p49}:l:u:alice",
		Stream("u:alice"):   "cg:{p49}:s:u:alice",
		Own(All, "a-1"):     "cg:{all}:own:a-1",
		Channel(All, "a-1"): "cg:{all}:gw:a-1",
		Leases("p17"):       "cg:{p17}:lease",
	} {
		if key != want {
			t.Errorf("key %q, want %q", key, want)
		}
	}
}

// A gateway's name becomes part of keys, channels and space separated answers.
func TestGatewayNamesAreWordsWithoutSeparators(t *testing.T) {
	for _, name := range []string{"a", "eu-west-1.gw_07", "A-Z.0", strings.Repeat("x", 64)} {
		if !CheckGatewayName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", " ", "a b", "a\n", "a:b", "{a}", "a\x1f", "ä", "*", "../..", "a/b", strings.Repeat("x", 65), "\xff"} {
		if CheckGatewayName(name) {
			t.Errorf("%q is taken", name)
		}
	}
}
