//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// A gateway dies with thousands of members. From the end of its lease on they are not there, neither by name nor by number, long before
// they are reaped; who is on another gateway too stays. Then nothing of them is left.
func TestMembersOfAKilledGatewayAreGone(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ReapAfter, c.Timeout = time.Hour, 2*time.Second }) // nobody reaps yet
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
		small := []string{"zoe"}
		f.eventually(func() error { // where a pulse is late nobody is judged for a while, and who died is among those who are pushed
			user := fmt.Sprint("user", len(small))
			b.enter(user, "r:small")
			if small = append([]string{user}, small...); membersHeard(t, heard, "r:small", " +"+user) != len(small) {
				return errors.New("the dead are counted")
			}
			return nil
		})
		if err := f.reaped(dying); err == nil {
			t.Error("it was reaped already: nothing was seen")
		}
		f.gateway("reaper", func(c *Config) { c.ReapAfter = 300 * time.Millisecond })
		commands(t, r, fmt.Sprint("until ", n, " were reaped"), func() {
			f.eventually(func() error { return f.reaped(dying) })
		})
		f.wantMembers("r:hall", "alice", "both", "dying03999x", "zoe")
		f.wantMembers("r:small", small...)
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
