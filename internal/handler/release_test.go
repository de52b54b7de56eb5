//go:build !secondpass

package handler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// An estate is what a connection has bound to it, and how often each part of it was given back.
type estate struct {
	starts, stops, replaced, released atomic.Int64
	ctx                               context.Context
	kind                              connection.Kind // of its end
	late                              bool            // it had ended before anything was bound to it
	left                              any             // what the stop hook could still read
}

// estates bind two values and a context to each connection, and count. The first value is replaced by another of its name.
type estates struct {
	mu  sync.Mutex
	all map[*connection.Connection]*estate // guarded by mu
}

func (x *estates) of(c *connection.Connection) *estate {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.all[c] == nil {
		x.all[c] = new(estate)
	}
	return x.all[c]
}

func (x *estates) count(s *settings) {
	x.all = make(map[*connection.Connection]*estate)
	s.conns.OnStart = []func(*connection.Connection){func(c *connection.Connection) {
		e := x.of(c)
		e.starts.Add(1)
		e.ctx = c.Context()
		c.Bind("value", 1, func(any) { e.replaced.Add(1) })
		e.late = !c.Bind("value", 2, func(any) { e.released.Add(1) })
	}}
	s.conns.OnStop = []func(*connection.Connection, connection.Cause){func(c *connection.Connection, cause connection.Cause) {
		e := x.of(c)
		e.stops.Add(1)
		e.kind = cause.Kind
		e.left, _ = c.Value("value")
	}}
}

