package presence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Location is one connection of a user.
type Location struct {
	Gateway protocol.GatewayID
	Conn    protocol.ConnID
	Fence   uint64
	Device  protocol.DeviceID
	Class   protocol.ClassID
	Meta    string
	Since   int64 // ms since 1970
	Expiry  int64 // ms of Redis TIME
}

// Whereabouts is what the registry knows of a user.
type Whereabouts struct {
	User protocol.UserID
	// Locations are the connections that count: not told to go, refreshed within
	// the TTL, on a gateway whose lease runs.
	Locations []Location
	// Version of the user's online state, "epoch.n"; empty when never seen, and
	// while the state is about to change: in the grace period, and between the end
	// of a gateway's lease and its reaping, the locations know more than the
	// version, and equal versions must mean equal states.
	Version string
	// LastSeen is when the user went offline, ms since 1970; 0 when online, while
	// the grace runs, or when never seen.
	LastSeen int64
	// State is what those who watch the user are told: it waits until the grace is
	// over, and until a killed gateway is reaped.
	State protocol.UserState
	// Partial says that Redis was away or tells another history, and may have forgotten
	// connections beside those that were found: until the quiet time is over the
	// gateways tell it again.
	Partial bool
	// Unsure says that nobody was found, and that it is Partial.
	Unsure bool
}

// Get returns where a user is connected: the presence of one user.
func (r *Registry) Get(ctx context.Context, u protocol.UserID) ([]Location, error) {
	w, err := r.Locate(ctx, u)
	if err != nil {
		return nil, err
	}
	return w[0].Locations, nil
}

