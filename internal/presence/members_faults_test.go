//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	"chatgate/internal/keyspace"
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
		f := newFleet(t, r, func(c *Config) { c.Timeout = patience })
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

// A gateway dies with thousands of members. From the end of its lease on they are not there, neither by name nor by number, long before
// they are reaped; who is on another gateway too stays. Then nothing of them is left.
func TestMembersOfAKilledGatewayAreGone(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ReapAfter, c.Timeout = 3*time.Second, 2*time.Second })
		a, b, dying := f.gateway("a"), f.gateway("b"), f.gateway("dying")
		n := 8000 // more than one page reads through
		if r.Kind != gatewaytest.Standalone {
			n = 500
		}
		dying.enterMany("r:hall", named("dying", n))
		dying.enter("both", "r:hall", "r:small")
		dying.enter("dying03999x", "r:hall") // among the dead
		a.enter("both", "r:hall")
		b.enter("dying03999x", "r:hall")
		a.enter("alice", "r:hall")
		b.enter("zoe", "r:hall")
		heard := f.hear(b, "r:small")
		b.enter("zoe", "r:small")
		wantMembersHeard(t, heard, "r:small", 2, " +zoe")
		dying.stop()
		f.wantMembers("r:hall", "alice", "both", "dying03999x", "zoe")
		f.wantMembers("r:small", "zoe")
		b.enter("alice", "r:small")
		wantMembersHeard(t, heard, "r:small", 2, " +alice")
		if err := f.reaped(dying); err == nil {
			t.Error("it was reaped already: nothing was seen")
		}
		commands(t, r, fmt.Sprint("until ", n, " were reaped"), func() {
			f.eventually(func() error { return f.reaped(dying) })
		})
		f.wantMembers("r:hall", "alice", "both", "dying03999x", "zoe")
		f.wantMembers("r:small", "alice", "zoe")
		f.wantHolders("r:small", b)
	})
}

// A gateway is paused so long that a survivor begins to reap it, and runs on in the middle of that. It notices that some of its members
// are gone, although it holds the room still, and says who they are.
func TestAGatewayReapedInPartHasItsMembersAgain(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		paused, reaper := f.gateway("paused"), f.prepare("reaper")
		paused.enterMany("r:hall", named("user", 500))
		reaper.enter("zoe", "r:hall")
		paused.stop()
		ctx, g := context.Background(), reaper.registry.groups[f.cfg.Layout.GroupIndex("r:hall")]
		left := func() int64 {
			return f.client.ZLexCount(ctx, keyspace.Members("r:hall"), "[g"+string(paused.id)+"\x1f", "(g"+string(paused.id)+" ").Val()
		}
		f.eventually(func() error {
			if _, err := reaper.registry.pulseOnce(ctx, g, ""); err != nil {
				return err
			}
			reaper.registry.reapHolds(ctx, g, paused.id, []protocol.Address{"r:hall"})
			if n := left(); n == 500 {
				return errors.New("it may not be judged yet")
			}
			return nil
		})
		if n := left(); n != 300 {
			t.Errorf("one call left %d of 500", n)
		}
		f.eventually(func() error {
			_, err1 := reaper.registry.pulseOnce(ctx, g, "") // who doesn't hear of Redis judges nobody
			got, count, err2 := reaper.list("r:hall", 200)
			return errors.Join(err1, err2, wantText(fmt.Sprint(count, " ", got), "1 [zoe]"))
		})
		if err := paused.registry.Join(ctx); err != nil { // the reaper must not go on with it
			t.Fatal(err)
		}
		paused.run()
		reaper.run()
		f.wantMembers("r:hall", append(named("user", 500), "zoe")...)
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

// asked notes which commands go to Redis.
type asked struct {
	mu    sync.Mutex
	names map[string]bool // guarded by mu
}

func (*asked) DialHook(next redis.DialHook) redis.DialHook { return next }

func (x *asked) note(cmds ...redis.Cmder) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range cmds {
		x.names[c.Name()] = true
	}
}

func (x *asked) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		x.note(cmds...)
		return next(ctx, cmds)
	}
}

func (x *asked) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		x.note(cmd)
		return next(ctx, cmd)
	}
}

