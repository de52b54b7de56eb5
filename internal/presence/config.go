package presence

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Config is what a Registry needs to know. Every duration must be positive
// unless said otherwise.
type Config struct {
	// Gateway is this gateway: configured name and random boot id.
	Gateway protocol.GatewayID
	// Layout is how the keyspace is grouped.
	Layout keyspace.Layout

	// TTL is how long an entry lives without a refresh.
	TTL time.Duration
	// Heartbeat is how often clients are asked for a sign of life. Entries
	// unrefreshed for 1.5 heartbeats are the first to go at the limit.
	Heartbeat time.Duration
	// ConnectionsPerUser is the limit over the whole cluster; 0 is no limit.
	ConnectionsPerUser int
	// Classes are the classes of devices of which a user may have only so many
	// connections over the whole cluster, and how many.
	Classes map[protocol.ClassID]int
	// OldestStay says that a connection for which its class has no place is refused;
	// otherwise the newest take the places of the oldest.
	OldestStay bool

	// Pulse is how often the lease of each group is renewed.
	Pulse time.Duration
	// Lease is how long a gateway counts as alive after a pulse.
	Lease time.Duration
	// Quiet is for how long nobody is judged dead after Redis was away.
	Quiet time.Duration
	// ReapAfter is how long after the end of its lease a gateway is reaped.
	ReapAfter time.Duration
	// Grace is how long a user without connections is still online; 0 is not at all.
	Grace time.Duration

	// RefreshWindow is for how long refreshes are collected into one call.
	RefreshWindow time.Duration
	// Timeout bounds each call to Redis.
	Timeout time.Duration
	// LogTTL is how long an unused log head (position, epochs) is kept.
	LogTTL time.Duration
	// EventsKept bounds the stream of events of each group; 0 writes none.
	EventsKept int
	// RoomEventsKept is the same where users join and leave rooms: it is EventsKept,
	// or 0 where nobody wants to hear of that.
	RoomEventsKept int
	// Lost is the end of a connection that was reaped with its gateway, Abandoned
	// that of an entry nobody holds a socket for.
	Lost, Abandoned End

	// MemberPushes is up to how many members a room may have for its holders to be
	// told who joins and leaves it; 0: none are told. The same on every gateway.
	MemberPushes int

	// OnVerdict is told of a connection that must be closed: marked by a kick, a
	// replacement or the limit, or reaped while this gateway was away. It must
	// not block.
	OnVerdict func(Verdict)
	// OnPulse is told what Redis answered to each pulse: the group's index, the
	// number of this gateway's channel, the history line, and how many subscribers
	// heard the pulse (-1: it may not publish). May be nil.
	OnPulse func(group int, number uint64, line string, heard int)
	// OnSilence is told of each pulse of a group that Redis did not answer. May be nil.
	OnSilence func(group int)
	// OnLog is told where the log of an address stands: a user's with each refresh,
	// and when an entry or a hold that Redis had lost was entered again. What was
	// sent before that went to nobody. A watch ("w:alice") has no log: there it is
	// the state that has to be read. May be nil.
	OnLog func(a protocol.Address, at protocol.Position)
	// Each calls yield with every entry of this gateway, until it returns false:
	// the caller keeps them, the Registry has no second index of connections.
	Each func(yield func(*Entry) bool)
	// Snapshot returns this gateway's /stats as JSON, kept with its lease.
	Snapshot func() []byte
}

// DefaultConfig returns the figures of docs/redis-model.md, without identity.
func DefaultConfig() Config {
	return Config{
		TTL: 90 * time.Second, Heartbeat: 30 * time.Second, ConnectionsPerUser: 5,
		Pulse: time.Second, Lease: 3 * time.Second, Quiet: 5 * time.Second,
		ReapAfter: 5 * time.Second, Grace: 5 * time.Second,
		RefreshWindow: 250 * time.Millisecond, Timeout: time.Second,
		LogTTL: 37 * 24 * time.Hour, MemberPushes: 1000,
		Lost: End{Cause: "gateway_lost", Kind: "drop"}, Abandoned: End{Cause: "abandoned", Kind: "drop"},
	}
}

// ParseClasses reads classes of devices and how many connections of each a user may
// have, as in "phone=1"; 0 is no limit.
func ParseClasses(list []string) (map[protocol.ClassID]int, error) {
	if len(list) == 0 {
		return nil, nil
	}
	classes := make(map[protocol.ClassID]int, len(list))
	for _, entry := range list {
		name, number, ok := strings.Cut(entry, "=")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 0 {
			return nil, fmt.Errorf("%q: want a class and how many, as in phone=1", entry)
		}
		if !protocol.ValidID([]byte(name), protocol.MaxIDBytes) {
			return nil, fmt.Errorf("%q: not a name of a class", entry)
		}
		if _, twice := classes[protocol.ClassID(name)]; twice {
			return nil, fmt.Errorf("%q: the class is there twice", entry)
		}
		classes[protocol.ClassID(name)] = n
	}
	return classes, nil
}

// gap is the age of the last pulse of anyone from which on Redis counts as
// having been away.
func (c *Config) gap() time.Duration { return c.Pulse + c.Pulse/2 }

// ErrUnavailable says that Redis did not answer in time: nothing is known about
// whether the call took effect, and every call of this package may be repeated.
var ErrUnavailable = errors.New("presence: redis unavailable")

// ErrUnsure says that Redis was away or tells another history, and may have forgotten
// what was looked for: until the quiet time is over the gateways tell it again.
var ErrUnsure = errors.New("presence: redis may have forgotten it")

// ErrEnding says that a connection was told to go, or taken away with its gateway.
var ErrEnding = errors.New("presence: the connection is about to end")

// ErrReplaced says that a newer connection of the same device, or class of devices,
// registered while this one was away.
var ErrReplaced = errors.New("presence: replaced by a newer connection")

// ErrTaken says that the user has as many connections of the class as he may.
var ErrTaken = errors.New("presence: the class of devices is taken")

// A Refusal is ErrReplaced or ErrTaken, and on whose account.
type Refusal struct {
	Err error
	// By is the connection that has the place.
	By protocol.ConnID
	// At is since when, ms since 1970.
	At int64
}

func (r *Refusal) Error() string { return r.Err.Error() }
func (r *Refusal) Unwrap() error { return r.Err }
