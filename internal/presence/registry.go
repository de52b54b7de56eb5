package presence

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

//go:embed lua/register.lua
var registerSource string

//go:embed lua/refresh.lua
var refreshSource string

//go:embed lua/pulse.lua
var pulseSource string

//go:embed lua/offline.lua
var offlineSource string

// Registry is one gateway's hand in the shared registry. All methods may be
// called from any goroutine.
type Registry struct {
	// Immutable after New.
	cfg    Config
	client redis.UniversalClient
	groups []*group

	register, refresh, remove, kick, pulse, offline, hold *redis.Script

	running workers       // joined by Run
	resync  chan struct{} // capacity 1: a group is stale
	calls   calls
	most    atomic.Int64 // connections of a user
	silent  atomic.Int64 // groups whose last pulse Redis did not answer
}

// group is the state this gateway keeps for one group of the keyspace.
type group struct {
	// Immutable after New.
	name  keyspace.Group
	index int

	registers batch[*registration]
	removes   batch[*departure]
	holdings  batch[*holding]
	metas     batch[*rebinding]
	holds     holds
	refreshes refreshQueue

	// Any goroutine.
	held          atomic.Int64         // entries the registry should know
	heldAddresses atomic.Int64         // and holds
	heldWatches   atomic.Int64         // those of them that are watches
	memberships   atomic.Int64         // and users in rooms
	told          atomic.Uint64        // calls about holds
	view          atomic.Pointer[view] // what the last pulse saw
	silent        atomic.Bool          // Redis did not answer the last pulse
	pulsing       atomic.Bool
	left          atomic.Bool // the lease was given back: no pulse may take it again
	// tidying is true while dead gateways are reaped and graces ended.
	tidying atomic.Bool
	// stale says that the registry may have lost entries of the group.
	stale atomic.Bool
	// refreshing is true while a call with refreshes is in flight.
	refreshing atomic.Bool
	// reconciling is true while members are compared with what the registry has.
	reconciling atomic.Bool
	// doubted is true while a comparison is owed.
	doubted atomic.Bool

	// Owned by tidy, of which one runs at a time.
	strays map[protocol.ConnID]stray // what takeOutGhosts found last time
}

// calls counts what the registry did, for metrics.
type calls struct {
	registered, refreshed, removed, reaped, again, verdicts, failed atomic.Uint64
}

// Entry is a connection as the registry knows it. The caller keeps it as long
// as the connection is registered; only the Registry writes Fence.
type Entry struct {
	Conn   protocol.ConnID
	User   protocol.UserID
	Device protocol.DeviceID // may be empty
	Class  protocol.ClassID  // may be empty
	Meta   string            // JSON object that it registered with, may be empty; MetaNow is what it has now
	Since  int64             // ms since 1970

	fence  atomic.Uint64
	life   atomic.Uint32 // entryNew, entryHeld, entryReaped, entryGone: only ever upwards
	queued atomic.Bool   // waiting in the refresh queue
	end    atomic.Pointer[End]
	meta   atomic.Pointer[meta] // set since it registered; nil: none
	ended  atomic.Int64         // when, ms since 1970 by the clock of Since; 0: not known here
}

// End is what the disconnect event of a connection says of its end.
type End struct {
	Cause string // "network", "gateway_lost": one word
	Kind  string // what it was for whoever waits for the client: goodbye, drop or moved
	Code  int    // of the close; 0 is none
}

// The life of an Entry.
const (
	entryNew    uint32 = iota
	entryHeld          // the registry answered; counted in group.held
	entryReaped        // taken away while this gateway was; the caller was told
	entryGone          // removed, or about to be: nothing may enter it again
)

// Fence orders the connections of a user; 0 before Register has answered.
func (e *Entry) Fence() uint64 { return e.fence.Load() }

// Registration is what Register answers.
type Registration struct {
	Fence uint64
	// Epoch and Top are the position of the user's log: the next message stored
	// gets Top+1.
	Epoch string
	Top   uint64
	// First is the oldest offset still kept; Top+1 when nothing is.
	First uint64
}

// Verdict says that the registry wants a local connection closed.
type Verdict struct {
	Conn  protocol.ConnID
	Fence uint64
	// Reaped: this gateway was taken for dead. Otherwise Code, Reason and By are
	// those of the kick, the replacement or the limit.
	Reaped bool
	Code   protocol.CloseCode
	Reason string
	By     string
	At     int64 // ms since 1970; 0: not known
}

