//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// A dump is every key of the registry: its type and, by field, its values.
type dump map[string]map[string]string

// dump reads all of Redis.
func (f *fleet) dump() dump {
	f.t.Helper()
	d := make(dump)
	read := func(ctx context.Context, c redis.Cmdable) error {
		for cursor := uint64(0); ; {
			keys, next, err := c.Scan(ctx, cursor, "*", 1000).Result()
			if err != nil {
				return err
			}
			for _, key := range keys {
				if d[key], err = readKey(ctx, c, key); err != nil {
					return err
				}
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	var err error
	if c, ok := f.client.(*redis.ClusterClient); ok {
		masters, merr := f.redis.Masters()
		if merr != nil {
			f.t.Fatal(merr)
		}
		_ = c
		for _, n := range masters {
			if err = read(context.Background(), n.Client()); err != nil {
				break
			}
		}
	} else {
		err = read(context.Background(), f.redis.Client())
	}
	if err != nil {
		f.t.Fatalf("reading all keys: %v", err)
	}
	// What was removed while the scan ran has no fields.
	maps.DeleteFunc(d, func(_ string, fields map[string]string) bool { return len(fields) == 0 })
	return d
}

func readKey(ctx context.Context, c redis.Cmdable, key string) (map[string]string, error) {
	kind, err := c.Type(ctx, key).Result()
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	switch kind {
	case "none":
	case "hash":
		return c.HGetAll(ctx, key).Result()
	case "string":
		v, err := c.Get(ctx, key).Result()
		fields[""] = v
		if isNil(err) {
			return nil, nil
		}
		return fields, err
	case "zset":
		all, err := c.ZRangeWithScores(ctx, key, 0, -1).Result()
		for _, z := range all {
			fields[fmt.Sprint(z.Member)] = strconv.FormatFloat(z.Score, 'f', -1, 64)
		}
		return fields, err
	case "stream":
		all, err := c.XRange(ctx, key, "-", "+").Result()
		for _, x := range all {
			fields[x.ID] = fmt.Sprint(x.Values)
		}
		return fields, err
	default:
		return nil, fmt.Errorf("%s is a %s, which the registry never writes", key, kind)
	}
	return fields, nil
}

// problems checks what must hold whenever no script runs and none of a living gateway's removals waits:
//
//   - a user's holders are exactly the gateways of his conns, each with as many as it has there;
//   - a gateway's own index is exactly its entries in all conns, with the same fence, user and meta;
//   - a user with conns is online; without, offline, or his grace runs;
//   - fences of a user differ;
//   - the holders of a room or a watch are exactly the gateways whose own index has it, and for a running one those where it has members;
//   - who is in a room stands there twice, by user and by gateway, and only where the gateway holds the room; the counts are those of the
//     names, and so is what is counted for each gateway; a running one has exactly its members there, and counts them right;
//   - a running gateway holds exactly what the registry says it owns, and counts it right.
func (f *fleet) problems() []string {
	f.t.Helper()
	d := f.dump()
	var problems []string
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	holders := make(map[string]map[string]int) // user -> gateway -> connections, as conns have it
	owned := make(map[string]string)           // own key + connection -> "fence user", as conns have it
	local := make(map[string]int)              // gateway -> connections
	metas := make(map[string]string)           // connection -> meta, as conns have it
	for key, fields := range d {
		user, ok := addressOf(key, "c", "u:")
		if !ok {
			continue
		}
		g, fences := f.group(user), make(map[uint64]bool)
		holders[user] = make(map[string]int)
		for conn, s := range fields {
			l, _, ok := parseEntry(s)
			if !ok {
				complain("%s: %s is no entry: %q", user, conn, s)
				continue
			}
			if fences[l.Fence] {
				complain("%s: fence %d was given twice", user, l.Fence)
			}
			fences[l.Fence] = true
			holders[user][string(l.Gateway)]++
			local[string(l.Gateway)]++
			owned[keyspace.Own(g, l.Gateway)+" "+conn] = fmt.Sprintf("%d %s", l.Fence, user)
			metas[conn] = l.Meta
		}
	}
	for key, fields := range d {
		if user, ok := addressOf(key, "h", "u:"); ok {
			for gw, n := range fields {
				if want := holders[user][gw]; strconv.Itoa(want) != n {
					complain("%s: holders says %s connections on %s, conns %d", user, n, gw, want)
				}
				delete(holders[user], gw)
			}
		}
		for _, kind := range []string{"r:", "w:"} {
			name, ok := addressOf(key, "h", kind)
			if !ok {
				continue
			}
			for gw := range fields {
				a := protocol.Address(kind + name)
				if _, ok := d[keyspace.Own(f.cfg.Layout.GroupOf(a), protocol.GatewayID(gw))][string(a)]; !ok {
					complain("%s: held by %s, which doesn't own it", a, gw)
				}
			}
		}
		if strings.Contains(key, "}:own:") {
			for conn, s := range fields {
				if a := protocol.Address(conn); a.Kind() != 0 {
					if gw := key[strings.Index(key, "}:own:")+6:]; d[keyspace.Holders(a)][gw] == "" {
						complain("%s has %s, its holders don't have the gateway", key, a)
					}
					continue
				}
				fence, rest, _ := strings.Cut(s, "\x1f")
				user, _, _ := strings.Cut(rest, "\x1f")
				if want := owned[key+" "+conn]; want != fence+" "+user {
					complain("%s has %s as %q, conns as %q", key, conn, fence+" "+user, want)
				}
				delete(owned, key+" "+conn)
				if f := strings.Split(s, "\x1f"); len(f) != 5 && len(f) != 6 || f[4] != metas[conn] {
					complain("%s has %s as %q, conns have the meta %q", key, conn, s, metas[conn])
				}
			}
		}
		if user, ok := addressOf(key, "o", "u:"); ok {
			_, grace := d[keyspace.Offlines(f.group(user))][user]
			_, present := d[keyspace.Conns(protocol.UserID(user))]
			state := strings.Fields(fields[""])
			switch {
			case len(state) != 5:
				complain("%s: state is %q", user, fields[""])
			case present && state[2] != "online", !present && !grace && state[2] != "offline", grace && (present || state[2] != "online"):
				complain("%s is %s, connected: %t, grace runs: %t", user, state[2], present, grace)
			}
		}
	}
	for user, left := range holders {
		for gw, n := range left {
			complain("%s: holders knows nothing of %d connections on %s", user, n, gw)
		}
		if _, ok := d[keyspace.State(protocol.UserID(user))]; !ok {
			complain("%s is connected and has no state", user)
		}
	}
	for key, what := range owned {
		complain("%s (%s) is not in its gateway's own", key, what)
	}
	f.memberProblems(d, complain)
	for _, g := range f.gateways {
		if g.cancel == nil {
			continue
		}
		for _, x := range g.registry.groups {
			for a := range d[keyspace.Own(x.name, g.id)] {
				if a := protocol.Address(a); a.Kind() != 0 && !x.holds.has(a) {
					complain("%s has no members of %s, the registry says it holds it", g.id, a)
				}
			}
			held := x.holds.list()
			for _, a := range held {
				if d[keyspace.Holders(a)][string(g.id)] == "" {
					complain("%s has members of %s, the registry doesn't know", g.id, a)
				}
			}
			if n := x.heldAddresses.Load(); n != int64(len(held)) {
				complain("%s holds %d addresses in %s and counts %d", g.id, len(held), x.name, n)
			}
		}
		entries := g.entries()
		if n := local[string(g.id)]; n != len(entries) || g.registry.Stats().Held != int64(n) {
			complain("%s holds %d, counts %d, the registry says %d", g.id, len(entries), g.registry.Stats().Held, n)
		}
		for _, e := range entries {
			l, marked, ok := parseEntry(d[keyspace.Conns(e.User)][string(e.Conn)])
			if !ok || l.Gateway != g.id || l.Fence != e.Fence() || l.Device != e.Device || l.Meta != e.MetaNow() || l.Since != e.Since {
				complain("%s holds %s with fence %d, the registry has %+v (marked: %t)", g.id, e.Conn, e.Fence(), l, marked)
			}
		}
	}
	slices.Sort(problems)
	return problems
}

// addressOf takes the name out of a key of an address.
func addressOf(key, kind, prefix string) (string, bool) {
	_, rest, ok := strings.Cut(key, "}:")
	if !ok {
		return "", false
	}
	return strings.CutPrefix(rest, kind+":"+prefix)
}

// wantSound waits until nothing is wrong in all of the registry.
func (f *fleet) wantSound() {
	f.t.Helper()
	f.eventually(func() error {
		if p := f.problems(); len(p) > 0 {
			return fmt.Errorf("the registry is not sound:\n\t%s", strings.Join(p, "\n\t"))
		}
		return nil
	})
}
