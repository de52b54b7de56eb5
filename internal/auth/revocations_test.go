package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// A list is one gateway's Revocations, reading for itself.
type list struct {
	*Revocations
	changes atomic.Int64
	stop    func()
}

func startList(t *testing.T, r *gatewaytest.Redis, tune ...func(*RevocationsConfig)) *list {
	t.Helper()
	l := new(list)
	cfg := DefaultRevocationsConfig()
	cfg.Layout = keyspace.Layout{Sharded: r.Kind == gatewaytest.Cluster}
	cfg.Every, cfg.Timeout, cfg.Log = 20*time.Millisecond, 5*time.Second, slog.New(slog.DiscardHandler)
	cfg.OnChange = func() { l.changes.Add(1) }
	for _, f := range tune {
		f(&cfg)
	}
	l.Revocations = NewRevocations(r.Client(), cfg)
	l.start(t)
	return l
}

// start has it read until stop, or the end of the test.
func (l *list) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = l.Run(ctx) })
	l.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(l.stop)
}

func emptied(t *testing.T, r *gatewaytest.Redis) *gatewaytest.Redis {
	t.Helper()
	if err := r.FlushAll(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (l *list) revoke(t *testing.T, all ...Revocation) {
	t.Helper()
	if err := l.Revoke(context.Background(), all...); err != nil {
		t.Fatal(err)
	}
}

// wants waits until the list says this of a token.
func (l *list) wants(t *testing.T, id Identity, want error) {
	t.Helper()
	eventually(t, func() error {
		err := l.Check(&id)
		if err == nil != (want == nil) || errors.Is(err, ErrUnavailable) {
			return fmt.Errorf("%+v: %v, want %v", id, err, want)
		}
		return nil
	})
}

var revoked = &Refusal{Reason: ReasonRevoked}

func of(user, id string, issued int64) Identity {
	return Identity{User: protocol.UserID(user), TokenID: id, IssuedAt: issued}
}

// What one gateway revokes, another knows without a word being published: it reads.
func TestWhatIsRevokedIsKnownEverywhere(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		emptied(t, r)
		a, b := startList(t, r), startList(t, r)
		at := time.Now().Unix()
		for _, l := range []*list{a, b} {
			l.wants(t, of("alice", "t-1", at-10), nil)
		}
		a.revoke(t, Revocation{User: "alice"}, Revocation{TokenID: "t-9"}, Revocation{User: "carol", Before: time.Unix(at-100, 0)})
		for _, l := range []*list{a, b} {
			l.wants(t, of("alice", "t-1", at-10), revoked)
			l.wants(t, of("alice", "", at+60), nil) // issued anew
			l.wants(t, of("bob", "t-1", at-10), nil)
			l.wants(t, of("bob", "t-9", at+60), revoked) // by its id, whenever it was issued
			l.wants(t, of("carol", "", at-100), revoked)
			l.wants(t, of("carol", "", at-99), nil)
			l.wants(t, of("t-9", "alice", at-10), nil)
		}
		// Never less than before.
		a.revoke(t, Revocation{User: "alice", Before: time.Unix(at-1000, 0)})
		b.wants(t, of("alice", "", at-10), revoked)
		a.revoke(t, Revocation{All: true, Before: time.Unix(at-50, 0)})
		for _, l := range []*list{a, b} {
			l.wants(t, of("bob", "", at-50), revoked)
			l.wants(t, of("bob", "", at-49), nil)
		}
		if a.changes.Load() == 0 || b.changes.Load() == 0 || b.Stats().Held != 4 {
			t.Errorf("changes %d and %d, held %d", a.changes.Load(), b.changes.Load(), b.Stats().Held)
		}
		// One that starts later reads them all before it lets anyone in.
		startList(t, r).wants(t, of("alice", "", at-10), revoked)
	})
}

func TestNobodyIsLetInBeforeTheRevocationsAreRead(t *testing.T) {
	l := NewRevocations(gatewaytest.Shared(t, gatewaytest.Embedded).Client(), DefaultRevocationsConfig())
	id := of("alice", "", 1)
	wantUnavailable(t, l.Check(&id))
}