// Locate returns the whereabouts of users, in the order asked. One round trip
// (on Cluster, one for each master). The error is ErrUnavailable: then nothing
// is known of anybody.
func (r *Registry) Locate(ctx context.Context, users ...protocol.UserID) ([]Whereabouts, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	conns := make([]*redis.MapStringStringCmd, len(users))
	states := make([]*redis.StringCmd, len(users))
	lines := make(map[*group]*redis.SliceCmd)
	_, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, u := range users {
			conns[i] = p.HGetAll(ctx, keyspace.Conns(u))
			states[i] = p.Get(ctx, keyspace.State(u))
			if g := r.groupOf(u); lines[g] == nil {
				lines[g] = askLine(ctx, p, g)
			}
		}
		return nil
	})
	if err != nil && !isNil(err) {
		r.calls.failed.Add(1)
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	out := make([]Whereabouts, len(users))
	for i, u := range users {
		if err := conns[i].Err(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if err := states[i].Err(); err != nil && !isNil(err) {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		g := r.groupOf(u)
		if err := lines[g].Err(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		out[i] = r.whereabouts(u, conns[i].Val(), states[i].Val(), r.forgetful(g, lines[g]))
	}
	return out, nil
}

func (r *Registry) whereabouts(u protocol.UserID, conns map[string]string, state string, forgetful bool) Whereabouts {
	w := Whereabouts{User: u}
	v := r.groupOf(u).view.Load()
	for id, s := range conns {
		l, marked, ok := parseEntry(s)
		if !ok || marked {
			continue
		}
		l.Conn = protocol.ConnID(id)
		if r.counts(v, l) {
			w.Locations = append(w.Locations, l)
		}
	}
	var line string
	w.State, line = parseState(u, state)
	offline := w.State.State == protocol.StateOffline && v != nil && line == v.line
	w.Partial = forgetful && (len(w.Locations) > 0 || !offline)
	w.Unsure = w.Partial && len(w.Locations) == 0
	if (w.State.State == protocol.StateOnline) == (len(w.Locations) > 0) {
		w.Version = w.State.Version()
		w.LastSeen = w.State.LastSeen()
	}
	return w
}

// States returns what those who watch users are told, in the order asked: much
// less to read than Locate. The error is ErrUnavailable.
func (r *Registry) States(ctx context.Context, users ...protocol.UserID) ([]protocol.UserState, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	cmds := make([]*redis.StringCmd, len(users))
	_, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, u := range users {
			cmds[i] = p.Get(ctx, keyspace.State(u))
		}
		return nil
	})
	if err != nil && !isNil(err) {
		r.calls.failed.Add(1)
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	out := make([]protocol.UserState, len(users))
	for i, u := range users {
		if err := cmds[i].Err(); err != nil && !isNil(err) {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		out[i], _ = parseState(u, cmds[i].Val())
	}
	return out, nil
}

// parseState reads a state key as lua/state.lua writes it, with the history line in
// which it was written, and those of a version that didn't note that. A user without
// one is offline in no epoch.
func parseState(u protocol.UserID, s string) (state protocol.UserState, line string) {
	f := strings.Split(s, " ")
	switch len(f) {
	case 4:
	case 5:
		line = f[4]
	default:
		return protocol.UserState{User: u, State: protocol.StateOffline}, ""
	}
	n, _ := strconv.ParseUint(f[1], 10, 64)
	since, _ := strconv.ParseInt(f[3], 10, 64)
	return protocol.UserState{User: u, State: protocol.PresenceState(f[2]), Epoch: f[0], N: n, Since: since}, line
}

// counts reports whether a location stands for a living connection. In quiet
// time an entry past its expiry counts too: nobody could refresh it.
func (r *Registry) counts(v *view, l Location) bool {
	if l.Gateway == r.cfg.Gateway {
		return true // its end is ours to report
	}
	if v.dead(l.Gateway, r.cfg.gap()) {
		return false
	}
	return v == nil || v.quiet != 0 || l.Expiry > v.now()
}

// parseEntry reads an entry as lua/entry.lua writes it.
func parseEntry(s string) (l Location, marked, ok bool) {
	f := strings.SplitN(s, "\x1f", 7)
	if len(f) != 7 {
		return l, false, false
	}
	fence, err1 := strconv.ParseUint(f[0], 10, 64)
	expiry, err2 := strconv.ParseInt(f[1], 10, 64)
	since, err3 := strconv.ParseInt(f[4], 10, 64)
	if errors.Join(err1, err2, err3) != nil {
		return l, false, false
	}
	l = Location{
		Gateway: protocol.GatewayID(f[2]), Fence: fence, Expiry: expiry, Since: since,
		Meta: f[6],
	}
	device, class, _ := strings.Cut(f[5], "\x1e")
	l.Device, l.Class = protocol.DeviceID(device), protocol.ClassID(class)
	return l, f[3] != "", true
}

// Holding is how many connections of an address one gateway holds.
type Holding struct {
	Gateway protocol.GatewayID
	Count   int
}

// Holders returns, for each address, the living gateways that hold it.
func (r *Registry) Holders(ctx context.Context, addresses ...protocol.Address) ([][]Holding, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	cmds := make([]*redis.MapStringStringCmd, len(addresses))
	if _, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, a := range addresses {
			cmds[i] = p.HGetAll(ctx, keyspace.Holders(a))
		}
		return nil
	}); err != nil {
		r.calls.failed.Add(1)
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	out := make([][]Holding, len(addresses))
	for i, a := range addresses {
		v := r.groups[r.cfg.Layout.GroupIndex(a)].view.Load()
		for gw, s := range cmds[i].Val() {
			n, _ := strconv.Atoi(s)
			if n > 0 && !v.dead(protocol.GatewayID(gw), r.cfg.gap()) {
				out[i] = append(out[i], Holding{Gateway: protocol.GatewayID(gw), Count: n})
			}
		}
	}
	return out, nil
}

// Find returns whose a connection is and where, false when no living gateway holds it: it has ended, or was told to go. Its id says nothing of
// its user, so each living gateway's index is asked for it: two or three round trips, however many connections there are. The error is
// ErrUnavailable, or ErrUnsure where it isn't found and may be there all the same.
func (r *Registry) Find(ctx context.Context, conn protocol.ConnID) (u protocol.UserID, l Location, ok bool, err error) {
	living, err := r.Living(ctx)
	if err != nil {
		return "", Location{}, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	var owned []*redis.StringCmd
	lines := make([]*redis.SliceCmd, len(r.groups))
	_, err = r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, g := range r.groups {
			lines[i] = askLine(ctx, p, g)
			for _, gw := range living {
				owned = append(owned, p.HGet(ctx, keyspace.Own(g.name, gw), string(conn)))
			}
		}
		return nil
	})
	if err != nil && !isNil(err) {
		r.calls.failed.Add(1)
		return "", Location{}, false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for _, cmd := range owned {
		if err := cmd.Err(); err != nil && !isNil(err) {
			return "", Location{}, false, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		_, user, found := parseOwned(cmd.Val())
		if !found {
			continue
		}
		// A gateway that was paused may have it in its index, and another in the user's
		// entries by now: those decide.
		entry, err := r.client.HGet(ctx, keyspace.Conns(user), string(conn)).Result()
		if err != nil && !isNil(err) {
			r.calls.failed.Add(1)
			return "", Location{}, false, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		l, marked, parsed := parseEntry(entry)
		l.Conn = conn
		if parsed && !marked && r.counts(r.groupOf(user).view.Load(), l) {
			return user, l, true, nil
		}
	}
	for i, g := range r.groups {
		if r.forgetful(g, lines[i]) {
			return "", Location{}, false, ErrUnsure
		}
	}
	return "", Location{}, false, nil
}

// Dead returns the gateways whose lease ended and that are not reaped yet, as far as the last pulses saw, ascending: what they held is in
// the registry and counts no more.
func (r *Registry) Dead() []protocol.GatewayID {
	var dead []protocol.GatewayID
	for _, g := range r.groups {
		for gw := range g.view.Load().allDead(r.cfg.gap(), r.cfg.Gateway) {
			if !slices.Contains(dead, gw) {
				dead = append(dead, gw)
			}
		}
	}
	slices.Sort(dead)
	return dead
}

// AnswersOfGateways is Answers for who is alive.
func (r *Registry) AnswersOfGateways() bool { return !r.groups[0].silent.Load() }

// AnswersAll is Answers for every group.
func (r *Registry) AnswersAll() bool { return r.silent.Load() == 0 }

// Cluster returns the last /stats snapshot of every gateway the registry knows,
// as JSON, and which gateways are dead; missing are those that live and left none, since
// Redis forgot it. It asks no gateway.
func (r *Registry) Cluster(ctx context.Context) (snapshots map[protocol.GatewayID]string, dead, missing []protocol.GatewayID, err error) {
	living, _, err := r.Gateways(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	g := r.groups[0]
	m, err := r.client.HGetAll(ctx, keyspace.Snapshots(g.name)).Result()
	if err != nil {
		r.calls.failed.Add(1)
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	snapshots = make(map[protocol.GatewayID]string, len(m))
	v := g.view.Load()
	for gw, s := range m {
		snapshots[protocol.GatewayID(gw)] = s
		if v.dead(protocol.GatewayID(gw), r.cfg.gap()) {
			dead = append(dead, protocol.GatewayID(gw))
		}
	}
	for _, gw := range living {
		if _, left := snapshots[gw]; !left {
			missing = append(missing, gw)
		}
	}
	return snapshots, dead, missing, nil
}

// Answers reports whether Redis answered the last pulse of every group these addresses
// are in: if not, nobody should wait for a call to find out.
func (r *Registry) Answers(addresses ...protocol.Address) bool {
	if r.silent.Load() == 0 {
		return true
	}
	for _, a := range addresses {
		if r.groups[r.cfg.Layout.GroupIndex(a)].silent.Load() {
			return false
		}
	}
	return true
}

// hear notes whether Redis answered a pulse of a group.
func (r *Registry) hear(g *group, answered bool) {
	if g.silent.Swap(!answered) == !answered {
		return
	}
	if answered {
		r.silent.Add(-1)
	} else {
		r.silent.Add(1)
	}
}

// Reachable reports whether the last pulse of every group was answered recently
// enough to speak for Redis.
func (r *Registry) Reachable() bool {
	for _, g := range r.groups {
		v := g.view.Load()
		if v == nil || sinceMs(v.at) > (r.cfg.Pulse*2+r.cfg.Timeout).Milliseconds() {
			return false
		}
	}
	return true
}

func isUnavailable(err error) bool { return errors.Is(err, ErrUnavailable) }
