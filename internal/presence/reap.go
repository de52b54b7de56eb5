package presence

import (
	"context"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// reapBatch is how many entries of a dead gateway one call takes out.
const reapBatch = 100

// tidy ends grace periods and reaps dead gateways. Every survivor does this
// after each pulse that names somebody; nobody is elected, and the scripts check
// again, so it doesn't matter how many do it at once.
func (r *Registry) tidy(ctx context.Context, g *group, p pulsed) {
	if len(p.due) > 0 {
		r.endGrace(ctx, g, p.due)
	}
	for _, gw := range p.dead {
		for ctx.Err() == nil && r.reapSome(ctx, g, gw) {
		}
	}
}

func (r *Registry) endGrace(ctx context.Context, g *group, users []protocol.UserID) {
	keys := []string{keyspace.Offlines(g.name), keyspace.Events(g.name)}
	args := []any{keyspace.ChannelPrefix(g.name), protocol.NewEpoch(), r.cfg.EventsKept}
	for _, u := range users {
		keys = append(keys, keyspace.Conns(u), keyspace.State(u), keyspace.Holders(protocol.WatchAddress(u)))
		args = append(args, string(u))
	}
	// An error leaves them due: the next pulse names them again.
	_, _ = r.run(ctx, r.offline, keys, args)
}

// reapSome takes one batch of a dead gateway's entries out, and reports whether
// there is more to do.
func (r *Registry) reapSome(ctx context.Context, g *group, gw protocol.GatewayID) bool {
	rctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	fields, _, err := r.client.HScan(rctx, keyspace.Own(g.name, gw), 0, "", reapBatch).Result()
	if err != nil {
		return false
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
	for i := 0; i+1 < len(fields); i += 2 {
		// own: fence, user, since, device, meta
		f := strings.SplitN(fields[i+1], "\x1f", 3)
		if len(f) < 3 {
			continue
		}
		keys = append(keys, userKeys(protocol.UserID(f[1]))...)
		args = append(args, fields[i], f[0], f[1], "gateway_lost", "")
	}
	v, err := r.run(ctx, r.remove, keys, args)
	if err != nil {
		return false
	}
	var removed, left int64
	if n, _ := fmt.Sscan(fmt.Sprint(v), &removed, &left); n != 2 {
		return false // "alive": it came back
	}
	r.calls.reaped.Add(uint64(removed))
	return left > 0 && len(fields) > 0
}

// isNil reports an absent key, which for reads is an answer.
func isNil(err error) bool { return err == redis.Nil }