// Redis forgets. What any gateway still knows is entered again, once.
func TestWhatRedisLosesIsEnteredAgain(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		emptied(t, r)
		a, b := startList(t, r), startList(t, r)
		at := time.Now().Unix()
		many := make([]Revocation, 1700) // more than one page, and more than is restored at once
		for i := range many {
			many[i] = Revocation{User: protocol.UserID(fmt.Sprint("u", i))}
		}
		a.revoke(t, many...)
		a.revoke(t, Revocation{All: true, Before: time.Unix(at-500, 0)})
		for _, l := range []*list{a, b} {
			l.wants(t, of("u1699", "", at-10), revoked)
			l.wants(t, of("x", "", at-500), revoked)
		}
		emptied(t, r)
		// What is revoked at once after that makes a history of its own.
		b.revoke(t, Revocation{TokenID: "later"})
		eventually(t, func() error {
			if n := entries(t, r, a); n != 1702 {
				return fmt.Errorf("%d entries in Redis", n)
			}
			return nil
		})
		a.stop()
		b.stop()
		c := startList(t, r)
		for _, id := range []Identity{of("u0", "", at-10), of("u1699", "", at-10), of("x", "", at-500), of("x", "later", at+9)} {
			c.wants(t, id, revoked)
		}
		c.wants(t, of("x", "", at-499), nil)
	})
}

// entries counts names in Redis, and checks that both keys have the same and end some day.
func entries(t *testing.T, r *gatewaytest.Redis, l *list) int64 {
	t.Helper()
	ctx := context.Background()
	keys := l.keys()
	pipe := r.Client().TxPipeline()
	names, fields := pipe.ZCard(ctx, keys[1]), pipe.HLen(ctx, keys[0])
	if _, err := pipe.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	n := names.Val()
	if n > 0 && fields.Val() != n+1 {
		t.Errorf("%d names and %d fields", n, fields.Val())
	}
	for _, key := range keys {
		if ttl := r.Client().PTTL(ctx, key).Val(); n > 0 && (ttl <= 0 || ttl > l.cfg.Kept) {
			t.Errorf("%s ends in %v", key, ttl)
		}
	}
	return n
}

// A reader that is told the same number by another epoch, or a number it has passed, begins anew. Here the history goes back, as after
// a failover that lost a tail.
func TestAHistoryThatWentBackIsNoticed(t *testing.T) {
	r := emptied(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	a := startList(t, r)
	at := time.Now().Unix()
	a.revoke(t, Revocation{User: "alice"}, Revocation{User: "bob"})
	a.wants(t, of("bob", "", at-10), revoked)
	ctx, keys := context.Background(), a.keys()
	head, err := r.Client().HGet(ctx, keys[0], " ").Result()
	if err != nil {
		t.Fatal(err)
	}
	pipe := r.Client().TxPipeline()
	pipe.HDel(ctx, keys[0], "u:bob")
	pipe.ZRem(ctx, keys[1], "u:bob")
	pipe.HSet(ctx, keys[0], " ", head[:len(head)-1]+"1")
	if _, err := pipe.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if ok := r.Client().HExists(ctx, keys[0], "u:bob").Val(); !ok {
			return errors.New("bob is not entered again")
		}
		return nil
	})
}

// The bound holds by saying no, never by forgetting.
func TestTooManyRevocationsAreRefused(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		emptied(t, r)
		l := startList(t, r, func(c *RevocationsConfig) { c.Most, c.Kept = 3, time.Hour })
		l.revoke(t, Revocation{User: "a"}, Revocation{User: "b"})
		if err := l.Revoke(context.Background(), Revocation{User: "c"}, Revocation{User: "d"}); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth: %v", err)
		}
		if n := entries(t, r, l); n != 2 {
			t.Errorf("%d entries, want all or none", n)
		}
		l.revoke(t, Revocation{User: "c"}, Revocation{User: "a"}, Revocation{User: "a"}) // known names need no room
		if err := l.Revoke(context.Background(), Revocation{TokenID: "x"}); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth: %v", err)
		}
		// The way out of it is always open.
		l.revoke(t, Revocation{All: true, Before: time.Unix(1, 0)})
		if n := entries(t, r, l); n != 4 {
			t.Errorf("%d entries, want everybody as well", n)
		}
		// Those that are over make room.
		if err := l.enter(context.Background(), l.cfg.Most, []any{"u:a", 1, 1, "u:b", 1, 1}); err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		r.Client().HSet(ctx, l.keys()[0], "u:b", "1 1 99", "u:c", "1 1 99")
		l.revoke(t, Revocation{TokenID: "x"})
		if n := entries(t, r, l); n != 3 || r.Client().HExists(ctx, l.keys()[0], "u:b").Val() {
			t.Errorf("%d entries, and the one that was over is there: %v", n, r.Client().HExists(ctx, l.keys()[0], "u:b").Val())
		}
	})
}