// A gateway dies that had connections, members of a full room, members of many small ones, and watches. Nothing of it stays, those who
// live keep theirs, and nobody searches all keys for it.
func TestADeadGatewayIsReapedWhole(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		b := f.gateway("b")
		f.client = f.ownClient("", "")
		used := &asked{names: make(map[string]bool)}
		f.client.AddHook(used)
		a := f.gateway("a")
		b.connectMany(users(20)...)
		b.enterMany("r:hall", named("user", 450)) // more than one call takes out
		watches := []protocol.Address{}
		for i := range 30 {
			b.enter("bob", protocol.RoomAddress(protocol.RoomID(fmt.Sprint("small", i))))
			watches = append(watches, protocol.WatchAddress(protocol.UserID(fmt.Sprint("user", i))))
		}
		b.hold(watches...)
		a.enter("alice", "r:hall")
		a.enter("bob", "r:small1")
		a.hold(watches[0])
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		f.wantSound()
		f.wantMembers("r:hall", "alice")
		f.wantMembers("r:small0")
		f.wantMembers("r:small1", "bob")
		f.wantHolders(watches[0], a)
		f.wantHolders(watches[1])
		used.mu.Lock()
		defer used.mu.Unlock()
		if used.names["scan"] || used.names["keys"] || !used.names["hscan"] {
			t.Errorf("reaping asked for %v", slices.Sorted(maps.Keys(used.names)))
		}
	})
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

// hear collects what a gateway is told of a room.
func (f *fleet) hear(g *gateway, room protocol.Address) <-chan string {
	f.t.Helper()
	user := "user"
	for i := 0; f.group(user) != f.cfg.Layout.GroupOf(room); i++ {
		user = fmt.Sprint("user", i)
	}
	return f.listen(g, user)
}

// wantMembersHeard wants this to be the next word: how many are in a room, and who joined and left it.
func wantMembersHeard(t *testing.T, heard <-chan string, room protocol.Address, count int, changes string) {
	t.Helper()
	kind, body, err := protocol.OpenEnvelope(next(t, heard))
	if err != nil || kind != protocol.EnvelopeMembers {
		t.Fatalf("heard %q, %v", kind, err)
	}
	m, err := protocol.OpenMembers(body)
	if got := strings.ReplaceAll(m.Changes, "\n", " "); err != nil || protocol.RoomAddress(m.Room) != room || m.Count != count || got != changes {
		t.Fatalf("heard of %s: %d,%s, %v; want %d,%s", m.Room, m.Count, got, err, count, changes)
	}
}

// Each gateway that holds a room is told who joined it and who left, with the number that are there, and nobody else is; nothing is said
// of a user's second connection or gateway. Where many leave at once, or a room is larger than agreed, names are not said, or nothing.
func TestHoldersAreToldOfMembers(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.MemberPushes = 200 })
		a, b, c := f.gateway("a"), f.gateway("b"), f.gateway("c")
		room := protocol.Address("r:lobby")
		heard, elsewhere := f.hear(a, room), f.hear(c, room)
		want := func(count int, changes string) {
			t.Helper()
			wantMembersHeard(t, heard, room, count, changes)
		}
		a.enter("alice", room)
		want(1, " +alice")
		b.enter("bob", room)
		want(2, " +bob")
		b.enter("bob", room)
		a.enter("bob", room)
		b.exit("bob", room)
		a.exit("bob", room)
		b.exit("bob", room)
		want(1, " -bob")

		// b dies with 150, who are not counted any more from then on.
		for _, u := range named("user", 150) {
			b.enter(u, room)
		}
		for i, u := range named("user", 150) {
			want(i+2, " +"+u)
		}
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		want(1, "")

		// The one that makes the room too large is said, the next is not, until it is small again.
		for i, u := range named("more", 200) {
			a.enter(u, room)
			want(i+2, " +"+u)
		}
		a.enter("unsaid", room)
		a.exit("unsaid", room)
		f.wantMembers(room, append(named("more", 200), "alice")...) // or both would be said at once
		a.exit("more00000", room)
		want(200, " -more00000")
		if len(elsewhere) > 0 {
			t.Errorf("a gateway that doesn't hold the room heard %q", <-elsewhere)
		}
	})
}

// An operator wants none of it, and nothing is published.
func TestNobodyIsToldOfMembersWhenThatIsOff(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.MemberPushes = 0 })
		a := f.gateway("a")
		room := protocol.Address("r:lobby")
		heard := f.hear(a, room)
		a.enter("alice", room)
		a.exit("alice", room)
		f.wantMembers(room)
		if err := f.client.Publish(context.Background(), "x", "x").Err(); err != nil { // behind whatever the script said
			t.Fatal(err)
		}
		f.throughout(50*time.Millisecond, func() error {
			if len(heard) > 0 {
				return fmt.Errorf("heard %q", <-heard)
			}
			return nil
		})
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
