package presence

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

//go:embed lua/hold.lua
var holdSource string

// A gateway holds a room while one of its connections is in it, and "w:alice" while one of them watches alice. Connections are counted
// here; the registry knows of the gateway, and of the users it has in a room (members.go). So a join costs Redis one look at the room's
// position, in which the user is written too, and a leave nothing until the user's last.

// holds are the addresses of one group that this gateway holds.
type holds struct {
	mu  sync.Mutex
	all map[protocol.Address]*hold // guarded by mu
}

type hold struct {
	count   int                       // local connections that want it
	entered bool                      // the registry answered; counted in group.heldAddresses
	users   map[protocol.UserID]*seat // who is in it; nil where nobody is told
}

// seat is a user in a room on this gateway.
type seat struct {
	count int  // connections
	there bool // the registry answered; counted in group.memberships
}

// Standing is where the log of an address stood when it was held. Of a watch only Err means something: it has no log.
type Standing struct {
	Epoch string
	Top   uint64
	First uint64 // the oldest offset still kept; Top+1 when nothing is
	Err   error  // ErrUnavailable: it is not held
}

// holding asks for one address to be told to the registry: held while it has members here, else let go; and of a user, whether he is in
// it here. The script gets what is true when the call is made, so however joins, leaves and repeats overtake each other, the last call
// of a group says the last word.
type holding struct {
	address  protocol.Address
	user     protocol.UserID // empty: it is about no one
	standing Standing
	done     chan struct{} // nil: nobody waits
}

// What the hold script is told to do with an address.
const (
	wordHold  = "+"
	wordAgain = "*" // and the registry knew of the user before
	wordLeave = "="
	wordLetGo = "-"
	// and answers to the last when there was more to do than one call may.
	wordMore = "m"
)

// Hold counts one more local member of each address, and tells the registry. The positions come in the order of the addresses. What
// is published to an address from its position on reaches this gateway. Calls that arrive together go to Redis together.
//
// Each success, and nothing else, is owed a Release.
func (r *Registry) Hold(ctx context.Context, addresses ...protocol.Address) []Standing {
	return r.take(ctx, "", addresses)
}

// Release takes back one Hold of an address. The last one lets it go, in the background.
func (r *Registry) Release(a protocol.Address) { r.release("", a) }