// What was accepted once has room for ever, or until it is over: Redis forgets it, and meanwhile as many others are revoked as there may be.
func TestWhatRedisLosesIsEnteredAgainIntoAFullList(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		emptied(t, r)
		few := func(c *RevocationsConfig) { c.Most = 3 }
		l := startList(t, r, few)
		at := time.Now().Unix()
		l.revoke(t, Revocation{User: "a"}, Revocation{User: "b"}, Revocation{TokenID: "c"})
		l.wants(t, of("a", "", at-10), revoked)
		l.stop()
		emptied(t, r)
		// Nobody reads now, so nobody enters them again before the list is full.
		cfg := DefaultRevocationsConfig()
		cfg.Layout, cfg.Most, cfg.Timeout = l.cfg.Layout, 3, 5*time.Second
		other := NewRevocations(r.Client(), cfg)
		if err := other.Revoke(context.Background(), Revocation{User: "x"}, Revocation{User: "y"}, Revocation{User: "z"}); err != nil {
			t.Fatal(err)
		}
		l.start(t)
		eventually(t, func() error {
			if n := entries(t, r, l); n != 6 {
				return fmt.Errorf("%d entries in Redis, want all six", n)
			}
			return nil
		})
		if err := l.Revoke(context.Background(), Revocation{User: "d"}); !errors.Is(err, ErrFull) {
			t.Errorf("a seventh: %v", err)
		}
		last := startList(t, r, few)
		for _, id := range []Identity{of("a", "", at-10), of("b", "", at-10), of("n", "c", at+9), of("x", "", at-10)} {
			last.wants(t, id, revoked)
		}
	})
}

// Who revokes may think that tokens live for a minute, where gateways take those of an hour. They keep what they read as long as they need it.
func TestARevocationIsKeptAsLongAsTheGatewaysNeedIt(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		emptied(t, r)
		l := startList(t, r)
		at := time.Now().Unix()
		command := DefaultRevocationsConfig()
		command.Layout, command.Timeout, command.Kept = l.cfg.Layout, 5*time.Second, time.Minute
		short := NewRevocations(r.Client(), command)
		long := Revocation{User: "old", Before: time.Unix(at-100, 0)}
		if err := short.Revoke(context.Background(), Revocation{User: "alice"}, Revocation{TokenID: "t"}, long, Revocation{All: true, Before: time.Unix(1, 0)}); err != nil {
			t.Fatal(err)
		}
		for name, before := range map[string]int64{"u:alice": at, "t:t": at, "u:old": at - 100} {
			eventually(t, func() error {
				v := r.Client().HGet(context.Background(), l.keys()[0], name).Val()
				var from, till, number int64
				if _, err := fmt.Sscan(v, &from, &till, &number); err != nil {
					return fmt.Errorf("%s is %q: %w", name, v, err)
				}
				if till < before*1000+l.cfg.Kept.Milliseconds() {
					return fmt.Errorf("%s ends %v after what it hits was issued", name, time.Duration(till-from*1000)*time.Millisecond)
				}
				return nil
			})
		}
		// What hits only tokens that are over already needs no more.
		if v := r.Client().HGet(context.Background(), l.keys()[0], "a:").Val(); v != "" {
			var from, till, number int64
			if _, err := fmt.Sscan(v, &from, &till, &number); err != nil || till > (at+120)*1000 {
				t.Errorf("everybody is %q, %v", v, err)
			}
		}
		for _, key := range l.keys() {
			if left := r.Client().PTTL(context.Background(), key).Val(); left < l.cfg.Kept-time.Hour {
				t.Errorf("%s is kept for %v more", key, left)
			}
		}
		// Once: another gateway finds it there.
		head := r.Client().HGet(context.Background(), l.keys()[0], " ").Val()
		startList(t, r).wants(t, of("alice", "", at-10), revoked)
		if now := r.Client().HGet(context.Background(), l.keys()[0], " ").Val(); now != head {
			t.Errorf("the head went on from %q to %q", head, now)
		}
	})
}

