//go:build !secondpass

package router

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// newcomers lets every sender be the first to so many addresses.
type newcomers struct {
	mu    sync.Mutex
	left  map[protocol.UserID]int // guarded by mu
	asked int                     // guarded by mu
}

func (n *newcomers) mayBegin(u protocol.UserID) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.asked++; n.left[u] == 0 {
		return 7 * time.Second
	}
	n.left[u]--
	return 0
}

func (n *newcomers) wantAsked(t *testing.T, want int) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.asked != want {
		t.Errorf("asked %d times, want %d", n.asked, want)
	}
}

// newcomer sends a message whose sender may be the first to so many addresses only.
func (g *gateway) newcomer(from, to protocol.UserID, id string) *sent {
	s := g.message(from, to, id, `1`)
	s.Newcomer = true
	return g.post(s)
}

// A sender may be the first to two addresses. Where somebody has written costs him nothing, the third new one is refused and leaves nothing in
// Redis, and others have their own. Somebody who has only registered is new, too: what takes the room is the first message.
func TestASenderIsTheFirstToSoMany(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		may := &newcomers{left: map[protocol.UserID]int{"alice": 2, "carol": 1}}
		a := net.gateway("a", func(s *settings) { s.router.MayBegin = may.mayBegin })
		a.connect("erin")
		a.send("ops", "dave", "m0", `1`).wantStored(1) // who isn't limited isn't asked about

		a.newcomer("alice", "dave", "m1").wantStored(2)
		may.wantAsked(t, 0)
		a.newcomer("alice", "bob", "m2").wantStored(1)
		a.newcomer("alice", "bob", "m3").wantStored(2)
		a.newcomer("alice", "erin", "m4").wantRouted(1, 1)
		may.wantAsked(t, 2)
		err := a.newcomer("alice", "frank", "m5").wantCode(protocol.CodeLimited)
		if err.Limit != protocol.LimitNewAddresses || err.RetryAfterMs != 7000 || err.ID != "m5" {
			t.Errorf("refused with %+v", err)
		}
		frank := protocol.UserAddress("frank")
		for _, key := range []string{keyspace.Log(frank), keyspace.Stream(frank)} {
			if n, err := r.Client().Exists(context.Background(), key).Result(); err != nil || n != 0 {
				t.Errorf("%s is there: %v", key, err)
			}
		}
		a.newcomer("alice", "bob", "m6").wantStored(3)
		a.newcomer("alice", "bob", "m2").wantStored(1)   // its first answer again
		a.newcomer("carol", "frank", "m7").wantStored(1) // by somebody who may
		a.newcomer("alice", "frank", "m5").wantStored(2) // and so it is there
		may.wantAsked(t, 4)
		net.wantStream("frank", "m7", "m5")
	})
}

// Many messages to one new address that travel together begin one log, and stay in order: also with those that came while the first were
// under way, and with those of somebody else.
func TestMessagesToANewAddressStayInOrder(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		may := &newcomers{left: map[protocol.UserID]int{"alice": 1}}
		a := net.gateway("a", func(s *settings) { s.router.MayBegin = may.mayBegin })
		release := a.lane.hold()
		first := a.newcomer("alice", "bob", "m00")
		<-a.lane.entered
		var all []*sent
		for i := 1; i < 40; i++ {
			all = append(all, a.newcomer("alice", "bob", fmt.Sprintf("m%02d", i)))
		}
		other := a.newcomer("carol", "erin", "x1")
		release()
		first.wantStored(1)
		for i, s := range all {
			s.wantStored(uint64(i + 2))
		}
		other.wantCode(protocol.CodeLimited)
		may.wantAsked(t, 2)
	})
}

// A message that is refused for its new address leaves no copy with its sender; one that is taken does.
func TestARefusedNewcomerLeavesNoCopy(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	may := &newcomers{left: map[protocol.UserID]int{"alice": 1}}
	a := net.gateway("a", func(s *settings) { s.router.MayBegin = may.mayBegin })
	send := func(to protocol.UserID, id string) *sent {
		s := a.message("alice", to, id, `1`).withCopy()
		s.Newcomer = true
		return a.post(s)
	}
	send("bob", "m1").wantStored(1)
	send("erin", "m2").wantCode(protocol.CodeLimited)
	net.wantStream("alice", "m1")
}

// Redis goes away between the two calls: nothing is known to be stored, and what is told is true.
func TestRedisGoesAwayBeforeALogIsBegun(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	r := net.redis
	a := net.gateway("a", func(s *settings) {
		s.router.MayBegin = func(protocol.UserID) time.Duration {
			if err := r.Pause(); err != nil {
				t.Error(err)
			}
			return 0
		}
		s.router.Attempt, s.router.Suspect = 100*time.Millisecond, time.Minute
	})
	s := a.newcomer("alice", "bob", "m1")
	s.wantCode(protocol.CodeUnknown)
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message is stored", func() bool {
		again := a.newcomer("alice", "bob", "m1").answer()
		_ = r.Resume()
		return again.Err == nil && again.Offset == 1
	})
	net.wantStream("bob", "m1")
}
