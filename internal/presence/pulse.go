package presence

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// view is what a pulse saw, immutable.
type view struct {
	at       time.Time // when the answer came, local monotonic clock
	redisNow int64     // ms of Redis TIME then
	line     string
	quiet    int64 // end of the quiet time, ms of Redis TIME; 0 is none
	leases   map[protocol.GatewayID]int64
	// gone are the gateways that a pulse found dead and that gave no sign of life
	// since, with the end of their lease. That a later pulse is late, or that one of
	// them was reaped meanwhile, makes none of them live again.
	gone map[protocol.GatewayID]int64
	// forgotten are the gateways whose lease Redis lost in this quiet time, and what it was.
	forgotten map[protocol.GatewayID]int64
}

// goneKept is for how long, in ms, a gateway that was reaped is remembered: until
// nothing that was read before is still under way.
const goneKept = 60_000

// follow notes who is dead by this view, and who still is since the one before.
func (v *view) follow(before *view) {
	v.gone = make(map[protocol.GatewayID]int64)
	if before != nil && before.line == v.line { // another history may be an older one
		for gw, till := range before.gone {
			if now, ok := v.leases[gw]; ok && now == till || !ok && v.redisNow-till < goneKept {
				v.gone[gw] = till
			}
		}
	}
	if v.quiet != 0 {
		v.recall(before)
		return
	}
	for gw, till := range v.leases {
		if till < v.redisNow {
			v.gone[gw] = till
		}
	}
}

// recall notes who had a lease when Redis was seen last, and has none now.
func (v *view) recall(before *view) {
	if before == nil {
		return
	}
	v.forgotten = make(map[protocol.GatewayID]int64)
	for _, list := range []map[protocol.GatewayID]int64{before.forgotten, before.leases} {
		for gw, till := range list {
			if _, again := v.leases[gw]; !again {
				v.forgotten[gw] = till
			}
		}
	}
}

// remembered are the gateways that had a lease and nobody has seen die.
func (v *view) remembered() (all []protocol.GatewayID) {
	if v == nil {
		return nil
	}
	for _, list := range []map[protocol.GatewayID]int64{v.forgotten, v.leases} {
		for gw, till := range list {
			if _, gone := v.gone[gw]; !gone && till > v.now() {
				all = append(all, gw)
			}
		}
	}
	return all
}

// now estimates Redis TIME in ms.
func (v *view) now() int64 { return v.redisNow + sinceMs(v.at) }

// dead reports whether a gateway counts as dead. Nobody is judged in quiet time,
// nor by a view older than the gap: then it is Redis that is away, or we are. Who
// was judged before stays dead until there is a sign of life.
// A gateway without a lease isn't judged either: its entries went when it was
// reaped, and one that Redis forgot has a lease again before it has an entry.
func (v *view) dead(gw protocol.GatewayID, gap time.Duration) bool {
	if v == nil {
		return false
	}
	if _, gone := v.gone[gw]; gone {
		return true
	}
	if time.Since(v.at) > gap || v.now() < v.quiet {
		return false
	}
	till, ok := v.leases[gw]
	return ok && till < v.now()
}

// unsure reports whether Redis may not know everybody who is there: it was away, or
// tells another history, and the quiet time in which it is told again isn't over.
func (v *view) unsure(gap time.Duration) bool {
	return v == nil || v.quiet != 0 || time.Since(v.at) > gap
}