// However a connection ends, its start and stop hooks run once, and what was bound to it is given back once: not before the stop hooks have seen it.
func TestWhatIsBoundToAConnectionIsReleasedOnce(t *testing.T) {
	first := func(g *gateway) (c *connection.Connection) {
		g.manager.ForEach(func(x *connection.Connection) bool { c = x; return false })
		return c
	}
	// later has time pass for the gateway until the connection has ended by it.
	later := func(g *gateway, d time.Duration) {
		c := first(g)
		eventually(g.t, "the time is over", func() bool {
			g.manager.CheckHealth(time.Now().Add(d))
			_, ended := c.Cause()
			return ended
		})
	}
	ends := map[string]struct {
		want connection.Kind
		tune func(*settings)
		end  func(*gateway)
	}{
		"the client says goodbye": {want: connection.KindClientClose, end: func(g *gateway) {
			_ = g.connect("alice").Close()
			eventually(g.t, "it is gone", func() bool { return g.manager.Count() == 0 })
		}},
		"the line breaks": {want: connection.KindNetwork, end: func(g *gateway) {
			g.connect("alice").Cut()
			eventually(g.t, "it is gone", func() bool { return g.manager.Count() == 0 })
		}},
		"the cable is pulled": {want: connection.KindPingTimeout, end: func(g *gateway) {
			g.connect("alice").Freeze()
			g.manager.CheckHealth(time.Now().Add(25 * time.Second)) // pings
			later(g, 40*time.Second)
		}},
		"no heartbeat comes": {want: connection.KindHeartbeatTimeout, end: func(g *gateway) {
			g.connect("alice")
			later(g, 100*time.Second)
		}},
		"half a message comes": {want: connection.KindMessageTimeout, end: func(g *gateway) {
			if err := g.connect("alice").WriteRaw(gatewaytest.RawFrame(0x81, `{"type":"heartbeat"}`)[:9]); err != nil {
				g.t.Fatal(err)
			}
			later(g, 15*time.Second)
		}},
		"nobody registers": {want: connection.KindRegisterTimeout, end: func(g *gateway) {
			g.open()
			eventually(g.t, "the connection is there", func() bool { return first(g) != nil })
			later(g, 15*time.Second)
		}},
		"kicked": {want: connection.KindKicked, end: func(g *gateway) {
			c := g.connect("alice")
			if _, err := g.registry.Kick(context.Background(), "alice", presence.Order{Code: protocol.CloseKicked, Reason: "kicked"}); err != nil {
				g.t.Fatal(err)
			}
			c.wantEnd(protocol.CloseKicked)
		}},
		"replaced": {want: connection.KindReplaced, end: func(g *gateway) {
			c := g.connect("alice", "deviceId", "phone")
			g.connect("alice", "deviceId", "phone")
			c.wantEnd(protocol.CloseReplaced)
		}},
		"it reads too slowly": {want: connection.KindSlowConsumer, end: func(g *gateway) {
			g.connect("alice").Freeze()
			c := first(g)
			for ended := false; !ended; _, ended = c.Cause() {
				c.Append([]byte(`"` + strings.Repeat("x", 60<<10) + `"`))
			}
		}},
		"its register is refused": {
			want: connection.KindUnauthorized, tune: func(s *settings) { s.handler.Anonymous = false },
			end: func(g *gateway) {
				c := g.open()
				c.say(`{"type":"register","userId":"alice"}`)
				c.wantError(protocol.CodeUnauthorized, "")
				c.wantEnd(protocol.CloseUnauthorized)
			},
		},
		"its register is not answered": {
			want: connection.KindNetwork, tune: func(s *settings) {
				s.registry.Timeout, s.handler.RegisterWait = 100*time.Millisecond, 200*time.Millisecond
			},
			end: func(g *gateway) {
				defer g.general.hold("alice")()
				c := g.open()
				c.say(`{"type":"register","userId":"alice"}`)
				c.wantError(protocol.CodeUnavailable, "")
				c.Cut()
				eventually(g.t, "it is gone", func() bool { return g.manager.Count() == 0 })
			},
		},
		"it breaks while it registers": {want: connection.KindNetwork, end: func(g *gateway) {
			release := g.general.hold("alice")
			c := g.open()
			c.say(`{"type":"register","userId":"alice"}`)
			eventually(g.t, "it registers", g.general.holds)
			c.Cut()
			release()
			eventually(g.t, "it is gone", func() bool { return g.manager.Count() == 0 })
		}},
		"the gateway stops": {want: connection.KindDraining, end: func(g *gateway) { g.connect("alice") }},
	}
	for _, kind := range connection.Kinds() {
		ends["closed as "+kind.String()] = struct {
			want connection.Kind
			tune func(*settings)
			end  func(*gateway)
		}{want: kind, end: func(g *gateway) {
			g.connect("alice")
			c := first(g)
			var all sync.WaitGroup
			for range 4 { // whoever comes first ends it
				all.Go(func() { c.Close(connection.Cause{Kind: kind}) })
			}
			all.Wait()
		}}
	}
	r := gatewaytest.Shared(t, gatewaytest.Embedded)
	for name, c := range ends {
		t.Run(name, func(t *testing.T) {
			x := new(estates)
			g := newGateway(t, r, func(s *settings) {
				s.conns.CloseWait = 100 * time.Millisecond
				if c.tune != nil {
					c.tune(s)
				}
			}, x.count)
			c.end(g)
			g.stop()
			kinds := ""
			for conn, e := range x.all {
				if e.starts.Load() != 1 || e.stops.Load() != 1 || e.replaced.Load() != 1 || e.released.Load() != 1 || !e.late && e.left != 2 {
					t.Errorf("%v: %d starts, %d stops, replaced %d, released %d times; the stop hook saw %v", conn.LogValue(), e.starts.Load(), e.stops.Load(), e.replaced.Load(), e.released.Load(), e.left)
				}
				if v, ok := conn.Value("value"); ok {
					t.Errorf("%v can still be read", v)
				}
				var cause connection.Cause
				if e.ctx.Err() == nil || !errors.As(context.Cause(e.ctx), &cause) || cause.Kind != e.kind {
					t.Errorf("the context ended by %v, the connection by %s", context.Cause(e.ctx), e.kind)
				}
				kinds += " " + e.kind.String()
			}
			if !strings.Contains(kinds, c.want.String()) {
				t.Errorf("ended by%s, want %s", kinds, c.want)
			}
			if err := r.FlushAll(); err != nil {
				t.Fatal(fmt.Errorf("emptied for the next: %w", err))
			}
		})
	}
}
