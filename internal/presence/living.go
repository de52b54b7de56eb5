package presence

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Gateways returns the gateways that count as alive now, this one among them, and
// those whose lease ended and whose connections are not reaped yet. One whose lease
// Redis forgot counts by its last one, until it has another: it lives, and should be
// asked, or named.
func (r *Registry) Gateways(ctx context.Context) (living, dead []protocol.GatewayID, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	g := r.groups[0]
	var all *redis.StringSliceCmd
	var line *redis.SliceCmd
	if _, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		all, line = p.ZRange(ctx, keyspace.Leases(g.name), 0, -1), askLine(ctx, p, g)
		return nil
	}); err != nil {
		r.calls.failed.Add(1)
		return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	found := make(map[protocol.GatewayID]bool)
	for _, gw := range all.Val() {
		gw := protocol.GatewayID(gw)
		if found[gw] = true; r.IsDead(gw) {
			dead = append(dead, gw)
		} else {
			living = append(living, gw)
		}
	}
	if r.forgetful(g, line) {
		for _, gw := range g.view.Load().remembered() {
			if !found[gw] {
				living = append(living, gw)
			}
		}
	}
	return living, dead, nil
}

// Living returns the first of what Gateways does.
func (r *Registry) Living(ctx context.Context) ([]protocol.GatewayID, error) {
	living, _, err := r.Gateways(ctx)
	return living, err
}

// HeldBy returns the gateways that hold connections of a user: those that live, and
// those that are dead and not reaped yet. The error is ErrUnavailable, or ErrUnsure
// where there may be others that Redis forgot.
func (r *Registry) HeldBy(ctx context.Context, u protocol.UserID) (living, dead []protocol.GatewayID, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	g := r.groupOf(u)
	var holders *redis.MapStringStringCmd
	var line *redis.SliceCmd
	if _, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		holders, line = p.HGetAll(ctx, keyspace.Holders(protocol.UserAddress(u))), askLine(ctx, p, g)
		return nil
	}); err != nil {
		r.calls.failed.Add(1)
		return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if r.forgetful(g, line) {
		return nil, nil, ErrUnsure
	}
	v := g.view.Load()
	for gw := range holders.Val() {
		if gw := protocol.GatewayID(gw); v.dead(gw, r.cfg.gap()) {
			dead = append(dead, gw)
		} else {
			living = append(living, gw)
		}
	}
	return living, dead, nil
}

// askLine asks, with what else is read, what forgetful wants to know. That a pulse
// was answered a moment ago doesn't say it: Redis may have been emptied since.
func askLine(ctx context.Context, p redis.Pipeliner, g *group) *redis.SliceCmd {
	return p.HMGet(ctx, keyspace.Line(g.name), "id", "quiet")
}

// forgetful reports whether Redis may not know everybody of a group who is there: it
// was away, or emptied, or tells another history, and the quiet time in which it is
// told again isn't over, or hasn't even begun.
func (r *Registry) forgetful(g *group, line *redis.SliceCmd) bool {
	v, f := g.view.Load(), line.Val()
	if v.unsure(r.cfg.gap()) || len(f) != 2 {
		return true
	}
	id, _ := f[0].(string)
	return id != v.line || number(f[1]) > v.now()
}

// IsDead reports whether the lease of a gateway has ended, as far as the last pulse
// knows: nobody is judged while Redis is away.
func (r *Registry) IsDead(gw protocol.GatewayID) bool {
	return r.groups[0].view.Load().dead(gw, r.cfg.gap())
}

// Left returns which of these connections of a user the registry still has, told to
// go or not, and on which gateways.
func (r *Registry) Left(ctx context.Context, u protocol.UserID, conns []protocol.ConnID) (map[protocol.ConnID]protocol.GatewayID, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	all, err := r.client.HGetAll(ctx, keyspace.Conns(u)).Result()
	if err != nil {
		r.calls.failed.Add(1)
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	left := make(map[protocol.ConnID]protocol.GatewayID)
	for _, c := range conns {
		if l, _, ok := parseEntry(all[string(c)]); ok {
			left[c] = l.Gateway
		}
	}
	return left, nil
}