// LimitConnections sets how many connections a user may have over the whole cluster, from the next register on; 0 is no limit.
func (r *Registry) LimitConnections(most int) { r.most.Store(int64(most)) }

// New returns a Registry. Run must be called for leases to be held.
func New(client redis.UniversalClient, cfg Config) *Registry {
	r := &Registry{cfg: cfg, client: client, resync: make(chan struct{}, 1)}
	r.LimitConnections(cfg.ConnectionsPerUser)
	script := func(source string) *redis.Script { return redis.NewScript(cfg.Layout.Script(source)) }
	r.register, r.refresh, r.remove = script(registerSource), script(refreshSource), script(removeSource)
	r.kick, r.pulse, r.offline = script(kickSource), script(pulseSource), script(offlineSource)
	r.hold = script(holdSource)
	for i, name := range cfg.Layout.Groups() {
		g := &group{name: name, index: i}
		g.registers = batch[*registration]{max: 64, work: func(b []*registration) { r.runRegisters(g, b) }, running: &r.running}
		g.removes = batch[*departure]{max: 128, work: func(b []*departure) { r.runRemoves(g, b) }, running: &r.running}
		g.holdings = batch[*holding]{max: 128, work: func(b []*holding) { r.runHoldings(g, b) }, running: &r.running}
		g.metas = batch[*rebinding]{max: 64, work: func(b []*rebinding) { r.runMetas(g, b) }, running: &r.running}
		r.groups = append(r.groups, g)
	}
	return r
}

func (r *Registry) groupOf(u protocol.UserID) *group {
	return r.groups[r.cfg.Layout.GroupIndex(protocol.UserAddress(u))]
}

// run calls a script with the configured deadline. A reply that isn't one, a
// timeout and a refused connection all become ErrUnavailable.
func (r *Registry) run(ctx context.Context, s *redis.Script, keys []string, args []any) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	v, err := s.Run(ctx, r.client, keys, args...).Result()
	if err != nil {
		r.calls.failed.Add(1)
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return v, nil
}

type registration struct {
	entry *Entry
	again bool // the registry lost it: same fence, no event
	reply Registration
	err   error
	done  chan struct{}
	then  func(*registration) // may be nil; called before done closes
}

// Register enters a connection, taking the place of the same device's
// predecessor and pushing out what is over the user's limit, and returns its
// position. Calls that arrive together go to Redis together. The error is
// ErrUnavailable, or a Refusal: ErrTaken, or ErrReplaced for a connection that
// registers again.
//
// After ErrUnavailable the entry may be there all the same: the caller calls
// Register again with the same Entry, or Remove.
func (r *Registry) Register(ctx context.Context, e *Entry) (Registration, error) {
	return r.enter(ctx, &registration{entry: e, done: make(chan struct{})})
}

