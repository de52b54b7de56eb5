package router

import (
	"context"
	"log/slog"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/history"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Config is what a Router needs to know.
type Config struct {
	// Gateway is this gateway: configured name and random boot id.
	Gateway protocol.GatewayID
	// Layout is how the keyspace is grouped.
	Layout keyspace.Layout
	Log    *slog.Logger
	// History reads the logs.
	History *history.Reader

	// BatchMessages and BatchBytes bound one call; four times as many messages
	// and twice as many bytes go when the last round trip took over SlowTrip.
	BatchMessages, BatchBytes int
	SlowTrip                  time.Duration
	// LaneBytes and LaneWait bound what waits in a lane; past either a message is
	// refused as overloaded.
	LaneBytes int
	LaneWait  time.Duration
	// LaneHold is for how long Hold keeps a reader before its message is refused.
	LaneHold time.Duration
	// Attempt bounds one attempt of a call, Attempts how often the identical
	// batch is tried before its outcome is called unknown.
	Attempt  time.Duration
	Attempts int
	// Suspect is the age of a call in flight from which on further messages are
	// refused as unavailable instead of waiting behind it.
	Suspect time.Duration
	// WaitReplicas is how many replicas must have a message before it is
	// acknowledged, 0: none is waited for. When they don't within WaitTimeout the
	// outcome is unknown. Attempt and Suspect are without this wait.
	WaitReplicas int
	WaitTimeout  time.Duration
	// Probe is how often an unreachable Redis is asked whether it is back, ProbeWait
	// how long an answer may take: nobody waits for it, and a new connection to a
	// Redis that is far away takes several round trips.
	Probe, ProbeWait time.Duration

	// HealFor is for how long acknowledged messages are kept to be sent again when
	// Redis lost them, HealBytes how much is kept for it in each lane. HealFor 0 keeps
	// nothing: what Redis loses stays lost.
	HealFor   time.Duration
	HealBytes int

	// HoldersTTL is how long ephemeral messages trust a cached list of holders.
	HoldersTTL time.Duration
	// Starved is the silence on a channel after which it is subscribed anew: a
	// pulse should have come every second.
	Starved time.Duration
	// HeldBytes bounds what a connection that is being attached may have waiting.
	HeldBytes int

	// MemberWindow is for how long who joins and leaves a room is collected into one
	// frame for its members. PushBytes bounds such a frame: a longer one names nobody.
	MemberWindow time.Duration
	PushBytes    int

	// Kept is how many messages a log keeps, for at most Retention; LogTTL is how
	// long positions outlive them.
	Kept              int
	Retention, LogTTL time.Duration

	// EventsKept bounds the stream of events of messages of each group; 0 writes none.
	// EventContent puts the content of the message into its event.
	EventsKept   int
	EventContent bool

	// MayBegin is asked when a message of a Newcomer would be the first to its
	// address, ever: 0 lets it, else it is refused and may come again after so long. It must
	// not block. nil: it may.
	MayBegin func(sender protocol.UserID) time.Duration
	// OnKick is told of a kick for a connection of this gateway. It must not block.
	OnKick func(protocol.Kick)
	// OnQuestion answers a question of another gateway, or has it answered; false: its
	// verb is not known here. The context ends when the asker stops waiting. It runs on
	// one of a few workers, so what takes longer goes elsewhere.
	OnQuestion func(context.Context, *Asked) bool
	// Everyone calls yield with every registered connection of this gateway, until it
	// returns false.
	Everyone func(yield func(*connection.Connection) bool)
}

// DefaultConfig returns the figures of docs/architecture.md, without identity.
func DefaultConfig() Config {
	return Config{
		BatchMessages: 64, BatchBytes: 64 << 10, SlowTrip: 5 * time.Millisecond,
		LaneBytes: 8 << 20, LaneWait: 300 * time.Millisecond, LaneHold: time.Second,
		Attempt: 330 * time.Millisecond, Attempts: 3,
		Suspect: 250 * time.Millisecond, WaitTimeout: 150 * time.Millisecond,
		Probe: 100 * time.Millisecond, ProbeWait: 2 * time.Second,
		HealFor: 10 * time.Second, HealBytes: 32 << 20,
		HoldersTTL: time.Second, Starved: 4 * time.Second, HeldBytes: 256 << 10,
		MemberWindow: 500 * time.Millisecond, PushBytes: protocol.MaxFrameBytes,
		Kept: 1000, Retention: 7 * 24 * time.Hour, LogTTL: 37 * 24 * time.Hour,
	}
}
