package keyspace

import (
	"strings"

	"chatgate/internal/protocol"
)

// Partitions is the number of partitions addresses are spread over. It is part
// of the stored model: changing it moves every log.
const Partitions = 64

// tags holds the hash tag number of each partition. Number n stands for the tag
// "p<n>", and the numbers are chosen so that the Cluster slot of partition i
// lies inside [256*i, 256*i+256): an even split of the 16,384 slots gives every
// master the same number of partitions.
var tags = [Partitions]string{
	"p68", "p60", "p73", "p100", "p51", "p59", "p131", "p42",
	"p11", "p19", "p171", "p179", "p28", "p20", "p3", "p140",
	"p69", "p61", "p72", "p101", "p50", "p58", "p130", "p43",
	"p10", "p18", "p170", "p178", "p29", "p21", "p2", "p141",
	"p111", "p62", "p71", "p79", "p53", "p120", "p48", "p40",
	"p13", "p160", "p173", "p322", "p151", "p22", "p1", "p9",
	"p110", "p63", "p70", "p78", "p52", "p121", "p49", "p41",
	"p12", "p161", "p172", "p323", "p150", "p23", "p0", "p8",
}

// Partition returns the partition of an address, 0 to 63: FNV-1a 32 of the
// address modulo 64. A watch "w:x" lives with the user "u:x" it watches, so that
// one script can change a user's state and tell those who watch.
func Partition(a protocol.Address) int {
	const offset, prime = 2166136261, 16777619
	h := uint32(offset)
	for i := 0; i < len(a); i++ {
		c := a[i]
		if i == 0 && c == 'w' {
			c = 'u'
		}
		h = (h ^ uint32(c)) * prime
	}
	return int(h % Partitions)
}

// Group is what one script call may touch: everything on a standalone or
// Sentinel Redis, one partition on Redis Cluster. Its value is the hash tag.
type Group string

// All is the only group of a Redis that is not a Cluster.
const All Group = "all"

// Layout says how the keyspace is grouped. The zero value is a single group.
type Layout struct {
	// Sharded is true on Redis Cluster: one group for each partition, sharded
	// Pub/Sub, and scripts that declare themselves with #!lua.
	Sharded bool
}

// Groups lists the groups of the layout, in partition order.
func (l Layout) Groups() []Group {
	if !l.Sharded {
		return []Group{All}
	}
	gs := make([]Group, Partitions)
	for i := range gs {
		gs[i] = Group(tags[i])
	}
	return gs
}

// GroupIndex returns the index of the address's group in Groups.
func (l Layout) GroupIndex(a protocol.Address) int {
	if !l.Sharded {
		return 0
	}
	return Partition(a)
}

// GroupOf returns the group of an address.
func (l Layout) GroupOf(a protocol.Address) Group {
	if !l.Sharded {
		return All
	}
	return Group(tags[Partition(a)])
}

// An address stands last in its keys, behind the first hash tag, so any bytes an
// id may have (braces and colons too) can neither move a key to another slot nor
// make two addresses share one.
func addressKey(kind string, a protocol.Address) string {
	return "cg:{" + tags[Partition(a)] + "}:" + kind + ":" + string(a)
}

// Holders is the hash gateway id -> count of connections (or members, or
// watchers) of the address there: all that sending reads.
func Holders(a protocol.Address) string { return addressKey("h", a) }

// Log is the hash with the address's epoch, top and dedupe records.
func Log(a protocol.Address) string { return addressKey("l", a) }

// Stream is the Redis stream with the address's messages.
func Stream(a protocol.Address) string { return addressKey("s", a) }

// Members is the sorted set of who is in a room where: all scores are 0, and for
// each user on each gateway there are two members, "u<user>\x1f<gateway>" and
// "g<gateway>\x1f<user>". A range of the first kind is a page of the room, or where
// a user is; one of the second is what a gateway has there.
func Members(a protocol.Address) string { return addressKey("m", a) }

// MemberCounts is the hash of how many users are in a room: in all under the empty
// name, and under each gateway's id those who are there and nowhere else.
func MemberCounts(a protocol.Address) string { return addressKey("n", a) }

