//go:build !secondpass

package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// batches writes down what each call of the gateway's only lane carries. Its hook runs on the lane's worker, which owns the batch.
func (g *gateway) batches() (read func() (messages, bytes []int)) {
	var mu sync.Mutex
	var messages, bytes []int
	g.lane.set(func(x *tap) {
		x.before = func(redis.Cmder) {
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for _, m := range g.router.lanes.all[0].batch {
				n += len(m.Frame)
			}
			messages, bytes = append(messages, len(g.router.lanes.all[0].batch)), append(bytes, n)
		}
	})
	return func() ([]int, []int) {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(messages), slices.Clone(bytes)
	}
}

// While a call is out, what comes is the next batch: 64 messages at most, and after a slow round trip 256.
func TestBatchesHoldSoManyMessages(t *testing.T) {
	for name, tc := range map[string]struct {
		trip time.Duration // of the first call
		want []int
	}{
		"a fast Redis": {0, []int{1, 64, 64, 64, 64, 64, 64, 64, 64, 64, 24}},
		"a slow Redis": {80 * time.Millisecond, []int{1, 256, 256, 88}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)).gateway("a", func(s *settings) { s.router.SlowTrip = 9 * time.Millisecond })
			g.send("alice", "bob", "warm", `0`).wantStored(1) // scripts are loaded
			g.calm()
			read := g.batches()
			release := g.lane.hold()
			all := []*sent{g.send("alice", "bob", "m0", `0`)}
			<-g.lane.entered
			for i := range 600 {
				all = append(all, g.send("alice", "bob", "m"+strconv.Itoa(i+1), `0`))
			}
			if tc.trip > 0 {
				time.AfterFunc(tc.trip, release) // the slow round trip itself
			} else {
				g.lane.quick(g)
				release()
			}
			for i, s := range all {
				s.wantStored(uint64(i + 2))
			}
			if got, _ := read(); !slices.Equal(got, tc.want) {
				t.Errorf("batches of %v messages, want %v", got, tc.want)
			}
		})
	}
}

// calm makes the lane forget how long calls took so far: the first one loads the script.
func (g *gateway) calm() {
	for _, l := range g.router.lanes.all {
		l.mu.Lock()
		l.trip = 0
		l.mu.Unlock()
	}
}

// quick makes the call that is held count as a fast one, however long the test held it.
func (x *tap) quick(g *gateway) {
	x.set(func(x *tap) {
		x.after = func(_ redis.Cmder, err error) error {
			// measure runs after this, once for each call; whatever it finds is small against an hour of credit.
			g.router.lanes.all[0].mu.Lock()
			g.router.lanes.all[0].trip = -time.Hour
			g.router.lanes.all[0].mu.Unlock()
			return err
		}
	})
}

// The bytes of a batch are bounded too: 64 KB, after a slow round trip 128 KB. A message that is larger than that travels alone.
func TestBatchesHoldSoManyBytes(t *testing.T) {
	for name, tc := range map[string]struct {
		trip  time.Duration
		limit int
	}{
		"a fast Redis": {0, 64 << 10},
		"a slow Redis": {80 * time.Millisecond, 128 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			g := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)).gateway("a")
			g.send("alice", "bob", "warm", `0`).wantStored(1)
			g.calm()
			read := g.batches()
			release := g.lane.hold()
			all := []*sent{g.send("alice", "bob", "m0", `0`)}
			<-g.lane.entered
			content := quoted(strings.Repeat("x", 10<<10))
			for i := range 60 {
				all = append(all, g.send("alice", "bob", "m"+strconv.Itoa(i+1), content))
			}
			all = append(all, g.send("alice", "bob", "big", quoted(strings.Repeat("x", tc.limit+1))))
			all = append(all, g.send("alice", "bob", "last", `0`))
			if tc.trip > 0 {
				time.AfterFunc(tc.trip, release)
			} else {
				g.lane.quick(g)
				release()
			}
			for i, s := range all {
				s.wantStored(uint64(i + 2))
			}
			messages, bytes := read()
			full := 0
			for i, n := range bytes {
				if n > tc.limit && messages[i] > 1 {
					t.Errorf("%d bytes in a batch of %d messages, want %d at most", n, messages[i], tc.limit)
				}
				if n > tc.limit-11<<10 && n <= tc.limit {
					full++
				}
			}
			if full < 600<<10/tc.limit-1 {
				t.Errorf("batches of %v bytes: they could hold %d", bytes, tc.limit)
			}
		})
	}
}