// A client that did not get the answer asks again: nothing changes, and no reader is troubled.
func TestRevokingTwiceChangesNothing(t *testing.T) {
	r := emptied(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	l := startList(t, r)
	for range 2 {
		if err := l.enter(context.Background(), l.cfg.Most, []any{"u:a", 5, 99999999999999}); err != nil {
			t.Fatal(err)
		}
	}
	head := r.Client().HGet(context.Background(), l.keys()[0], " ").Val()
	if head[len(head)-2:] != " 1" {
		t.Errorf("the head is %q, want number 1", head)
	}
}

func TestTheCopyForgetsWhatIsOver(t *testing.T) {
	l := NewRevocations(nil, DefaultRevocationsConfig())
	l.learn("u:a", hit{before: 10, till: 1000})
	l.learn("u:b", hit{before: 10, till: 3000})
	l.prune(2000)
	if n := l.Stats().Held; n != 1 {
		t.Errorf("%d held", n)
	}
}

func TestARevocationSaysExactlyWhat(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Embedded)
	l := startList(t, r)
	for name, bad := range map[string]Revocation{
		"nothing":      {},
		"two things":   {User: "a", TokenID: "b"},
		"user and all": {User: "a", All: true},
		"no user id":   {User: "a\x1fb"},
		"no token id":  {TokenID: "a\n"},
		"the future":   {All: true, Before: time.Now().Add(time.Hour)},
		"before 1970":  {All: true, Before: time.Unix(-5, 0)},
	} {
		if err := l.Revoke(context.Background(), bad); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// While Redis is away what was known goes on, and to revoke is refused rather than forgotten.
func TestRevocationsOutliveRedis(t *testing.T) {
	r := gatewaytest.StartRedis(t)
	l := startList(t, r, func(c *RevocationsConfig) { c.Timeout = 300 * time.Millisecond })
	at := time.Now().Unix()
	l.revoke(t, Revocation{User: "alice"})
	l.wants(t, of("alice", "", at-10), revoked)
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := l.Revoke(context.Background(), Revocation{User: "bob"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("revoked without Redis: %v", err)
	}
	l.wants(t, of("alice", "", at-10), revoked)
	l.wants(t, of("bob", "", at-10), nil)
	if err := r.Restart(); err != nil {
		t.Fatal(err)
	}
	startList(t, r).wants(t, of("alice", "", at-10), revoked)
}

// A command with other settings than the gateways' keeps its own revocation as long as it thinks, and everybody else's as long as they must be.
func TestNobodyCutsTheLifeOfAnothersRevocation(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		emptied(t, r)
		long := startList(t, r)
		long.revoke(t, Revocation{User: "alice"})
		short := startList(t, r, func(c *RevocationsConfig) { c.Kept = 300 * time.Millisecond })
		short.revoke(t, Revocation{User: "bob"})
		for _, key := range long.keys() {
			if left := r.Client().PTTL(context.Background(), key).Val(); left < time.Hour {
				t.Errorf("%s is kept for %v more", key, left)
			}
		}
		// Nor does he who enters again what is kept for longer than he would. He can only enter what he has heard of.
		long.wants(t, of("alice", "", time.Now().Unix()-10), revoked)
		emptied(t, r)
		eventually(t, func() error {
			for _, key := range long.keys() {
				if left := r.Client().PTTL(context.Background(), key).Val(); left < time.Hour {
					return fmt.Errorf("%s is kept for %v more", key, left)
				}
			}
			return nil
		})
	})
}
