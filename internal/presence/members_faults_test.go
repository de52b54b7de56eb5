//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// enterMany has users join a room, as many at once as a storm of clients would.
func (g *gateway) enterMany(room protocol.Address, users []string) {
	g.fleet.t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, 512)
	for i := range errs {
		wg.Go(func() {
			for j := i; j < len(users) && errs[i] == nil; j += len(errs) {
				errs[i] = g.tryEnter(users[j], room)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		g.fleet.t.Fatal(err)
	}
}

func named(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s%05d", prefix, i)
	}
	return all
}

// commands tells what a function cost a Redis, by INFO commandstats.
func commands(t *testing.T, r *gatewaytest.Redis, what string, do func()) {
	t.Helper()
	ctx := context.Background()
	if r.Kind != gatewaytest.Standalone {
		do()
		return
	}
	if err := r.Client().ConfigResetStat(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	do()
	took := time.Since(began)
	text, err := r.Client().Info(ctx, "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	var used []string
	for _, m := range regexp.MustCompile(`cmdstat_(\S+):calls=(\d+),usec=(\d+)`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains([]string{"info", "client|setinfo", "hello", "config|resetstat"}, m[1]) {
			used = append(used, fmt.Sprintf("%s %s (%s us)", m[1], m[2], m[3]))
		}
	}
	slices.Sort(used)
	t.Logf("%s: %v; %s", what, took.Round(time.Millisecond), strings.Join(used, ", "))
}

// A room of 30,000 is read page by page while members come and go, on every page and between them. Who is there all the time is read
// once; nobody is read twice.
func TestALargeRoomIsReadWholeWhileMembersComeAndGo(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster}, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, patient, func(c *Config) { c.Timeout = patience })
		all := []*gateway{f.gateway("a"), f.gateway("b"), f.gateway("c")}
		stay, n := []string{}, 10_000
		if r.Kind == gatewaytest.Cluster {
			n = 1000
		}
		commands(t, r, fmt.Sprint(3*n, " joins"), func() {
			var wg sync.WaitGroup
			for i, g := range all {
				mine := named(fmt.Sprint("user", i), n)
				stay = append(stay, mine...)
				wg.Go(func() { g.enterMany("r:hall", mine) })
			}
			wg.Wait()
		})
		commands(t, r, fmt.Sprint("paging ", 3*n, " at rest"), func() {
			if got, count, err := all[0].list("r:hall", 200); err != nil || count != 3*n || !slices.Equal(got, stay) {
				t.Errorf("read %d of %d, %v", len(got), count, err)
			}
		})
		done := make(chan struct{})
		var churn sync.WaitGroup
		for i, g := range all {
			churn.Go(func() {
				dice := rand.New(rand.NewPCG(1, uint64(i)))
				for n := 0; ; n++ {
					select {
					case <-done:
						return
					default:
					}
					user := fmt.Sprintf("user%d%05d-%d", dice.IntN(3), dice.IntN(10_000), n)
					if err := g.tryEnter(user, "r:hall"); err != nil {
						t.Error(err)
						return
					}
					g.exit(user, "r:hall")
				}
			})
		}
		pages := 3
		commands(t, r, fmt.Sprint("paging ", 3*n, " three times while members come and go"), func() {
			for range pages {
				got, count, err := all[0].list("r:hall", 200)
				if err != nil {
					t.Error(err)
					break
				}
				if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
					t.Error("somebody was read twice, or out of order")
				}
				if count < 3*n {
					t.Errorf("count is %d", count)
				}
				seen := make(map[string]bool, len(got))
				for _, u := range got {
					seen[u] = true
				}
				for _, u := range stay {
					if !seen[u] {
						t.Errorf("%s was there all the time, and was not read", u)
						break
					}
				}
			}
		})
		close(done)
		churn.Wait()
	})
}

// Redis is emptied, with thousands of members in it. They are all there again.
func TestMembersAreThereAgainAfterFlushall(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		n := 2000
		if r.Kind != gatewaytest.Standalone {
			n = 300
		}
		a.enterMany("r:hall", named("user", n))
		b.enter("zoe", "r:hall", "r:small")
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.wantMembers("r:small", "zoe")
		f.wantMembers("r:hall", append(named("user", n), "zoe")...)
	})
}

// A failover lost the last word about members: a leave, or a leave and a join alike, so that the numbers agree. Both are mended.
func TestAGhostMemberIsTakenOut(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		a.enter("alice", "r:lobby")
		a.enter("bob", "r:lobby")
		g := a.registry.groups[f.cfg.Layout.GroupIndex("r:lobby")]
		// What the script did with a word that is not in the lists here any more.
		pretend := func(word, user string) {
			args := append(a.registry.holdArgs(g, a.id, ""), "r:lobby", word, user)
			if _, err := a.registry.run(context.Background(), a.registry.hold, appendHoldKeys(a.registry.holdKeys(g, a.id), "r:lobby"), args); err != nil {
				t.Fatal(err)
			}
		}
		pretend(wordHold, "ghost")
		f.wantMembers("r:lobby", "alice", "bob")
		pretend(wordLeave, "bob")
		f.wantMembers("r:lobby", "alice", "bob")
		a.stop()
		pretend(wordHold, "ghost")
		pretend(wordLeave, "bob")
		a.run()
		a.registry.refreshGroup(g) // as a new history line does
		f.wantMembers("r:lobby", "alice", "bob")
	})
}

// refusing has the next calls of one command fail, as a Redis does that is just being promoted.
type refusing struct {
	command string
	left    atomic.Int64
}