// Redis is slow and the lane is full: further messages are refused with a time to come back, and what was taken is carried. The lane
// never holds more than 8 MB.
func TestFullLaneRefusesAsOverloaded(t *testing.T) {
	g := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)).gateway("a")
	release := g.lane.hold()
	defer release()
	content := quoted(strings.Repeat("x", 60<<10))
	taken := []*sent{g.send("alice", "bob", "m0", content)}
	<-g.lane.entered
	var refused []*sent
	for i := range 300 {
		s := g.send("alice", "bob", "m"+strconv.Itoa(i+1), content)
		if s.answered() {
			refused = append(refused, s)
		} else {
			taken = append(taken, s)
		}
	}
	for _, s := range refused {
		if e := s.wantCode(protocol.CodeOverloaded); e.RetryAfterMs <= 0 {
			t.Errorf("refused without a time to come back: %+v", e)
		}
	}
	held := 0
	for _, s := range taken[1:] {
		held += s.size()
	}
	if limit := g.router.cfg.LaneBytes; held > limit || held < limit-70<<10 || len(refused) == 0 {
		t.Errorf("%d messages with %d bytes are held, %d refused; want just below %d bytes", len(taken), held, len(refused), limit)
	}
	if s := g.router.Stats(); s.RefusedOverloaded != uint64(len(refused)) || s.Pending != len(taken)-1 {
		t.Errorf("%d refused and %d pending are counted, want %d and %d", s.RefusedOverloaded, s.Pending, len(refused), len(taken)-1)
	}
	release()
	for i, s := range taken {
		s.wantStored(uint64(i + 1))
	}
	g.send("alice", "bob", "after", content).wantStored(uint64(len(taken) + 1))
}

// Each call takes 40 ms, and a call carries few messages: as soon as 300 ms of work wait, no more is taken. Nobody who was taken waited
// much longer than that.
func TestSlowLaneRefusesAsOverloaded(t *testing.T) {
	const trip = 40 * time.Millisecond
	within := gatewaytest.Busier(t)
	g := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)).gateway("a", func(s *settings) {
		s.router.BatchMessages, s.router.LaneWait = 1, DefaultConfig().LaneWait
	})
	g.lane.set(func(x *tap) {
		x.refuse = func(context.Context, redis.Cmder) error { <-time.After(trip); return nil } // the distance to Redis
	})
	var taken, refused []*sent
	deadline := time.Now().Add(2 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond) // five times what the lane can carry
	defer tick.Stop()
	for i := 0; time.Now().Before(deadline); i++ {
		<-tick.C
		s := g.send("alice", "bob", "m"+strconv.Itoa(i), `0`)
		if s.answered() {
			refused = append(refused, s)
		} else {
			taken = append(taken, s)
		}
	}
	for _, s := range refused {
		if e := s.wantCode(protocol.CodeOverloaded); e.RetryAfterMs <= 0 {
			t.Errorf("refused without a time to come back: %+v", e)
		}
	}
	if len(refused) < len(taken) {
		t.Errorf("%d refused, %d taken", len(refused), len(taken))
	}
	slowest := time.Duration(0)
	for i, s := range taken {
		s.wantStored(uint64(i + 1))
		slowest = max(slowest, s.took)
	}
	if slowest > within(time.Second) {
		t.Errorf("a message that was taken waited %v", slowest)
	}
	g.send("alice", "bob", "after", `0`).wantStored(uint64(len(taken) + 1))
}

