//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
)

// A gateway that leaves gives its lease back with everything else, though its pulses go on until it ends.
func TestAGatewayThatLeftIsGone(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a, b := f.gateway("a"), f.gateway("b", func(c *Config) { c.Pulse = 20 * time.Millisecond })
		for _, e := range b.connectMany(users(100)...) {
			b.disconnect(e)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := b.registry.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		now := time.Now().UnixMilli()
		for key, fields := range f.dump() {
			if _, conns := addressOf(key, "c", "u:"); conns || strings.HasSuffix(key, ":own:"+string(b.id)) {
				t.Errorf("%s is left", key)
			}
			if end, _ := strconv.ParseInt(fields[string(b.id)], 10, 64); strings.HasSuffix(key, "}:lease") && end > now {
				t.Errorf("%s runs on for %d ms", key, end-now)
			}
		}
		f.throughout(300*time.Millisecond, func() error {
			for _, g := range f.cfg.Layout.Groups() {
				if end, err := f.client.ZScore(ctx, keyspace.Leases(g), string(b.id)).Result(); err == nil && int64(end) > now {
					return fmt.Errorf("it took a lease again, of %s, until %v", g, end)
				}
			}
			return nil
		})
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		if n := a.registry.Stats().Reaped; n != 0 {
			t.Errorf("%d connections were left to be reaped", n)
		}
	})
}

// slow delays every call of one script.
type slow struct {
	script *redis.Script
	by     time.Duration
}

func (*slow) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*slow) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *slow) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" && fmt.Sprint(cmd.Args()[1]) == s.script.Hash() {
			<-time.After(s.by)
		}
		return next(ctx, cmd)
	}
}

// Removals that are on their way to Redis count as undone.
func TestLeavingWaitsForRemovalsUnderWay(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		f.client = f.ownClient("", "")
		a := f.gateway("a")
		f.client.AddHook(&slow{a.registry.remove, 300 * time.Millisecond})
		a.disconnect(a.connect("alice", ""))
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := a.registry.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		if fields := f.dump()[keyspace.Conns("alice")]; len(fields) != 0 {
			t.Errorf("left behind: %v", fields)
		}
		a.stop()
	})
}

// A gateway that can't say goodbye doesn't hang.
func TestLeavingGivesUpWhenRedisIsAway(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 100 * time.Millisecond })
		a := f.gateway("a")
		e := a.connect("alice", "")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		a.disconnect(e)
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		if err := a.registry.Leave(ctx); err == nil {
			t.Error("left without a word")
		}
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
	})
}

// Redis is away for a moment just when a gateway leaves, with nothing left to remove. It says goodbye as soon as it is heard.
func TestLeavingWaitsForARedisThatComesBack(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.Timeout = 100 * time.Millisecond })
		a, b := f.gateway("a"), f.gateway("b")
		if err := r.Pause(); err != nil {
			t.Fatal(err)
		}
		left := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			left <- b.registry.Leave(ctx)
		}()
		f.outlast(300 * time.Millisecond)
		if err := r.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := <-left; err != nil {
			t.Errorf("left: %v", err)
		}
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		f.wantAt("alice", a.connect("alice", ""))
	})
}

// Sockets end until the very last moment, also while Run waits for its workers.
func TestConnectionsMayComeAndGoWhileRunEnds(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := f.gateway("a")
	for range 20 {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					e := a.entry("alice", "")
					if _, err := a.registry.Register(context.Background(), e); err != nil {
						t.Error(err)
					}
					a.registry.Remove(e, End{Cause: "client_close"})
				}
			}
		}()
		f.outlast(5 * time.Millisecond)
		a.stop()
		a.run()
		close(stop)
		<-stopped
	}
}
