package presence

import (
	"context"
	"fmt"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Gateways returns the gateways that count as alive now, this one among them, and
// those whose lease ended and whose connections are not reaped yet.
func (r *Registry) Gateways(ctx context.Context) (living, dead []protocol.GatewayID, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	g := r.groups[0]
	all, err := r.client.ZRange(ctx, keyspace.Leases(g.name), 0, -1).Result()
	if err != nil {
		r.calls.failed.Add(1)
		return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for _, gw := range all {
		if gw := protocol.GatewayID(gw); r.IsDead(gw) {
			dead = append(dead, gw)
		} else {
			living = append(living, gw)
		}
	}
	return living, dead, nil
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