// Redis carries a call out, and the answer is lost on the way. The lane says the same again and gets the first answer; bob sees nothing
// twice, and nothing overtakes.
func TestLostAnswerIsAskedForAgain(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a", prompt), net.gateway("b")
		bob := b.connect("bob")
		a.lane.loseAnswers(2)
		one, two := a.send("alice", "bob", "m1", `1`), a.send("alice", "bob", "m2", `2`)
		first := one.wantRouted(1, 1)
		two.wantRouted(2, 1)
		a.send("alice", "bob", "m1", `1`).wantAnswer(first)
		bob.wantMessages(b, "m1@1", "m2@2")
	})
}

// loseAnswers lets the next n calls happen and throws their answers away, as a connection does that breaks in between.
func (x *tap) loseAnswers(n int) {
	x.set(func(x *tap) {
		x.after = func(_ redis.Cmder, err error) error {
			x.mu.Lock()
			defer x.mu.Unlock()
			if err != nil || n == 0 {
				return err
			}
			n--
			return io.EOF
		}
	})
}

// The answer is lost three times. Then nobody knows, and the lane says so; the client asks again with the same id and learns that the
// message was stored the first time.
func TestOutcomeIsUnknownAfterThreeLostAnswers(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a", prompt), net.gateway("b")
		bob := b.connect("bob")
		a.lane.loseAnswers(3)
		if e := a.send("alice", "bob", "m1", `1`).wantCode(protocol.CodeUnknown); e.RetryAfterMs <= 0 || e.ID != "m1" {
			t.Errorf("told %+v, want the id and a time to come back", e)
		}
		a.sendUntilTaken("alice", "bob", "m1", `1`).wantRouted(1, 1)
		bob.wantMessages(b, "m1@1")
		net.wantStreamLen("bob", 2)
	})
}

// Redis says why it does not run the script. Then nothing was stored, and the client is told exactly that; what Redis asks to be
// repeated is repeated.
func TestRefusedCallsAreCertainlyNotStored(t *testing.T) {
	for name, tc := range map[string]struct {
		err   error
		calls int // made in vain
		want  protocol.ErrorCode
	}{
		"out of memory":     {redisError("OOM command not allowed when used memory > 'maxmemory'."), 1, protocol.CodeUnavailable},
		"a replica":         {redisError("READONLY You can't write against a read only replica."), 1, protocol.CodeUnavailable},
		"loading":           {redisError("LOADING Redis is loading the dataset in memory"), 1, protocol.CodeUnavailable},
		"another script":    {redisError("BUSY Redis is busy running a script."), 1, protocol.CodeUnavailable},
		"not allowed":       {redisError("NOPERM this user has no permissions"), 1, protocol.CodeUnavailable},
		"disk full":         {redisError("MISCONF Redis is configured to save RDB snapshots"), 1, protocol.CodeUnavailable},
		"slot moves":        {redisError("TRYAGAIN Multiple keys request during rehashing of slot"), 3, protocol.CodeUnavailable},
		"slot moved":        {redisError("MOVED 1 127.0.0.1:1"), 3, protocol.CodeUnavailable},
		"cluster down":      {redisError("CLUSTERDOWN The cluster is down"), 3, protocol.CodeUnavailable},
		"nobody listens":    {&net.OpError{Op: "dial", Err: errors.New("connection refused")}, 3, protocol.CodeUnavailable},
		"no connection":     {redis.ErrPoolTimeout, 3, protocol.CodeUnavailable},
		"connection broken": {&net.OpError{Op: "read", Err: errors.New("connection reset by peer")}, 3, protocol.CodeUnknown},
		"no answer":         {context.DeadlineExceeded, 3, protocol.CodeUnknown},
		"a mistake of ours": {redisError("ERR user_script:7: attempt to index a nil value"), 3, protocol.CodeUnknown},
		"a key of others":   {redisError("WRONGTYPE Operation against a key holding the wrong kind of value"), 3, protocol.CodeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			g := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)).gateway("a", prompt)
			g.send("alice", "bob", "m0", `0`).wantStored(1)
			before := g.router.Stats().Calls
			g.lane.set(func(x *tap) { x.refuse = func(context.Context, redis.Cmder) error { return tc.err } })
			s := g.send("alice", "bob", "m1", `1`)
			e := s.wantCode(tc.want)
			if e.RetryAfterMs <= 0 {
				t.Errorf("no time to come back: %+v", e)
			}
			if n := g.router.Stats().Calls - before; n != uint64(tc.calls) {
				t.Errorf("%d calls, want %d", n, tc.calls)
			}
			// From now on the lane probes, and takes nothing until Redis answers.
			eventually(t, "the lane refuses", g.router.Degraded)
			refused := g.send("alice", "bob", "m2", `2`)
			if !refused.answered() {
				t.Error("a message waits for a Redis that does not answer")
			}
			refused.wantCode(protocol.CodeUnavailable)
			g.lane.set(func(x *tap) { x.refuse = nil })
			g.sendUntilTaken("alice", "bob", "m1", `1`).wantStored(2)
			if g.router.Degraded() {
				t.Error("degraded, though Redis answers")
			}
		})
	}
}

