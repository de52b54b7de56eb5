//go:build !secondpass

package router

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// pairs are the epochs that were rolled over, newest first, as "epoch:top".
func (c *cluster) pairs(user protocol.UserID) []string {
	c.t.Helper()
	text, err := c.redis.Client().HGet(context.Background(), keyspace.Log(protocol.UserAddress(user)), "p").Result()
	if err != nil && err != redis.Nil {
		c.t.Fatal(err)
	}
	return strings.Fields(text)
}

// newLine gives every master another history, as a restart or a failover does.
func newLine(t *testing.T, r *gatewaytest.Redis) {
	t.Helper()
	masters, err := r.Masters()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range masters {
		if _, err := n.Do("DEBUG", "CHANGE-REPL-ID"); err != nil {
			t.Fatal(err)
		}
	}
}

// Redis is killed and started again with everything it had on disk. It can't know what it may have lost, so the epoch is another one.
// Offsets go on where they were, what is stored keeps its place, and a message known from before is still known. Bob, who stayed
// connected, sees the new epoch with the next message.
func TestEpochRollsWhenRedisIsRestarted(t *testing.T) {
	r := gatewaytest.StartRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	net := newCluster(t, r)
	a, b := net.gateway("a", prompt), net.gateway("b", prompt)
	bob := b.connect("bob")
	first := a.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
	a.send("alice", "bob", "m2", `2`).wantRouted(2, 1)
	bob.messages(2) // what is on its way dies with Redis

	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both gateways are back", func() bool {
		s := a.send("alice", "alice", newID("probe"), `0`)
		return s.answer().Err == nil && a.router.Listening() && b.router.Listening()
	})
	third := a.send("alice", "bob", "m3", `3`).wantRouted(3, 1)
	if third.Epoch == first.Epoch {
		t.Errorf("epoch %s lived through a restart of Redis", first.Epoch)
	}
	if got, want := net.pairs("bob"), []string{first.Epoch + ":2"}; !slices.Equal(got, want) {
		t.Errorf("rolled over: %v, want %v", got, want)
	}
	a.send("alice", "bob", "m1", `1`).wantAnswer(first)
	a.send("alice", "bob", "m1", `other`).wantCode(protocol.CodeConflict)
	got := bob.wantMessages(a, "m1@1", "m2@2", "m3@3")
	if got[1].Epoch != first.Epoch || got[2].Epoch != third.Epoch {
		t.Errorf("bob got the epochs %s and %s, want %s and %s", got[1].Epoch, got[2].Epoch, first.Epoch, third.Epoch)
	}
	net.wantStreamLen("bob", 4)
}

// The line changes twelve times. Offsets never go back, and the last eight epochs are remembered with their tops, the newest first.
func TestOffsetsGoOnOverEveryRoll(t *testing.T) {
	for _, kind := range realKinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := gatewaytest.Shared(t, kind)
			net := newCluster(t, r)
			a := net.gateway("a")
			var rolled []string
			seen := make(map[string]bool)
			for i := range 12 {
				one := a.send("alice", "bob", fmt.Sprintf("m%d.1", i), `1`).wantStored(uint64(2*i + 1))
				two := a.send("alice", "bob", fmt.Sprintf("m%d.2", i), `2`).wantStored(uint64(2*i + 2))
				if one.Epoch != two.Epoch || seen[one.Epoch] || len(one.Epoch) > 11 {
					t.Fatalf("epochs %s and %s on line %d", one.Epoch, two.Epoch, i)
				}
				seen[one.Epoch] = true
				rolled = append([]string{fmt.Sprintf("%s:%d", one.Epoch, two.Offset)}, rolled...)
				newLine(t, r)
			}
			if got, want := net.pairs("bob"), rolled[1:9]; !slices.Equal(got, want) {
				t.Errorf("rolled over: %v, want %v", got, want)
			}
			offsets, _ := net.stream("bob")
			wantNoHoles(t, "bob's stream", offsets, 1)

			// Who registers after a change rolls the epoch too, and what is sent then belongs to it.
			bob := a.connect("bob")
			if got := net.pairs("bob"); got[0] != rolled[0] || len(got) != 8 {
				t.Errorf("rolled over: %v, want %s first", got, rolled[0])
			}
			if bob.registered.Offset != 24 || seen[bob.registered.Epoch] {
				t.Errorf("bob registered at %s, want 24 in a new epoch", bob.registered)
			}
			if m := a.send("alice", "bob", "last", `0`).wantRouted(25, 1); m.Epoch != bob.registered.Epoch {
				t.Errorf("stored in epoch %s, bob registered in %s", m.Epoch, bob.registered.Epoch)
			}
		})
	}
}