func (*refusing) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*refusing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (x *refusing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == x.command && x.left.Add(-1) >= 0 {
			err := errors.New("LOADING")
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

// A failover lost a leave and a join alike, and Redis doesn't answer when the names are compared. The numbers agree, so no pulse would ask
// for it again: it stays owed.
func TestAComparisonThatWasBrokenOffIsMadeUp(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	f.client = f.ownClient("", "")
	away := &refusing{command: "zrange"}
	f.client.AddHook(away)
	a := f.gateway("a")
	a.enter("alice", "r:lobby")
	a.enter("bob", "r:lobby")
	a.stop()
	g := a.registry.groups[f.cfg.Layout.GroupIndex("r:lobby")]
	for user, word := range map[string]string{"ghost": wordHold, "bob": wordLeave} {
		args := append(a.registry.holdArgs(g, a.id, ""), "r:lobby", word, user)
		if _, err := a.registry.run(context.Background(), a.registry.hold, appendHoldKeys(a.registry.holdKeys(g, a.id), "r:lobby"), args); err != nil {
			t.Fatal(err)
		}
	}
	away.left.Store(1)
	a.registry.holdAgain(g) // as a new history line does
	f.eventually(func() error {
		if away.left.Load() > 0 || g.reconciling.Load() {
			return errors.New("nothing was compared yet")
		}
		return nil
	})
	a.run()
	f.wantMembers("r:lobby", "alice", "bob")
}

// Who leaves is out at once: no pulse has to find it. So are all that a gateway has in a room when it lets it go, in as many calls as it takes.
func TestALeaveWaitsForNoPulse(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.prepare("a") // takes no pulse
		a.enter("alice", "r:lobby")
		a.enter("bob", "r:lobby")
		a.exit("bob", "r:lobby")
		want := func(room protocol.Address, users string) {
			t.Helper()
			f.eventually(func() error {
				for _, g := range a.registry.groups {
					g.holdings.release() // a busy Redis may not have answered in time, and then it waits for a pulse
				}
				got, count, err := a.list(room, 200)
				return errors.Join(err, wantText(fmt.Sprint(count, " ", got), users))
			})
		}
		want("r:lobby", "1 [alice]")
		a.enterMany("r:hall", named("user", 450))
		g := a.registry.groups[f.cfg.Layout.GroupIndex("r:hall")]
		g.holds.mu.Lock()
		delete(g.holds.all, "r:hall") // all at once, and only one word about it
		g.holds.mu.Unlock()
		g.heldAddresses.Add(-1)
		g.memberships.Add(-450)
		g.holdings.add(&holding{address: "r:hall"})
		want("r:hall", "0 []")
		f.wantHolders("r:hall")
	})
}

// Users join and leave on two gateways at once, in no order, and some give up before they are answered. What is left in the end is what
// is true.
func TestMembersMayOvertakeEachOther(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		rooms := []protocol.Address{"r:1", "r:2", "r:3"}
		var wg sync.WaitGroup
		for i := range 16 {
			g, dice := []*gateway{a, b}[i%2], rand.New(rand.NewPCG(1, uint64(i)))
			wg.Go(func() {
				for range 60 {
					room, user := rooms[dice.IntN(len(rooms))], protocol.UserID(fmt.Sprint("user", dice.IntN(5)))
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(dice.IntN(40))*time.Millisecond)
					entered := g.registry.Enter(ctx, user, room)[0]
					cancel()
					if entered.Err == nil {
						g.registry.Exit(user, room)
					}
				}
			})
		}
		wg.Wait()
		a.enter("user1", "r:2")
		f.wantSound()
		f.wantMembers("r:1")
		f.wantMembers("r:2", "user1")
	})
}

// Redis doesn't answer. Who joins is refused and leaves no trace, who leaves is out when Redis is back, and nobody can say who is there.
func TestMembersWhileRedisIsAway(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster}, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 200 * time.Millisecond })
		a := f.gateway("a")
		a.enter("alice", "r:lobby")
		a.enter("bob", "r:lobby")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		a.exit("alice", "r:lobby")
		if s := a.registry.Enter(context.Background(), "carol", "r:lobby")[0]; !isUnavailable(s.Err) {
			t.Errorf("a join was answered %+v", s)
		}
		if _, err := a.registry.Members(context.Background(), "r:lobby", "", 50); !isUnavailable(err) {
			t.Errorf("asked for the members: %v", err)
		}
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		f.wantMembers("r:lobby", "bob")
	})
}

// A page that ends among the dead goes on behind the last user of whom nothing can follow.
func TestAPageEndsBehindWhoIsWhole(t *testing.T) {
	for name, c := range map[string]struct {
		found []string
		page  []protocol.UserID
		want  protocol.UserID
	}{
		"the last is on the page":    {[]string{"ua\x1fg1", "ub\x1fg1"}, []protocol.UserID{"a", "b"}, "b"},
		"the last is dead so far":    {[]string{"ua\x1fg1", "ub\x1fg1", "ub\x1fg2"}, []protocol.UserID{"a"}, "a"},
		"nobody is on the page":      {[]string{"ua\x1fg1", "ub\x1fg1"}, nil, "a"},
		"all that was read is one":   {[]string{"ub\x1fg1", "ub\x1fg2"}, nil, "b"},
		"one, and he is on the page": {[]string{"ub\x1fg1"}, []protocol.UserID{"b"}, "b"},
	} {
		if got := lastWhole(c.found, c.page); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