// Conns is the hash connection id -> entry of a user.
func Conns(u protocol.UserID) string { return addressKey("c", protocol.UserAddress(u)) }

// State is the versioned online or offline state of a user.
func State(u protocol.UserID) string { return addressKey("o", protocol.UserAddress(u)) }

// Cursors is the hash device -> position up to which that device of a user has
// kept everything of an address: of the user's own, or of a room. What stands
// between room and user is no character of an id.
func Cursors(a protocol.Address, u protocol.UserID) string {
	if a == protocol.UserAddress(u) {
		return addressKey("d", a)
	}
	return addressKey("d", a) + "\x1f" + string(u)
}

func groupKey(g Group, name string) string { return "cg:{" + string(g) + "}:" + name }

// Leases is the sorted set gateway id -> end of its lease, in ms of Redis TIME.
func Leases(g Group) string { return groupKey(g, "lease") }

// Line is the hash with the group's history line, its last pulse and the end of
// its quiet time.
func Line(g Group) string { return groupKey(g, "line") }

// Numbers is the hash gateway id -> last number published on its channel; its fields
// 'ev' and 'evm', which are no gateway ids, count the group's events and those of messages.
func Numbers(g Group) string { return groupKey(g, "num") }

// Offlines is the sorted set of users whose grace period runs, by its end in ms.
func Offlines(g Group) string { return groupKey(g, "off") }

// Tombstones is the hash gateway id -> end of the lease after which it was
// reaped, in ms of Redis TIME.
func Tombstones(g Group) string { return groupKey(g, "tomb") }

// Snapshots is the hash gateway id -> its last /stats, as JSON.
func Snapshots(g Group) string { return groupKey(g, "snap") }

// Events is the stream of events of the group.
func Events(g Group) string { return groupKey(g, "ev") }

// MessageEvents is the stream of events of messages of the group. It is another one so
// that they push no other event out, and are read by nobody who doesn't want them.
func MessageEvents(g Group) string { return groupKey(g, "evm") }

// Revocations is the hash of what was revoked: name -> before, end and number. In
// the first group only.
func Revocations(g Group) string { return groupKey(g, "rev") }

// RevocationOrder is the sorted set of the same names by the number of their last
// change.
func RevocationOrder(g Group) string { return groupKey(g, "revs") }

// Sinks is the hash sink -> who carries the group's events to it, until when, and
// how far they are read and acknowledged. Events of messages have a field of their own,
// the sink's name with " evm" behind it.
func Sinks(g Group) string { return groupKey(g, "sinks") }

// Own is the hash of what one gateway holds in the group, by connection id.
func Own(g Group, gw protocol.GatewayID) string { return groupKey(g, "own:"+string(gw)) }

// Memberships is the hash gateway id -> how many users it has in rooms of the
// group, each counted once in each room.
func Memberships(g Group) string { return groupKey(g, "mem") }

// Commands is the stream of what backends want done. It is the same on every kind of
// Redis, so that a backend need not know which one it is.
func Commands() string { return commandKey("in") }

// DeadCommands is the stream of those that were given up.
func DeadCommands() string { return commandKey("dead") }

// Replies is the stream of answers to commands that name it. Backends choose the
// names, and nothing but a stream of answers can be named.
func Replies(name string) string { return commandKey("re:" + name) }

func commandKey(name string) string { return "cg:{cmd}:" + name }

// ChannelPrefix is what a gateway id is appended to for its channel.
func ChannelPrefix(g Group) string { return groupKey(g, "gw:") }

// Channel is the one channel of a gateway in the group.
func Channel(g Group, gw protocol.GatewayID) string { return ChannelPrefix(g) + string(gw) }

// CheckGatewayName says whether a configured gateway name may enter a gateway
// id: 1 to 64 of letters, digits, '.', '_' and '-'. Scripts and envelopes
// separate fields by control characters and spaces, which a name can't hold.
func CheckGatewayName(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	}) < 0
}
