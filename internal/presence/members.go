package presence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Who is in a room is written by the hold script, in the call by which a connection learns the room's position: a join waits for
// nothing more, whoever was answered is in the list, and no second queue can overtake the holds. In Redis a gateway has members only in
// rooms it holds, so what a dead gateway left is found by its own index, room by room.

// Enter is Hold for a user's connection: he is a member of these rooms until its Exit. A user counts once in a room, however many
// connections and gateways he is there with.
//
// Each success, and nothing else, is owed an Exit.
func (r *Registry) Enter(ctx context.Context, u protocol.UserID, rooms ...protocol.Address) []Standing {
	return r.take(ctx, u, rooms)
}

// Exit takes back one Enter of a user. His last one in a room ends his membership, in the background.
func (r *Registry) Exit(u protocol.UserID, room protocol.Address) { r.release(u, room) }

// MembersPage is some of who is in a room.
type MembersPage struct {
	// Count is how many users are in the room in all.
	Count int
	// Users are ascending, byte by byte, each once.
	Users []protocol.UserID
	// Next is where the next page begins: behind this user. Empty: this was the last.
	Next protocol.UserID
	// Unsure says that Redis was away or tells another history, and may have forgotten
	// some.
	Unsure bool
}

// The most that one page reads: a room full of what a dead gateway left must not keep Redis busy. Such a page may be short, and is not
// the last.
const (
	pageSlack  = 16 // elements more than users asked for: a user may be on several gateways
	pageReads  = 8
	pageLength = 1000
)

// Members returns up to limit users of a room, those behind after. Who is in the room from before the first page to after the last is
// on exactly one of them, whoever comes and goes meanwhile. Users of a gateway whose lease ended are not there, neither on a page nor in
// the count; one who was on several such gateways at once is in the count until they are reaped. The error is ErrUnavailable.
func (r *Registry) Members(ctx context.Context, room protocol.Address, after protocol.UserID, limit int) (MembersPage, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	g := r.groups[r.cfg.Layout.GroupIndex(room)]
	dead := g.view.Load().allDead(r.cfg.gap(), r.cfg.Gateway)
	names := []string{""}
	for gw := range dead {
		names = append(names, string(gw))
	}
	var page MembersPage
	start := "[u"
	if after != "" {
		start = "[u" + string(after) + behind
	}
	length := int64(limit + pageSlack)
	for read := 0; ; read++ {
		var counts, line *redis.SliceCmd
		var found *redis.StringSliceCmd
		_, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			if read == 0 {
				counts, line = p.HMGet(ctx, keyspace.MemberCounts(room), names...), askLine(ctx, p, g)
			}
			found = p.ZRangeArgs(ctx, redis.ZRangeArgs{Key: keyspace.Members(room), Start: start, Stop: "(v", ByLex: true, Count: length})
			return nil
		})
		if err != nil {
			r.calls.failed.Add(1)
			return MembersPage{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if counts != nil {
			page.Count, page.Unsure = countOf(counts.Val()), r.forgetful(g, line)
		}
		for _, x := range found.Val() {
			user, gw, ok := strings.Cut(x[1:], separator)
			if _, gone := dead[protocol.GatewayID(gw)]; !ok || gone {
				continue
			}
			n := len(page.Users)
			if n > 0 && string(page.Users[n-1]) == user {
				continue
			}
			if n == limit {
				page.Next = page.Users[n-1]
				return page, nil
			}
			page.Users = append(page.Users, protocol.UserID(user))
		}
		if int64(len(found.Val())) < length {
			return page, nil
		}
		if read == pageReads-1 {
			page.Next = lastWhole(found.Val(), page.Users)
			return page, nil
		}
		start, length = "("+found.Val()[length-1], pageLength
	}
}

// lastWhole is the last user of whom nothing can be behind what was read: the last one, if he is on the page already; else he may be on a
// living gateway as well, and it is the one before.
func lastWhole(found []string, page []protocol.UserID) protocol.UserID {
	last, _, _ := strings.Cut(found[len(found)-1][1:], separator)
	if n := len(page); n > 0 && string(page[n-1]) == last {
		return page[n-1]
	}
	for _, x := range slices.Backward(found) {
		if user, _, _ := strings.Cut(x[1:], separator); user != last {
			return protocol.UserID(user)
		}
	}
	return protocol.UserID(last) // on a thousand gateways that are all dead
}

// separator stands between a user and a gateway, and behind is next to it: no name holds the one, and what begins with a name and the
// other sorts behind all that begins with the name and the separator.
const (
	separator = "\x1f"
	behind    = "\x20"
)

// countOf is the number of all, without those who are only where the others say.
func countOf(v []any) int {
	n := 0
	for i, x := range v {
		s, _ := x.(string)
		c, _ := strconv.Atoi(s)
		if i == 0 {
			n = c
		} else {
			n -= c
		}
	}
	return max(n, 0)
}

// allDead are the gateways that count as dead; never the own one, whose members are its own to tell of.
func (v *view) allDead(gap time.Duration, own protocol.GatewayID) map[protocol.GatewayID]struct{} {
	if v == nil {
		return nil
	}
	var dead map[protocol.GatewayID]struct{}
	for gw := range v.leases {
		if gw != own && v.dead(gw, gap) {
			if dead == nil {
				dead = make(map[protocol.GatewayID]struct{})
			}
			dead[gw] = struct{}{}
		}
	}
	return dead
}

// reconcile compares, in the background, who is in the rooms of a group with whom the registry has there from this gateway, and tells
// it of the difference: Redis lost a tail or everything, or somebody began to reap a gateway that was only paused. The numbers may agree
// where the names don't, so a comparison that Redis broke off, or that began before it was asked for, stays owed to the next pulse.
func (r *Registry) reconcile(g *group) {
	g.doubted.Store(true)
	if !g.reconciling.CompareAndSwap(false, true) {
		return
	}
	r.running.Go(func() {
		defer g.reconciling.Store(false)
		g.doubted.Store(false)
		for _, room := range g.holds.rooms() {
			if err := r.reconcileRoom(g, room); err != nil {
				g.doubted.Store(true)
				return
			}
		}
	})
}

func (r *Registry) reconcileRoom(g *group, room protocol.Address) error {
	ours := g.holds.users(room)
	begin := "g" + string(r.cfg.Gateway)
	for start := "[" + begin + separator; ; {
		ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
		found, err := r.client.ZRangeArgs(ctx, redis.ZRangeArgs{
			Key: keyspace.Members(room), Start: start, Stop: "(" + begin + behind, ByLex: true, Count: pageLength,
		}).Result()
		cancel()
		if err != nil {
			r.calls.failed.Add(1)
			return errors.Join(ErrUnavailable, err)
		}
		for _, x := range found {
			u := protocol.UserID(x[len(begin)+1:])
			if _, ok := ours[u]; ok {
				delete(ours, u)
			} else {
				g.holdings.add(&holding{address: room, user: u})
			}
		}
		if len(found) < pageLength {
			break
		}
		start = "(" + found[len(found)-1]
	}
	for u := range ours {
		g.holdings.add(&holding{address: room, user: u})
	}
	return nil
}

// rooms lists the addresses that have members.
func (h *holds) rooms() []protocol.Address {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []protocol.Address
	for a, x := range h.all {
		if x.users != nil {
			out = append(out, a)
		}
	}
	return out
}

// users returns who is in a room here.
func (h *holds) users(room protocol.Address) map[protocol.UserID]struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.all[room]
	if x == nil {
		return nil
	}
	out := make(map[protocol.UserID]struct{}, len(x.users))
	for u := range x.users {
		out[u] = struct{}{}
	}
	return out
}
