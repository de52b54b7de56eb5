//go:build !secondpass

package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// A connection to Redis that breaks once a publish went out over it: it was executed, and no answer comes.
type losesPublished struct {
	net.Conn
	armed *atomic.Int64 // publishes that may still be lost
	lost  atomic.Bool
}

func (c *losesPublished) Write(b []byte) (int, error) {
	if bytes.Contains(bytes.ToLower(b), []byte("publish\r\n")) && c.armed.Add(-1) >= 0 {
		c.lost.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *losesPublished) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.lost.Load() {
		return 0, io.EOF
	}
	return n, err
}

// The answer to a publish is lost. It may have been heard, so it isn't said again: nobody gets a message for everyone, or a signal,
// twice. The sender is told that it isn't known.
func TestALostAnswerTellsNobodyTwice(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		var armed atomic.Int64
		net.dialer = losing(&armed)
		net.reach = net.dialer
		a := net.gateway("a")
		net.dialer, net.reach = nil, nil
		b := net.gateway("b")
		bob := b.connect("bob")
		armed.Store(1)
		if reach, err := a.announce("news1"); err != nil || reach.Gateways > 1 || len(reach.Unknown) == 0 {
			t.Errorf("reached %+v, %v, want to hear that somebody is not known", reach, err)
		}
		if n := armed.Load(); n > 0 {
			t.Fatalf("%d publishes are still to be lost", n)
		}
		armed.Store(1)
		a.signal("alice", "bob", "t1", `"typing"`).wantCode(protocol.CodeUnavailable)
		armed.Store(0)
		if reach, err := a.announce("news2"); err != nil || reach.Gateways != 2 {
			t.Fatalf("reached %+v, %v", reach, err)
		}
		seen := make(map[string]int)
		eventually(t, "the last one comes", func() bool {
			clear(seen)
			for _, f := range bob.Notes().Received {
				seen[f.ID]++
			}
			return seen["news2"] > 0
		})
		// On Cluster the signal has another channel than the news, and may have been lost on its way out as well.
		if seen["news1"] > 1 || seen["t1"] > 1 || seen["news2"] != 1 {
			t.Errorf("bob got %v", seen)
		}
	})
}

func losing(armed *atomic.Int64) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &losesPublished{Conn: nc, armed: armed}, nil
	}
}

// A frame that clients were not told to expect, and that their outboxes may have no room for, is refused and reaches nobody.
func TestWhatIsTooLargeForEveryoneIsRefused(t *testing.T) {
	g := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded)).gateway("a")
	c := g.connect("alice")
	m := protocol.MessageHead{ID: []byte("news"), From: "ops", Ts: 1795305600000, Ephemeral: true}
	fits := protocol.MaxFrameBytes - len(protocol.AppendMessageTail(protocol.AppendMessageHead(nil, &m), "", 0))
	for size, want := range map[int]error{fits: nil, fits + 1: ErrTooLarge, 1 << 20: ErrTooLarge} {
		m.Content = []byte(`"` + strings.Repeat("x", size-2) + `"`)
		if reach, err := g.router.Broadcast(context.Background(), &m); !errors.Is(err, want) || (reach.Gateways == 1) != (want == nil) {
			t.Errorf("%d bytes: reached %+v, %v", size, reach, err)
		}
	}
	if got := c.messages(1); len(got) != 1 || len(got[0].Raw) != protocol.MaxFrameBytes {
		t.Errorf("got %d messages, the first of %d bytes", len(got), len(got[0].Raw))
	}
}