// The line changes, and two gateways send at the same moment, each with a fresh epoch in its pocket. One of them rolls; both use what
// came of it. A repeat of what was stored before rolls nothing.
func TestTwoGatewaysAgreeOnTheNewEpoch(t *testing.T) {
	for _, kind := range realKinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := gatewaytest.Shared(t, kind)
			net := newCluster(t, r)
			a, b := net.gateway("a"), net.gateway("b")
			before := a.send("alice", "bob", "m1", `1`).wantStored(1)
			newLine(t, r)
			b.send("alice", "bob", "m1", `1`).wantAnswer(before)
			if got := net.pairs("bob"); len(got) != 0 {
				t.Errorf("a repeat rolled the epoch: %v", got)
			}
			var all []*sent
			var mu sync.Mutex
			var wg sync.WaitGroup
			for _, g := range []*gateway{a, b} {
				wg.Go(func() {
					for range 50 {
						s := g.send("carol", "bob", newID("c"), `0`)
						mu.Lock()
						all = append(all, s)
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			epochs := make(map[string]int)
			for _, s := range all {
				epochs[s.want(protocol.StatusStored).Epoch]++
			}
			if len(epochs) != 1 || epochs[before.Epoch] != 0 {
				t.Errorf("stored in the epochs %v, want one that is not %s", epochs, before.Epoch)
			}
			if got, want := net.pairs("bob"), []string{before.Epoch + ":1"}; !slices.Equal(got, want) {
				t.Errorf("rolled over: %v, want %v", got, want)
			}
		})
	}
}

// FLUSHALL: the log is gone, and what comes is a new one that begins at 1 in an epoch of its own. Bob stayed connected: a lower offset
// in another epoch is no duplicate.
func TestLogThatIsGoneBeginsAgainAtOne(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		var first Result
		for i := range 5 {
			first = a.send("alice", "bob", "m"+strconv.Itoa(i), `0`).wantRouted(uint64(i+1), 1)
		}
		bob.messages(5)
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		// The registry has forgotten bob too. A gateway registers again what it holds; here the test does.
		if err := r.Client().HSet(context.Background(), keyspace.Holders("u:bob"), string(b.id), 1).Err(); err != nil {
			t.Fatal(err)
		}
		again := a.send("alice", "bob", "m0", `0`).answer()
		if again.Err != nil || again.Offset != 1 || again.Epoch == first.Epoch {
			t.Errorf("after FLUSHALL: %s, want offset 1 in another epoch than %s", again.text(), first.Epoch)
		}
		last := bob.messages(6)[5]
		if last.Offset != 1 || last.Epoch != again.Epoch {
			t.Errorf("bob got %s, want offset 1 in epoch %s", last, again.Epoch)
		}
	})
}

// A log keeps the last messages, by number: Redis trims whole nodes of a hundred entries, so up to that many more.
func TestStreamIsTrimmedByNumber(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", func(s *settings) { s.router.Kept = 150 })
		a.fill("m", 700)
		offsets, _ := net.stream("bob")
		if len(offsets) < 150 || len(offsets) > 250 {
			t.Errorf("%d messages are kept, want 150 to 250", len(offsets))
		}
		wantNoHoles(t, "what is kept", offsets, uint64(700-len(offsets)+1))
		bob := a.connect("bob")
		if bob.registered.First != offsets[0] || bob.registered.Top != 700 {
			t.Errorf("bob registered at %s, kept is from %d on", bob.registered, offsets[0])
		}
	})
}

