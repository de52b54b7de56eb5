//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Redis stands still. Clients register, are told that it is unavailable, and go away. When Redis runs on it finds their
// registrations in its sockets and enters them, perhaps after their removals. In the end none of them is there.
func TestARegistrationThatTimedOutLeavesNothingBehind(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = 200 * time.Millisecond })
		a := f.gateway("a")
		stays := a.connect("alice", "")
		names := users(100)
		for range 3 {
			if err := r.Pause(); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for _, user := range names {
				wg.Go(func() {
					e := a.entry(user, "")
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					if _, err := a.registry.Register(ctx, e); !errors.Is(err, ErrUnavailable) {
						t.Errorf("%s: %v", user, err)
					}
					a.registry.Remove(e, End{Cause: "client_close"})
				})
			}
			wg.Wait()
			if err := r.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		f.wantSound()
		f.eventually(func() error {
			for _, user := range names {
				if fields := f.dump()[keyspace.Conns(protocol.UserID(user))]; len(fields) != 0 {
					return fmt.Errorf("%s is still there: %v", user, fields)
				}
			}
			return nil
		})
		f.wantAt("alice", stays)
		for user, all := range f.allEvents() {
			n := 0
			for _, e := range all {
				switch e["type"] {
				case "connect":
					n++
				case "disconnect":
					n--
				}
			}
			if want := map[bool]int{true: 1}[user == "alice"]; n != want {
				t.Errorf("%s: %d connects without a disconnect: %v", user, n, all)
			}
		}
	})
}

// The client stays and tries again with the same connection: it is entered once, whatever became of the first attempt.
func TestARegistrationThatTimedOutMayBeRepeated(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = 200 * time.Millisecond })
		a := f.gateway("a")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		e := a.entry("alice", "phone")
		if _, err := a.registry.Register(context.Background(), e); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("registered: %v", err)
		}
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		f.eventually(func() error {
			_, err := a.registry.Register(context.Background(), e)
			return err
		})
		a.register(e)
		f.wantAt("alice", e)
		f.wantStory("alice", "connect online")
	})
}

// stuck holds every call of one script until it is let go.
type stuck struct {
	script *redis.Script
	gate   chan struct{}
}

func (*stuck) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*stuck) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *stuck) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" && fmt.Sprint(cmd.Args()[1]) == s.script.Hash() {
			<-s.gate
		}
		return next(ctx, cmd)
	}
}

// A client hangs up while its registration is on the way. Its removal overtakes the registration, finds nothing, and is
// repeated when the registration is through.
func TestARemovalThatOvertakesItsRegistrationIsRepeated(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, func(c *Config) { c.Timeout = patience })
		f.client = f.ownClient("", "")
		a := f.gateway("a")
		a.disconnect(a.connect("warm", "")) // the scripts are loaded
		s := &stuck{a.registry.register, make(chan struct{})}
		f.client.AddHook(s)
		e := a.entry("alice", "")
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := a.registry.Register(ctx, e); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up with %v", err)
		}
		removed := a.registry.Stats().Removed
		a.registry.Remove(e, End{Cause: "client_close"})
		f.eventually(func() error {
			if a.registry.Stats().Removed == removed {
				return errors.New("the removal is not through")
			}
			return nil
		})
		close(s.gate)
		f.wantStory("alice", "connect online disconnect offline")
		f.wantSound()
		if n := a.registry.Stats().Held; n != 0 {
			t.Errorf("%d held", n)
		}
	})
}

// What waits behind a call that Redis doesn't answer is refused with it: nobody waits for the sum of all timeouts.
func TestRegistrationsBehindAFailedCallAreRefusedTogether(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 300 * time.Millisecond })
		a := f.gateway("a")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var wg sync.WaitGroup
		var all []*Entry
		for range 1000 { // 16 calls' worth
			all = append(all, a.entry("alice", ""))
		}
		for _, e := range all {
			wg.Go(func() {
				if _, err := a.registry.Register(context.Background(), e); !errors.Is(err, ErrUnavailable) {
					t.Errorf("registered: %v", err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(began); d > 10*f.cfg.Timeout { // of 16
			t.Errorf("the last was refused after %v", d)
		}
		if _, err := a.registry.Get(context.Background(), "alice"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("found: %v", err)
		}
		if _, err := a.registry.Holders(context.Background(), "u:alice"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("holders: %v", err)
		}
		if _, err := a.registry.Kick(context.Background(), "alice", Order{Code: protocol.CloseKicked, Reason: "kicked"}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("kicked: %v", err)
		}
		if _, _, _, err := a.registry.Cluster(context.Background()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("cluster: %v", err)
		}
		f.eventually(func() error {
			if a.registry.Reachable() {
				return errors.New("Redis is called reachable")
			}
			return nil
		})
		for _, e := range all {
			a.registry.Remove(e, End{Cause: "client_close"})
		}
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		f.eventually(func() error {
			if !a.registry.Reachable() {
				return errors.New("Redis is called unreachable")
			}
			return nil
		})
	})
}

// An entry that ended before it was registered is not entered later.
func TestRemovingWhatWasNeverRegisteredDoesNothing(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a := f.gateway("a")
		e := a.entry("alice", "")
		a.registry.Remove(e, End{Cause: "client_close"})
		a.registry.Remove(e, End{Cause: "again"})
		f.eventually(func() error {
			if n := a.registry.Stats().Removed; n != 1 {
				return fmt.Errorf("%d removals", n)
			}
			return nil
		})
		a.registry.Refresh(e)
		f.wantSound()
		if got := f.story("alice"); got != "" {
			t.Errorf("events: %s", got)
		}
		if n := a.registry.Stats().Held; n != 0 {
			t.Errorf("%d held", n)
		}
	})
}