type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

// An attempt broke in the middle, and the next ones were refused before anything ran. The first may have stored the message: certainty
// is lost with it.
func TestOneUncertainAttemptMakesTheOutcomeUnknown(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a := net.gateway("a", prompt)
		a.send("alice", "bob", "m0", `0`).wantStored(1)
		calls := 0
		a.lane.set(func(x *tap) {
			x.refuse = func(context.Context, redis.Cmder) error {
				if calls++; calls > 1 {
					return redisError("CLUSTERDOWN The cluster is down")
				}
				return nil
			}
			x.after = func(redis.Cmder, error) error { return io.ErrUnexpectedEOF }
		})
		a.send("alice", "bob", "m1", `1`).wantCode(protocol.CodeUnknown)
		a.lane.set(func(x *tap) { x.refuse, x.after = nil, nil })
		a.sendUntilTaken("alice", "bob", "m1", `1`).wantStored(2)
	})
}

// An answer that nobody can read says nothing about the message.
func TestUnreadableAnswerIsUnknown(t *testing.T) {
	for _, reply := range []string{
		"", "x", "line", "line\nx", "line\nr e 1", "line\nr e one 1 1", "line\nr e 1 1 1\nr e 2 1 1", "line\ns e 18446744073709551616 0 1",
	} {
		t.Run(reply, func(t *testing.T) {
			g := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)).gateway("a", prompt)
			g.lane.set(func(x *tap) {
				x.after = func(cmd redis.Cmder, err error) error {
					cmd.(interface{ SetVal(any) }).SetVal(reply)
					return err
				}
			})
			g.send("alice", "bob", "m1", `1`).wantCode(protocol.CodeUnknown)
			g.lane.set(func(x *tap) { x.after = nil })
			g.sendUntilTaken("alice", "bob", "m1", `1`).wantStored(1)
		})
	}
}

// An operator empties Redis' memory of scripts, again and again, while messages flow. Nobody notices.
func TestScriptFlushIsNotNoticed(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a"), net.gateway("b")
		bob := b.connect("bob")
		var want []string
		for i := range 20 {
			flushScripts(t, r)
			var all []*sent
			for j := range 10 {
				all = append(all, a.send("alice", "bob", fmt.Sprintf("m%d.%d", i, j), `0`))
			}
			flushScripts(t, r)
			for _, s := range all {
				n := uint64(len(want) + 1)
				s.wantRouted(n, 1)
				want = append(want, fmt.Sprintf("%s@%d", s.ID, n))
			}
		}
		bob.wantMessages(a, want...)
		if s := a.router.Stats(); s.FailedCalls != 0 || s.RefusedUnavailable != 0 {
			t.Errorf("%d calls failed, %d messages were refused", s.FailedCalls, s.RefusedUnavailable)
		}
	})
}

func flushScripts(t *testing.T, r *gatewaytest.Redis) {
	t.Helper()
	if len(r.Nodes) == 0 {
		if _, err := r.Do("SCRIPT", "FLUSH"); err != nil {
			t.Fatal(err)
		}
	}
	masters, err := r.Masters()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range masters {
		if _, err := n.Do("SCRIPT", "FLUSH"); err != nil {
			t.Fatal(err)
		}
	}
}