func (r *Registry) enter(ctx context.Context, q *registration) (Registration, error) {
	r.groupOf(q.entry.User).registers.add(q)
	select {
	case <-q.done:
		return q.reply, q.err
	case <-ctx.Done():
		return Registration{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

func (r *Registry) runRegisters(g *group, b []*registration) {
	keys := []string{
		keyspace.Leases(g.name), keyspace.Line(g.name), keyspace.Own(g.name, r.cfg.Gateway),
		keyspace.Offlines(g.name), keyspace.Events(g.name), keyspace.Numbers(g.name),
	}
	policy := "newest"
	if r.cfg.OldestStay {
		policy = "oldest"
	}
	args := []any{
		string(r.cfg.Gateway), keyspace.ChannelPrefix(g.name), r.cfg.TTL.Milliseconds(),
		(r.cfg.Heartbeat + r.cfg.Heartbeat/2).Milliseconds(), protocol.NewEpoch(), r.cfg.LogTTL.Milliseconds(),
		r.cfg.EventsKept, r.cfg.Lease.Milliseconds(), policy,
	}
	for _, q := range b {
		e, a := q.entry, protocol.UserAddress(q.entry.User)
		fence := ""
		if q.again {
			fence = strconv.FormatUint(e.Fence(), 10)
		}
		keys = append(keys, keyspace.Conns(e.User), keyspace.Holders(a), keyspace.State(e.User),
			keyspace.Holders(protocol.WatchAddress(e.User)), keyspace.Log(a), keyspace.Stream(a))
		meta, number := e.metaNow()
		args = append(args, string(e.Conn), string(e.User), string(e.Device), meta, e.Since,
			r.most.Load(), fence, string(e.Class), r.cfg.Classes[e.Class], number)
	}
	v, err := r.run(context.Background(), r.register, keys, args)
	var lines []string
	if err == nil {
		if lines = strings.Split(fmt.Sprint(v), "\n"); len(lines) != len(b) {
			err = fmt.Errorf("%w: register answered %d lines for %d", ErrUnavailable, len(lines), len(b))
		}
	}
	if err != nil {
		// What waits behind a call that Redis didn't answer would wait as long
		// again; it is refused now.
		b = append(b, g.registers.drain()...)
	}
	for i, q := range b {
		if err != nil {
			q.err = err
		} else {
			q.reply, q.err = parseRegistration(lines[i])
		}
		if q.err == nil {
			q.entry.fence.Store(q.reply.Fence)
			if q.again {
				r.calls.again.Add(1)
			} else {
				r.calls.registered.Add(1)
			}
			if q.entry.life.CompareAndSwap(entryNew, entryHeld) {
				g.held.Add(1)
			}
		}
		if q.entry.life.Load() == entryGone {
			// Its removal may have overtaken this call: remove what it entered.
			g.removes.add(&departure{entry: q.entry, end: *q.entry.end.Load()})
		}
		if q.then != nil {
			q.then(q)
		}
		close(q.done)
	}
}

func parseRegistration(line string) (Registration, error) {
	f := strings.Split(line, " ")
	if len(f) >= 4 && f[0] == "m" {
		by, at := cutTime(strings.Join(f[3:], " "))
		return Registration{}, &Refusal{ErrReplaced, protocol.ConnID(by), at}
	}
	if len(f) == 3 && f[0] == "t" {
		since, _ := strconv.ParseInt(f[2], 10, 64)
		return Registration{}, &Refusal{ErrTaken, protocol.ConnID(f[1]), since}
	}
	if len(f) != 5 || f[0] != "o" {
		return Registration{}, fmt.Errorf("%w: unexpected answer %q", ErrUnavailable, line)
	}
	fence, err1 := strconv.ParseUint(f[1], 10, 64)
	top, err2 := strconv.ParseUint(f[3], 10, 64)
	first, err3 := strconv.ParseUint(f[4], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return Registration{}, fmt.Errorf("%w: unexpected answer %q", ErrUnavailable, line)
	}
	return Registration{Fence: fence, Epoch: f[2], Top: top, First: first}, nil
}

// cutTime takes the time off the end of a mark: who, and when in ms; 0 where a
// version that noted none wrote it.
func cutTime(mark string) (by string, at int64) {
	by, text, _ := strings.Cut(mark, "\x1e")
	at, _ = strconv.ParseInt(text, 10, 64)
	return by, at
}

// Stats counts what the registry did since New.
type Stats struct {
	Registered, Refreshed, Removed, Reaped, Again, Verdicts, Failed uint64
	Held                                                            int64 // connections
	HeldRooms, HeldWatches                                          int64 // addresses
	Memberships                                                     int64 // users in rooms, each counted once in each room
}

// Stats returns the counters.
func (r *Registry) Stats() Stats {
	s := Stats{
		Registered: r.calls.registered.Load(), Refreshed: r.calls.refreshed.Load(), Removed: r.calls.removed.Load(),
		Reaped: r.calls.reaped.Load(), Again: r.calls.again.Load(), Verdicts: r.calls.verdicts.Load(), Failed: r.calls.failed.Load(),
	}
	for _, g := range r.groups {
		s.Held += g.held.Load()
		watches := g.heldWatches.Load()
		s.HeldRooms += g.heldAddresses.Load() - watches
		s.HeldWatches += watches
		s.Memberships += g.memberships.Load()
	}
	return s
}

// sinceMs is the milliseconds between a local time and now, never negative.
func sinceMs(t time.Time) int64 { return max(0, time.Since(t).Milliseconds()) }