// take is Hold of a user, or of no one.
func (r *Registry) take(ctx context.Context, u protocol.UserID, addresses []protocol.Address) []Standing {
	waiting := make([]*holding, len(addresses))
	for i, a := range addresses {
		g := r.groups[r.cfg.Layout.GroupIndex(a)]
		g.holds.add(a, u)
		waiting[i] = &holding{address: a, user: u, done: make(chan struct{})}
		g.holdings.add(waiting[i])
	}
	out := make([]Standing, len(addresses))
	for i, h := range waiting {
		select {
		case <-h.done:
			out[i] = h.standing
		case <-ctx.Done():
			out[i].Err = fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		if out[i].Err != nil {
			r.release(u, h.address)
		}
	}
	return out
}

func (r *Registry) release(u protocol.UserID, a protocol.Address) {
	g := r.groups[r.cfg.Layout.GroupIndex(a)]
	d := g.holds.drop(a, u)
	if d.entered {
		g.countHold(a, -1)
	}
	g.memberships.Add(-d.seats)
	switch {
	case d.last:
		g.holdings.add(&holding{address: a})
	case d.lastOfUser:
		g.holdings.add(&holding{address: a, user: u})
	}
}

// holdAgain tells the registry of everything that is held in a group: it may have lost some.
func (r *Registry) holdAgain(g *group) {
	for _, a := range g.holds.list() {
		g.holdings.add(&holding{address: a})
	}
	r.reconcile(g)
}

func (r *Registry) runHoldings(g *group, b []*holding) {
	g.told.Add(1)
	args := r.holdArgs(g, r.cfg.Gateway, "")
	keys := r.holdKeys(g, r.cfg.Gateway)
	words := g.holds.words(b)
	for i, h := range b {
		keys = appendHoldKeys(keys, h.address)
		args = append(args, string(h.address), words[i], string(h.user))
	}
	v, err := r.run(context.Background(), r.hold, keys, args)
	var lines []string
	if err == nil {
		if lines = strings.Split(fmt.Sprint(v), "\n"); len(lines) != len(b) {
			err = fmt.Errorf("%w: hold answered %d lines for %d", ErrUnavailable, len(lines), len(b))
		}
	}
	if err != nil {
		r.refuseHoldings(g, append(b, g.holdings.drain()...), err)
		return
	}
	for i, h := range b {
		switch {
		case words[i] == wordHold || words[i] == wordAgain:
			h.standing = parseStanding(h.address, lines[i])
			r.entered(g, h)
		case lines[i] == wordMore:
			g.holdings.add(&holding{address: h.address, user: h.user})
			fallthrough
		default:
			h.standing.Err = fmt.Errorf("%w: let go meanwhile", ErrUnavailable)
		}
		if h.done != nil {
			close(h.done)
		}
	}
}

// entered notes that the registry knows of a hold, and of the user in it. What was sent while it did not went to nobody here.
func (r *Registry) entered(g *group, h *holding) {
	if h.standing.Err != nil {
		return
	}
	hold, seat := g.holds.enter(h.address, h.user)
	if hold {
		g.countHold(h.address, 1)
	}
	if seat {
		g.memberships.Add(1)
	}
	if h.done == nil && h.user == "" && r.cfg.OnLog != nil {
		r.cfg.OnLog(h.address, protocol.Position{Epoch: h.standing.Epoch, Offset: h.standing.Top})
	}
}

func (g *group) countHold(a protocol.Address, n int64) {
	g.heldAddresses.Add(n)
	if a.Kind() == 'w' {
		g.heldWatches.Add(n)
	}
}

// refuseHoldings answers those who wait, and keeps the rest for the next pulse that succeeds.
func (r *Registry) refuseHoldings(g *group, b []*holding, err error) {
	var rest []*holding
	for _, h := range b {
		if h.done == nil {
			rest = append(rest, h)
			continue
		}
		h.standing.Err = err
		close(h.done)
	}
	if !g.holdings.park(rest, max(256, maxParked/len(r.groups))) {
		g.doubted.Store(true)
	}
}

func (r *Registry) holdKeys(g *group, owner protocol.GatewayID) []string {
	return []string{
		keyspace.Leases(g.name), keyspace.Line(g.name), keyspace.Own(g.name, owner), keyspace.Memberships(g.name),
		keyspace.Events(g.name), keyspace.Numbers(g.name), keyspace.Tombstones(g.name),
	}
}

func appendHoldKeys(keys []string, a protocol.Address) []string {
	if keys = append(keys, keyspace.Holders(a)); a.Kind() == 'r' {
		keys = append(keys, keyspace.Log(a), keyspace.Stream(a), keyspace.Members(a), keyspace.MemberCounts(a))
	}
	return keys
}

func (r *Registry) holdArgs(g *group, owner protocol.GatewayID, reapAfter string) []any {
	return []any{
		string(owner), r.cfg.Lease.Milliseconds(), protocol.NewEpoch(), r.cfg.LogTTL.Milliseconds(), reapAfter,
		keyspace.ChannelPrefix(g.name), r.cfg.MemberPushes, r.cfg.RoomEventsKept,
	}
}

// reapHolds lets go what a dead gateway held, with the members it had there, as many as one call may take out. left are those that have
// more; false: it may not be judged, or Redis didn't answer.
func (r *Registry) reapHolds(ctx context.Context, g *group, gw protocol.GatewayID, held []protocol.Address) (left []protocol.Address, ok bool) {
	keys := r.holdKeys(g, gw)
	args := r.holdArgs(g, gw, strconv.FormatInt(r.cfg.ReapAfter.Milliseconds(), 10))
	for _, a := range held {
		keys = appendHoldKeys(keys, a)
		args = append(args, string(a), wordLetGo, "")
	}
	v, err := r.run(ctx, r.hold, keys, args)
	if err != nil || v == "alive" {
		return nil, false
	}
	lines := strings.Split(fmt.Sprint(v), "\n")
	if len(lines) != len(held) {
		return nil, false
	}
	for i, a := range held {
		if lines[i] != wordLetGo {
			left = append(left, a)
		}
	}
	return left, true
}

func parseStanding(a protocol.Address, line string) Standing {
	if line == "+" && a.Kind() != 'r' {
		return Standing{}
	}
	f := strings.Split(line, " ")
	if len(f) != 4 || f[0] != "+" {
		return Standing{Err: fmt.Errorf("%w: unexpected answer %q", ErrUnavailable, line)}
	}
	top, err1 := strconv.ParseUint(f[2], 10, 64)
	first, err2 := strconv.ParseUint(f[3], 10, 64)
	if err1 != nil || err2 != nil {
		return Standing{Err: fmt.Errorf("%w: unexpected answer %q", ErrUnavailable, line)}
	}
	return Standing{Epoch: f[1], Top: top, First: first}
}

func (h *holds) add(a protocol.Address, u protocol.UserID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = make(map[protocol.Address]*hold)
	}
	x := h.all[a]
	if x == nil {
		x = &hold{}
		h.all[a] = x
	}
	x.count++
	if u == "" {
		return
	}
	if x.users == nil {
		x.users = make(map[protocol.UserID]*seat)
	}
	if x.users[u] == nil {
		x.users[u] = &seat{}
	}
	x.users[u].count++
}

// dropped is what one drop ended.
type dropped struct {
	last       bool  // of the address
	entered    bool  // the address was counted in group.heldAddresses, and is no more
	lastOfUser bool  // of the user in it
	seats      int64 // were counted in group.memberships, and are no more
}

// drop takes one connection away, of a user or of no one.
func (h *holds) drop(a protocol.Address, u protocol.UserID) (d dropped) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.all[a]
	if x == nil {
		return d
	}
	if s := x.users[u]; s != nil {
		if s.count--; s.count == 0 {
			delete(x.users, u)
			if d.lastOfUser = true; s.there {
				d.seats++
			}
		}
	}
	if x.count--; x.count == 0 {
		delete(h.all, a)
		d.last, d.entered = true, x.entered
	}
	return d
}

// enter marks an address, and a user in it, as known to the registry; true: it was not before.
func (h *holds) enter(a protocol.Address, u protocol.UserID) (hold, user bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.all[a]
	if x == nil {
		return false, false // the last one left meanwhile: what lets it go is queued
	}
	hold, x.entered = !x.entered, true
	if s := x.users[u]; s != nil {
		user, s.there = !s.there, true
	}
	return hold, user
}

// words tells what is true of addresses and users now.
func (h *holds) words(b []*holding) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]string, len(b))
	for i := range b {
		switch x := h.all[b[i].address]; {
		case x == nil:
			out[i] = wordLetGo
		case b[i].user != "" && x.users[b[i].user] == nil:
			out[i] = wordLeave
		case b[i].user != "" && x.users[b[i].user].there:
			out[i] = wordAgain
		default:
			out[i] = wordHold
		}
	}
	return out
}

func (h *holds) has(a protocol.Address) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[a] != nil
}

func (h *holds) list() []protocol.Address {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]protocol.Address, 0, len(h.all))
	for a := range h.all {
		out = append(out, a)
	}
	return out
}