// Run holds the leases until ctx ends: one pulse a group and Pulse, refreshes
// every RefreshWindow. Before it returns it has joined all its workers; entries
// are left to Leave, or to the reaper.
func (r *Registry) Run(ctx context.Context) error {
	step := r.cfg.Pulse / time.Duration(len(r.groups))
	// Before the ticker begins: a tick that came a moment before its turn would wait
	// for the next one, and a whole pulse would be missing.
	began, turns := time.Now(), 0
	pulses := time.NewTicker(step)
	defer pulses.Stop()
	refreshes := time.NewTicker(r.cfg.RefreshWindow)
	defer refreshes.Stop()
	defer r.running.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.resync:
			r.refreshStale()
		case <-refreshes.C:
			r.flushRefreshes(ctx)
		case <-pulses.C:
			// Whose turn it is, the clock says: a ticker drops ticks on a busy
			// machine, and 64 groups would all be late by the sum of them.
			due := int(time.Since(began) / step)
			for turns = max(turns, due-len(r.groups)); turns < due; turns++ {
				r.startBeat(ctx, r.groups[turns%len(r.groups)])
			}
		}
	}
}

// startBeat pulses a group, unless its last pulse is still under way.
func (r *Registry) startBeat(ctx context.Context, g *group) {
	if g.pulsing.CompareAndSwap(false, true) {
		r.running.Go(func() {
			defer g.pulsing.Store(false)
			r.beat(ctx, g)
		})
	}
}

// Join takes the first lease of every group, so that the gateway counts as alive
// before it holds anything. The error is ErrUnavailable.
func (r *Registry) Join(ctx context.Context) error {
	for _, g := range r.groups {
		if _, err := r.pulseOnce(ctx, g, r.snapshot(g)); err != nil {
			return err
		}
	}
	return nil
}

