//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// memberProblems checks what problems says of rooms.
func (f *fleet) memberProblems(d dump, complain func(string, ...any)) {
	f.t.Helper()
	memberships := make(map[string]map[string]int) // mem key -> gateway -> memberships
	there := make(map[string]map[string]bool)      // gateway -> room and user, with a separator between
	for key, fields := range d {
		room, ok := addressOf(key, "m", "r:")
		if !ok {
			if _, counts := addressOf(key, "n", "r:"); counts {
				if _, ok := d[strings.Replace(key, "}:n:", "}:m:", 1)]; !ok {
					complain("%s counts %v, and nobody is there", key, fields)
				}
			}
			continue
		}
		a := protocol.RoomAddress(protocol.RoomID(room))
		at := make(map[string][]string) // user -> gateways
		for x, score := range fields {
			first, second, ok := strings.Cut(x[1:], "\x1f")
			if score != "0" || !ok || x[0] != 'u' && x[0] != 'g' {
				complain("%s has %q with score %s", key, x, score)
				continue
			}
			twin := "u" + second + "\x1f" + first
			if x[0] == 'u' {
				twin = "g" + second + "\x1f" + first
				at[first] = append(at[first], second)
			}
			if _, ok := fields[twin]; !ok {
				complain("%s has %q without its twin", key, x)
			}
		}
		want, g := map[string]string{"": strconv.Itoa(len(at))}, f.cfg.Layout.GroupOf(a)
		only, mem := make(map[string]int), keyspace.Memberships(g)
		for user, gateways := range at {
			for _, gw := range gateways {
				if _, ok := d[keyspace.Own(g, protocol.GatewayID(gw))][string(a)]; !ok {
					complain("room %s: %s is there on %s, which doesn't hold it", room, user, gw)
				}
				if memberships[mem] == nil {
					memberships[mem] = make(map[string]int)
				}
				memberships[mem][gw]++
				if there[gw] == nil {
					there[gw] = make(map[string]bool)
				}
				there[gw][room+"\x1f"+user] = true
			}
			if len(gateways) == 1 {
				only[gateways[0]]++
			}
		}
		for gw, n := range only {
			want[gw] = strconv.Itoa(n)
		}
		if counts := d[keyspace.MemberCounts(a)]; !maps.Equal(counts, want) {
			complain("room %s counts %v, want %v", room, counts, want)
		}
	}
	for _, name := range f.cfg.Layout.Groups() {
		key, want := keyspace.Memberships(name), make(map[string]string)
		for gw, n := range memberships[keyspace.Memberships(name)] {
			want[gw] = strconv.Itoa(n)
		}
		if !maps.Equal(d[key], want) && len(d[key])+len(want) > 0 {
			complain("%s counts %v, want %v", key, d[key], want)
		}
	}
	for _, g := range f.gateways {
		if g.cancel == nil {
			continue
		}
		n := 0
		for _, x := range g.registry.groups {
			for _, room := range x.holds.rooms() {
				for u := range x.holds.users(room) {
					n++
					k := room.Name() + "\x1f" + string(u)
					if !there[string(g.id)][k] {
						complain("%s has %s in %s, the registry doesn't know", g.id, u, room)
					}
					delete(there[string(g.id)], k)
				}
			}
		}
		for k := range there[string(g.id)] {
			complain("the registry says %q of %s, who isn't there", k, g.id)
		}
		if m := g.registry.Stats().Memberships; m != int64(n) {
			complain("%s has %d members and counts %d", g.id, n, m)
		}
	}
}

// enter has a user's connection join rooms.
func (g *gateway) enter(user string, rooms ...protocol.Address) {
	g.fleet.t.Helper()
	if err := g.tryEnter(user, rooms...); err != nil {
		g.fleet.t.Fatal(err)
	}
}

// tryEnter joins as a client does: again when Redis didn't answer in time.
func (g *gateway) tryEnter(user string, rooms ...protocol.Address) error {
	return gatewaytest.Poll(patience, func() error {
		standings := g.registry.Enter(context.Background(), protocol.UserID(user), rooms...)
		for i, s := range standings {
			if s.Err == nil {
				continue
			}
			for j := range standings {
				if standings[j].Err == nil {
					g.registry.Exit(protocol.UserID(user), rooms[j])
				}
			}
			return fmt.Errorf("%s enters %s: %w", user, rooms[i], s.Err)
		}
		return nil
	})
}

func (g *gateway) exit(user string, room protocol.Address) {
	g.registry.Exit(protocol.UserID(user), room)
}

