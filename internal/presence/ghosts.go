package presence

import (
	"context"
	"strconv"
	"strings"
	"time"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// takeOutGhosts removes what the registry says this gateway holds and it
// doesn't: a failover lost the removal, or a registration that was given up
// reached Redis after its removal. While the gateway lives nobody else would.
//
// A connection whose registration is under way looks the same, so only what is
// still there after two timeouts is a ghost. Should it have been a living one
// after all, its next refresh enters it again.
func (r *Registry) takeOutGhosts(ctx context.Context, g *group) {
	found, held, err := r.owned(ctx, g)
	if err != nil {
		return // the next pulse finds them again
	}
	for _, a := range held {
		if !g.holds.has(a) {
			g.holdings.add(&holding{address: a}) // which says what is true then, so it harms no join under way
		}
	}
	r.cfg.Each(func(e *Entry) bool {
		delete(found, e.Conn)
		return true
	})
	for conn, s := range found {
		before, ok := g.strays[conn]
		if !ok || before.entry.Fence() != s.entry.Fence() {
			continue
		}
		if found[conn] = before; time.Since(before.seen) >= 2*r.cfg.Timeout {
			g.removes.add(&departure{entry: s.entry, end: r.cfg.Abandoned})
			delete(found, conn)
		}
	}
	g.strays = found
}

// stray is an entry that may be a ghost.
type stray struct {
	entry *Entry
	seen  time.Time // first
}

// owned returns what the registry says this gateway holds in the group.
func (r *Registry) owned(ctx context.Context, g *group) (map[protocol.ConnID]stray, []protocol.Address, error) {
	var held []protocol.Address
	all, now := make(map[protocol.ConnID]stray), time.Now()
	for cursor := uint64(0); ; {
		fields, next, err := r.scanOwn(ctx, g, r.cfg.Gateway, cursor)
		if err != nil {
			return nil, nil, err
		}
		for i := 0; i+1 < len(fields); i += 2 {
			if a := protocol.Address(fields[i]); a.Kind() != 0 {
				held = append(held, a)
				continue
			}
			fence, user, ok := parseOwned(fields[i+1])
			if !ok {
				continue
			}
			e := &Entry{Conn: protocol.ConnID(fields[i]), User: user}
			e.fence.Store(fence)
			e.life.Store(entryGone)
			all[e.Conn] = stray{e, now}
		}
		if cursor = next; cursor == 0 {
			return all, held, nil
		}
	}
}

// scanOwn reads some of a gateway's own index: pairs of connection and value.
func (r *Registry) scanOwn(ctx context.Context, g *group, gw protocol.GatewayID, cursor uint64) ([]string, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	return r.client.HScan(ctx, keyspace.Own(g.name, gw), cursor, "", reapBatch).Result()
}

// parseOwned reads a value of the own index: fence, user, since, device, meta, and which meta it is where one was set.
func parseOwned(s string) (fence uint64, user protocol.UserID, ok bool) {
	f := strings.SplitN(s, "\x1f", 3)
	if len(f) < 3 {
		return 0, "", false
	}
	fence, err := strconv.ParseUint(f[0], 10, 64)
	return fence, protocol.UserID(f[1]), err == nil
}
