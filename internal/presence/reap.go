package presence

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// reapBatch is how many entries of a dead gateway one call takes out.
const reapBatch = 100

// tidy ends grace periods, reaps dead gateways and takes out ghosts. Every
// survivor does this after each pulse that names somebody; nobody is elected, and
// the scripts check again, so it doesn't matter how many do it at once.
func (r *Registry) tidy(ctx context.Context, g *group, p pulsed) {
	if p.ghosts {
		r.takeOutGhosts(ctx, g)
	}
	for due := p.due; len(due) > 0 && ctx.Err() == nil; {
		due = r.endGrace(ctx, g, due)
	}
	for _, gw := range p.dead {
		r.reap(ctx, g, gw)
	}
}

// reap takes out all that a dead gateway held, some with each call. The scan goes
// on where it was: Redis keeps the size of a hash that shrinks, so its beginning
// is empty long before the rest.
func (r *Registry) reap(ctx context.Context, g *group, gw protocol.GatewayID) {
	cursor, before := uint64(0), int64(-1)
	for ctx.Err() == nil {
		next, left, ok := r.reapSome(ctx, g, gw, cursor)
		if !ok || left == 0 {
			return
		}
		if cursor = next; cursor == 0 {
			if left == before {
				return // once around, and nothing of it could be taken out
			}
			before = left
		}
	}
}

// endGrace makes users offline, and returns who is next.
func (r *Registry) endGrace(ctx context.Context, g *group, users []protocol.UserID) []protocol.UserID {
	keys := []string{keyspace.Offlines(g.name), keyspace.Events(g.name), keyspace.Line(g.name), keyspace.Numbers(g.name)}
	args := []any{keyspace.ChannelPrefix(g.name), protocol.NewEpoch(), r.cfg.EventsKept}
	for _, u := range users {
		keys = append(keys, keyspace.Conns(u), keyspace.State(u), keyspace.Holders(protocol.WatchAddress(u)))
		args = append(args, string(u))
	}
	v, err := r.run(ctx, r.offline, keys, args)
	if err != nil {
		return nil // they stay due: the next pulse names them again
	}
	return ids[protocol.UserID](v)
}

// reapSome takes one batch of a dead gateway's entries out: those the scan finds
// from the cursor on. It returns where the scan goes on and how many are left;
// false when the gateway may not be judged, or Redis didn't answer.
func (r *Registry) reapSome(ctx context.Context, g *group, gw protocol.GatewayID, cursor uint64) (next uint64, left int64, ok bool) {
	fields, next, err := r.scanOwn(ctx, g, gw, cursor)
	if err != nil {
		return 0, 0, false
	}
	// A small hash comes whole, whatever the count asked for.
	if len(fields) > 4*reapBatch {
		fields = fields[:4*reapBatch]
	}
	keys := r.removeKeys(g, gw)
	args := []any{
		string(gw), keyspace.ChannelPrefix(g.name), r.cfg.Grace.Milliseconds(), protocol.NewEpoch(),
		r.cfg.EventsKept, r.cfg.ReapAfter.Milliseconds(),
	}
	var held []protocol.Address
	for i := 0; i+1 < len(fields); i += 2 {
		if a := protocol.Address(fields[i]); a.Kind() != 0 {
			held = append(held, a)
			continue
		}
		fence, user, ok := parseOwned(fields[i+1])
		if !ok {
			continue
		}
		keys = append(keys, userKeys(user)...)
		args = append(args, fields[i], fence, string(user), r.cfg.Lost.Cause, "", r.cfg.Lost.Kind, r.cfg.Lost.Code, "")
	}
	for rest := held; len(rest) > 0; {
		if rest, ok = r.reapHolds(ctx, g, gw, rest); !ok || ctx.Err() != nil {
			return 0, 0, false
		}
	}
	v, err := r.run(ctx, r.remove, keys, args)
	if err != nil {
		return 0, 0, false
	}
	var removed int64
	if n, _ := fmt.Sscan(fmt.Sprint(v), &removed, &left); n != 2 {
		return 0, 0, false // "alive": it came back
	}
	r.calls.reaped.Add(uint64(removed) + uint64(len(held)))
	return next, left, true
}

// isNil reports an absent key, which for reads is an answer.
func isNil(err error) bool { return err == redis.Nil }
