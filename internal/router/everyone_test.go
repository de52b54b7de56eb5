//go:build !secondpass

package router

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// announce has everybody told something.
func (g *gateway) announce(id string) (Reach, error) {
	return g.router.Broadcast(context.Background(), &protocol.MessageHead{
		ID: []byte(id), From: "ops", Content: []byte(`{"text":"maintenance at six"}`), Ts: 1795305600000, Ephemeral: true,
	})
}

// Three gateways, many people on each, also the same person twice: every registered connection gets it once, and it leaves nothing
// in any log. Whoever is not registered yet gets nothing.
func TestEveryoneIsTold(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		gs := []*gateway{net.gateway("a"), net.gateway("b"), net.gateway("c")}
		var all []*client
		for i := range 3 * (everyoneSlice + 10) {
			all = append(all, gs[i%3].connect(protocol.UserID(fmt.Sprint("user", i/2))))
		}
		stranger, held := gs[0].hold("stranger")
		before := net.dump("user0")
		const n = 5
		for i := range n {
			reach, err := gs[i%3].announce(fmt.Sprint("news", i))
			if err != nil || reach.Gateways != 3 || len(reach.Missing) != 0 {
				t.Fatalf("reached %+v, %v", reach, err)
			}
		}
		for _, c := range all {
			var ids []string
			for _, f := range c.messages(n) {
				ids = append(ids, f.ID)
				if f.Sender() != "ops" || !f.Ephemeral || strings.Contains(string(f.Raw), `"to"`) || strings.Contains(string(f.Raw), `"room"`) || f.Epoch != "" {
					t.Errorf("%s got %s", c.Name, f)
				}
			}
			// Different gateways' announcements have no order.
			if slices.Sort(ids); !slices.Equal(ids, []string{"news0", "news1", "news2", "news3", "news4"}) {
				t.Errorf("%s got %v", c.Name, ids)
			}
		}
		if after := net.dump("user0"); len(after) != len(before) {
			t.Errorf("it changed\n%v\nto\n%v", before, after)
		}
		if got := stranger.Notes().Received; len(got) != 0 {
			t.Errorf("who is not registered got %v", got)
		}
		held.attach()
		held.follow(held.register())
	})
}

// One gateway was just killed and its lease still runs: the sender is told which is missing. A Redis that is away is an error.
func TestEveryoneMissesAKilledGateway(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		a, b := net.gateway("a", func(s *settings) { s.registry.Lease *= 20 }), net.gateway("b", func(s *settings) { s.registry.Lease *= 20 })
		c := a.connect("alice")
		b.stop()
		if err := gatewaytest.Poll(patience, func() error {
			reach, err := a.announce("news")
			if err == nil && (reach.Gateways != 1 || !slices.Equal(reach.Missing, []protocol.GatewayID{b.id})) {
				err = fmt.Errorf("reached %+v", reach)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		c.messages(1)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if reach, err := a.router.Broadcast(ctx, &protocol.MessageHead{ID: []byte("x"), From: "ops", Content: []byte("1")}); err == nil {
			t.Errorf("without Redis: %+v", reach)
		}
	})
}

// A gateway that is too busy drops what is for everyone rather than keep it all, and says so.
func TestTooMuchForEveryoneIsDropped(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	g := net.gateway("a")
	var once sync.Once
	entered, leave := make(chan struct{}), make(chan struct{})
	everyone := g.router.cfg.Everyone
	g.router.cfg.Everyone = func(yield func(*connection.Connection) bool) {
		once.Do(func() { close(entered); <-leave })
		everyone(yield)
	}
	c := g.connect("alice")
	g.router.everyone.take(`{"type":"message","id":"m0"`)
	<-entered
	for i := range everyoneWaits + 3 {
		g.router.everyone.take(fmt.Sprintf(`{"type":"message","id":"m%d"`, i+1))
	}
	close(leave)
	got := c.messages(everyoneWaits + 1)
	if n := g.router.Stats().Dropped; n != 3 || got[everyoneWaits].ID != fmt.Sprint("m", everyoneWaits) {
		t.Errorf("%d dropped, the last is %s", n, got[everyoneWaits])
	}
}
