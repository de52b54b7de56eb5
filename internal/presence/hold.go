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

// A gateway holds a room while one of its connections is in it, and "w:alice" while one of them watches alice. The registry knows of the
// gateway, not of the connections: they are counted here, so a join costs Redis one look at the room's position, and a leave nothing
// until the last.

// holds are the addresses of one group that this gateway holds.
type holds struct {
	mu  sync.Mutex
	all map[protocol.Address]*hold // guarded by mu
}

type hold struct {
	members int  // local connections that want it
	entered bool // the registry answered; counted in group.heldAddresses
}

// Standing is where the log of an address stood when it was held. Of a watch only Err means something: it has no log.
type Standing struct {
	Epoch string
	Top   uint64
	First uint64 // the oldest offset still kept; Top+1 when nothing is
	Err   error  // ErrUnavailable: it is not held
}

// holding asks for one address to be told to the registry: held while it has members here, else let go. The script gets what is
// true when the call is made, so however joins, leaves and repeats overtake each other, the last call of a group says the last word.
type holding struct {
	address  protocol.Address
	standing Standing
	done     chan struct{} // nil: nobody waits
}

// Hold counts one more local member of each address, and tells the registry. The positions come in the order of the addresses. What
// is published to an address from its position on reaches this gateway. Calls that arrive together go to Redis together.
//
// Each success, and nothing else, is owed a Release.
func (r *Registry) Hold(ctx context.Context, addresses ...protocol.Address) []Standing {
	waiting := make([]*holding, len(addresses))
	for i, a := range addresses {
		g := r.groups[r.cfg.Layout.GroupIndex(a)]
		g.holds.add(a)
		waiting[i] = &holding{address: a, done: make(chan struct{})}
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
			r.Release(h.address)
		}
	}
	return out
}

// Release takes back one Hold of an address. The last one lets it go, in the background.
func (r *Registry) Release(a protocol.Address) {
	g := r.groups[r.cfg.Layout.GroupIndex(a)]
	last, entered := g.holds.drop(a)
	if entered {
		g.countHold(a, -1)
	}
	if last {
		g.holdings.add(&holding{address: a})
	}
}

// holdAgain tells the registry of everything that is held in a group: it may have lost some.
func (r *Registry) holdAgain(g *group) {
	for _, a := range g.holds.list() {
		g.holdings.add(&holding{address: a})
	}
}

func (r *Registry) runHoldings(g *group, b []*holding) {
	args := r.holdArgs(r.cfg.Gateway, "")
	keys := r.holdKeys(g, r.cfg.Gateway)
	wanted := g.holds.wanted(b)
	for i, h := range b {
		keys = appendHoldKeys(keys, h.address)
		word := "-"
		if wanted[i] {
			word = "+"
		}
		args = append(args, string(h.address), word)
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
		if wanted[i] {
			h.standing = parseStanding(h.address, lines[i])
			r.entered(g, h)
		} else {
			h.standing.Err = fmt.Errorf("%w: let go meanwhile", ErrUnavailable)
		}
		if h.done != nil {
			close(h.done)
		}
	}
}

// entered notes that the registry knows of a hold. What was sent while it did not went to nobody here.
func (r *Registry) entered(g *group, h *holding) {
	if h.standing.Err != nil {
		return
	}
	if g.holds.enter(h.address) {
		g.countHold(h.address, 1)
	}
	if h.done == nil && r.cfg.OnLog != nil {
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
	g.holdings.park(rest, max(256, maxParked/len(r.groups)))
}

func (r *Registry) holdKeys(g *group, owner protocol.GatewayID) []string {
	return []string{keyspace.Leases(g.name), keyspace.Line(g.name), keyspace.Own(g.name, owner)}
}

func appendHoldKeys(keys []string, a protocol.Address) []string {
	if keys = append(keys, keyspace.Holders(a)); a.Kind() == 'r' {
		keys = append(keys, keyspace.Log(a), keyspace.Stream(a))
	}
	return keys
}

func (r *Registry) holdArgs(owner protocol.GatewayID, reapAfter string) []any {
	return []any{string(owner), r.cfg.Lease.Milliseconds(), protocol.NewEpoch(), r.cfg.LogTTL.Milliseconds(), reapAfter}
}

// reapHolds lets go what a dead gateway held; false: it may not be judged, or Redis didn't answer.
func (r *Registry) reapHolds(ctx context.Context, g *group, gw protocol.GatewayID, held []protocol.Address) bool {
	if len(held) == 0 {
		return true
	}
	keys := r.holdKeys(g, gw)
	args := r.holdArgs(gw, strconv.FormatInt(r.cfg.ReapAfter.Milliseconds(), 10))
	for _, a := range held {
		keys = appendHoldKeys(keys, a)
		args = append(args, string(a), "-")
	}
	v, err := r.run(ctx, r.hold, keys, args)
	return err == nil && v != "alive"
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

func (h *holds) add(a protocol.Address) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = make(map[protocol.Address]*hold)
	}
	if h.all[a] == nil {
		h.all[a] = &hold{}
	}
	h.all[a].members++
}

// drop takes one member away. last: there is none left; entered: it was counted in group.heldAddresses, and is no more.
func (h *holds) drop(a protocol.Address) (last, entered bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.all[a]
	if x == nil {
		return false, false
	}
	if x.members--; x.members > 0 {
		return false, false
	}
	delete(h.all, a)
	return true, x.entered
}

// enter marks an address as known to the registry; true: it was not before.
func (h *holds) enter(a protocol.Address) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.all[a]
	if x == nil || x.entered {
		return false // the last member left meanwhile: what lets it go is queued
	}
	x.entered = true
	return true
}

// wanted tells which addresses have members now.
func (h *holds) wanted(b []*holding) []bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]bool, len(b))
	for i := range b {
		out[i] = h.all[b[i].address] != nil
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