// Leave gives the leases back, once everything was removed. It waits for the
// removals that are under way, as long as ctx allows; Run must still run, since
// its pulses repeat what Redis didn't take. No pulse takes a lease afterwards.
func (r *Registry) Leave(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	wait := func(busy func() bool) error {
		for busy() {
			select {
			case <-ctx.Done():
				return fmt.Errorf("presence: leaving with %d removals undone: %w", r.removing(), ctx.Err())
			case <-tick.C:
			}
		}
		return nil
	}
	if err := wait(func() bool { return r.removing() > 0 }); err != nil {
		return err
	}
	for _, g := range r.groups {
		g.left.Store(true)
		if err := wait(g.pulsing.Load); err != nil {
			return err
		}
		if err := r.sayGoodbye(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// sayGoodbye gives one lease back. A Redis that is just loading its data, or was
// away for a moment, is asked again as long as ctx allows.
func (r *Registry) sayGoodbye(ctx context.Context, g *group) error {
	again := time.NewTicker(r.cfg.Pulse / 4)
	defer again.Stop()
	for {
		_, err := r.pulseOnce(ctx, g, "-")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-again.C:
		}
	}
}

func (r *Registry) removing() int {
	n := 0
	for _, g := range r.groups {
		n += g.removes.unfinished() + g.holdings.unfinished()
	}
	return n
}

func (r *Registry) snapshot(g *group) string {
	if g.index != 0 || r.cfg.Snapshot == nil {
		return ""
	}
	return string(r.cfg.Snapshot())
}

// beat is one pulse and what follows from it.
func (r *Registry) beat(ctx context.Context, g *group) {
	if g.left.Load() {
		return
	}
	before := g.view.Load()
	held, known := g.owns(), g.known()
	told, settled := g.told.Load(), g.settled()
	p, err := r.pulseOnce(ctx, g, r.snapshot(g))
	if err != nil {
		if ctx.Err() == nil {
			r.hear(g, false)
			if r.cfg.OnSilence != nil {
				r.cfg.OnSilence(g.index)
			}
		}
		return
	}
	r.hear(g, true)
	g.removes.release()
	g.holdings.release()
	// A connection that came or went during the call may be counted on one side
	// only, so what is held is compared before and after; a false alarm costs one
	// refresh of each entry of the group, or one look at them, nothing else.
	// After a quiet time began, entries may have expired that nobody could refresh.
	after := g.view.Load()
	if p.own < min(held, g.owns()) || before != nil && (before.line != after.line || before.quiet != after.quiet && after.quiet != 0) {
		r.refreshGroup(g)
	}
	// Members are compared by a pulse during which nobody came or went: there can
	// then be neither more nor fewer than are counted here.
	if g.doubted.Load() || settled && g.settled() && g.told.Load() == told && p.memberships != g.memberships.Load() {
		r.reconcile(g)
	}
	p.ghosts = p.own > max(known, g.known())
	// Beside the pulses: reaping a large gateway takes seconds, and without a pulse
	// Redis would seem to have been away.
	if (len(p.dead) > 0 || len(p.due) > 0 || p.ghosts) && g.tidying.CompareAndSwap(false, true) {
		r.running.Go(func() {
			defer g.tidying.Store(false)
			r.tidy(ctx, g, p)
		})
	}
}

// pulsed is the answer of one pulse.
type pulsed struct {
	own         int64
	memberships int64
	dead        []protocol.GatewayID
	due         []protocol.UserID
	// ghosts says that the registry has more of this gateway than there can be.
	ghosts bool
}

// owns is how much the registry should have of this gateway.
func (g *group) owns() int64 { return g.held.Load() + g.heldAddresses.Load() }

// known is the most that the registry may have of this gateway: what it holds,
// what is being registered, and what is not removed yet.
func (g *group) known() int64 {
	return g.owns() + int64(g.registers.unfinished()+g.removes.unfinished()+g.holdings.unfinished())
}

// settled reports whether the registry has been told of everyone who joined and left.
func (g *group) settled() bool { return g.holdings.unfinished() == 0 }

func (r *Registry) pulseOnce(ctx context.Context, g *group, snapshot string) (pulsed, error) {
	before, again := g.view.Load(), "0"
	if before != nil {
		again = "1"
	}
	v, err := r.run(ctx, r.pulse, []string{
		keyspace.Leases(g.name), keyspace.Line(g.name), keyspace.Numbers(g.name),
		keyspace.Own(g.name, r.cfg.Gateway), keyspace.Offlines(g.name), keyspace.Snapshots(g.name),
		keyspace.Tombstones(g.name), keyspace.Memberships(g.name),
	}, []any{
		string(r.cfg.Gateway), keyspace.Channel(g.name, r.cfg.Gateway), r.cfg.Lease.Milliseconds(),
		r.cfg.gap().Milliseconds(), r.cfg.Quiet.Milliseconds(), r.cfg.ReapAfter.Milliseconds(), snapshot, again,
	})
	if err != nil {
		return pulsed{}, err
	}
	f, ok := v.([]any)
	if !ok || len(f) != 10 {
		return pulsed{}, fmt.Errorf("%w: unexpected pulse answer %T", ErrUnavailable, v)
	}
	leases := ids[string](f[5])
	w := &view{at: time.Now(), redisNow: number(f[0]), line: fmt.Sprint(f[1]), quiet: number(f[2]), leases: make(map[protocol.GatewayID]int64, len(leases)/2)}
	for i := 0; i+1 < len(leases); i += 2 {
		w.leases[protocol.GatewayID(leases[i])] = number(leases[i+1])
	}
	w.follow(before)
	g.view.Store(w)
	if r.cfg.OnPulse != nil {
		r.cfg.OnPulse(g.index, uint64(number(f[3])), w.line, int(number(f[9])))
	}
	return pulsed{
		own: number(f[4]), memberships: number(f[8]),
		dead: ids[protocol.GatewayID](f[6]), due: ids[protocol.UserID](f[7]),
	}, nil
}

// number reads a Lua number or a numeric string; sorted set scores may come as
// floats.
func number(v any) int64 {
	switch n := v.(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	case string:
		f, _ := strconv.ParseFloat(n, 64)
		return int64(f)
	}
	return 0
}

// ids reads a list of a script's answer.
func ids[T ~string](v any) []T {
	a, _ := v.([]any)
	out := make([]T, len(a))
	for i := range a {
		out[i] = T(fmt.Sprint(a[i]))
	}
	return out
}