// What is older than the retention leaves the stream, once an hour at most, when something is sent.
func TestStreamIsTrimmedByAge(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		for name, tc := range map[string]struct{ old, young int }{
			"some are old":   {7, 5},
			"one is old":     {1, 11},
			"all but one":    {11, 1},
			"all are old":    {12, 0},
			"none is old":    {0, 12},
			"a hundred each": {100, 100},
		} {
			user := protocol.UserID(strings.ReplaceAll(name, " ", "-"))
			net := newCluster(t, r)
			a := net.gateway("a")
			net.seed(user, tc.old, 8*24*time.Hour, tc.young)
			top := uint64(tc.old + tc.young)

			// The last look was less than an hour ago: everything stays.
			h := net.head(user)
			h.extended = time.Now().Unix() - 3000
			net.setHead(user, h)
			a.send("alice", user, "early", `0`).wantStored(top + 1)
			net.wantStreamLen(user, int64(top+1))

			h = net.head(user)
			h.extended = time.Now().Unix() - 3700
			net.setHead(user, h)
			a.send("alice", user, "late", `0`).wantStored(top + 2)
			offsets, _ := net.stream(user)
			if len(offsets) != tc.young+2 {
				t.Errorf("%s: %v are kept, want the last %d", name, offsets, tc.young+2)
			}
			wantNoHoles(t, name, offsets, uint64(tc.old+1))
			if now := time.Now().Unix(); net.head(user).extended < now-60 {
				t.Errorf("%s: extended at %d, now is %d", name, net.head(user).extended, now)
			}
			a.stop()
		}
	})
}

// seed writes a log by hand: old entries and young ones.
func (c *cluster) seed(user protocol.UserID, old int, age time.Duration, young int) {
	c.t.Helper()
	ctx, now := context.Background(), time.Now()
	line := "none"
	if c.redis.Kind != gatewaytest.Embedded {
		g := c.gateway("seeder")
		g.send("seed", user, "seed", `0`).wantStored(1)
		line = c.head(user).line
		if err := c.redis.Client().Del(ctx, keyspace.Log(protocol.UserAddress(user)), keyspace.Stream(protocol.UserAddress(user))).Err(); err != nil {
			c.t.Fatal(err)
		}
		g.stop()
	}
	for i := range old + young {
		at := now.Add(-time.Hour)
		if i < old {
			at = now.Add(-age)
		}
		if err := c.redis.Client().XAdd(ctx, &redis.XAddArgs{
			Stream: keyspace.Stream(protocol.UserAddress(user)), ID: fmt.Sprintf("%d-%d", i+1, at.UnixMilli()+int64(i)),
			Values: []string{"1", `{"id":"seeded"`},
		}).Err(); err != nil {
			c.t.Fatal(err)
		}
	}
	c.setHead(user, head{epoch: "seeded", top: uint64(old + young), line: line, since: now.Unix(), extended: now.Unix(), cursor: "-"})
}

// Everything of an address that nobody uses any more expires by itself: the messages after the retention, the position after the
// longer time that positions are kept. Nothing expires earlier, whenever in the hour the last message came.
func TestUnusedLogsExpire(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a")
		wantTTL := func(story string, user protocol.UserID) {
			t.Helper()
			ctx, address := context.Background(), protocol.UserAddress(user)
			for key, least := range map[string]time.Duration{
				keyspace.Stream(address): a.router.cfg.Retention, keyspace.Log(address): a.router.cfg.LogTTL,
			} {
				ttl, err := r.Client().PTTL(ctx, key).Result()
				if err != nil || ttl < least-time.Minute || ttl > least+3*time.Hour {
					t.Errorf("%s: %s lives for %v (%v), want %v", story, key, ttl, err, least)
				}
			}
		}
		a.send("alice", "bob", "m1", `1`).wantStored(1)
		wantTTL("the first message", "bob")

		carol := a.connect("carol")
		a.send("alice", "carol", "m1", `1`).wantRouted(1, 1)
		wantTTL("the first message after a register", "carol")
		carol.leave(a)

		// 59 minutes ago the expiry was pushed out. The message of now must be kept for the retention all the same.
		h := net.head("bob")
		h.extended -= 59 * 60
		net.setHead("bob", h)
		for _, key := range []string{keyspace.Stream("u:bob"), keyspace.Log("u:bob")} {
			ttl := r.Client().PTTL(context.Background(), key).Val()
			if err := r.Client().PExpire(context.Background(), key, ttl-59*time.Minute).Err(); err != nil {
				t.Fatal(err)
			}
		}
		a.send("alice", "bob", "m2", `2`).wantStored(2)
		wantTTL("a message late in the hour", "bob")
	})
}