// list reads all pages of a room, this many names each.
func (g *gateway) list(room protocol.Address, limit int) (users []string, count int, err error) {
	for after := protocol.UserID(""); ; {
		page, err := g.registry.Members(context.Background(), room, after, limit)
		if err != nil {
			return nil, 0, err
		}
		if len(page.Users) > limit || after != "" && page.Next != "" && page.Next <= after {
			return nil, 0, fmt.Errorf("a page of %d behind %q goes on at %q", len(page.Users), after, page.Next)
		}
		for _, u := range page.Users {
			users = append(users, string(u))
		}
		if count = page.Count; page.Next == "" {
			return users, count, nil
		}
		after = page.Next
	}
}

// wantMembers waits until every running gateway finds exactly these users in a room.
func (f *fleet) wantMembers(room protocol.Address, want ...string) {
	f.t.Helper()
	slices.Sort(want)
	for _, g := range f.gateways {
		if g.cancel == nil {
			continue
		}
		f.eventually(func() error {
			got, count, err := g.list(room, max(2, min(200, len(want)/5)))
			if err == nil && (!slices.Equal(got, want) || count != len(want)) {
				err = fmt.Errorf("%s finds %d in %s: %v, want %v", g.id, count, room, got, want)
			}
			return err
		})
	}
}

// Whoever was let in is in the list at once, once, on whichever gateways and however many connections; and is out with the last of them.
func TestAUserIsInARoomOnce(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		a.enter("bob", "r:lobby", "r:other")
		a.enter("alice", "r:lobby")
		got, count, err := b.list("r:lobby", 50)
		if err != nil || count != 2 || !slices.Equal(got, []string{"alice", "bob"}) {
			t.Errorf("just joined: %d, %v, %v", count, got, err)
		}
		a.enter("alice", "r:lobby")
		b.enter("alice", "r:lobby")
		b.enter("alice bob", "r:lobby") // sorts behind alice, and begins like her
		b.enter("alice ", "r:lobby")
		f.wantMembers("r:lobby", "alice", "alice ", "alice bob", "bob")
		f.wantMembers("r:other", "bob")
		a.exit("alice", "r:lobby")
		a.exit("alice", "r:lobby")
		f.wantMembers("r:lobby", "alice", "alice ", "alice bob", "bob")
		f.wantSound()
		b.exit("alice", "r:lobby")
		a.exit("bob", "r:lobby")
		f.wantMembers("r:lobby", "alice ", "alice bob")
		f.wantHolders("r:lobby", b)
		b.exit("alice ", "r:lobby")
		b.exit("alice bob", "r:lobby")
		f.wantMembers("r:lobby")
		f.wantMembers("r:other", "bob")
	})
}

// A user hops between three gateways a thousand times, and is never out of the room: he joins at the next before he leaves the last.
// Others do it the other way round, many at once. Nothing but who is there is left.
func TestAThousandHopsLeaveNoGhostMember(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, patient)
		all := []*gateway{f.gateway("a"), f.gateway("b"), f.gateway("c")}
		hops, hoppers := 1000, 8
		if r.Kind == gatewaytest.Embedded {
			hops = 300
		}
		all[0].enter("alice", "r:lobby")
		var last *gateway
		done := make(chan struct{})
		var looking, wg sync.WaitGroup
		looking.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					t.Logf("looked %d times", n)
					return
				default:
				}
				got, _, err := all[n%3].list("r:lobby", 3)
				if err == nil && !slices.Contains(got, "alice") {
					t.Errorf("alice was not there: %v", got)
					return
				}
			}
		})
		for i := range hoppers {
			user, at := fmt.Sprint("hopper", i), i%3
			if i == 0 {
				user, at = "alice", 0
			} else {
				all[at].enter(user, "r:lobby")
			}
			wg.Go(func() {
				for n := range hops {
					to := (at + 1 + n%2) % 3
					if i > 0 {
						all[at].exit(user, "r:lobby")
					}
					if err := all[to].tryEnter(user, "r:lobby"); err != nil {
						t.Error(err)
						return
					}
					if i == 0 {
						all[at].exit(user, "r:lobby")
					}
					at = to
				}
				if i > 0 {
					all[at].exit(user, "r:lobby")
				} else {
					last = all[at]
				}
			})
		}
		wg.Wait()
		close(done)
		looking.Wait()
		last.exit("alice", "r:lobby")
		f.wantMembers("r:lobby")
		f.wantHolders("r:lobby")
	})
}
