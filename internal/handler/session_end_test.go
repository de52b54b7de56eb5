//go:build !secondpass

package handler

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// Alice's reader is held, and her socket breaks: her session ends all the same.
func TestHeldReaderEndsWithItsSocket(t *testing.T) {
	g := embedded(t, func(s *settings) { s.conns.InFlight = 1 })
	alice := g.connect("alice")
	release := g.lane.hold("")
	defer release()
	for i := range 5 {
		if _, err := alice.Send("bob", i, ""); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the window is full", func() bool { return g.handler.Stats().Frames == 3 })
	g.manager.ByUser("alice")[0].Close(connection.Cause{Kind: connection.KindKicked})
	eventually(t, "the session has ended", func() bool { return g.manager.Count() == 0 })
	release()
}

// The same device comes again: the older connection is replaced, and told by whom. Another device of the user stays.
func TestSameDeviceReplacesItself(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a, b := newGateway(t, r), newGateway(t, r)
		phone := a.connect("bob", "deviceId", "phone")
		laptop := a.connect("bob", "deviceId", "laptop")
		again := b.open()
		f := again.register("bob", "deviceId", "phone")
		if closing := phone.wantEnd(protocol.CloseReplaced); closing.By != f.ConnID || closing.Reconnect {
			t.Errorf("closing %s, want it by %s for good", closing, f.ConnID)
		}
		laptop.wantAlive()
		again.wantAlive()
		eventually(t, "two devices are left", func() bool {
			states, err := laptop.Presence("bob")
			return err == nil && states["bob"].Devices == 2
		})
	})
}

// A user has so many connections in the whole cluster. One more, and the oldest goes.
func TestOldestConnectionGoesAtTheLimit(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		three := func(s *settings) { s.registry.ConnectionsPerUser = 3 }
		a, b := newGateway(t, r, three), newGateway(t, r, three)
		var devices []*client
		for i := range 5 {
			devices = append(devices, []*gateway{a, b}[i%2].connect("bob"))
		}
		devices[0].wantEnd(protocol.CloseReplaced)
		devices[1].wantEnd(protocol.CloseReplaced)
		for _, c := range devices[2:] {
			c.wantAlive()
		}
	})
}

// An operator kicks bob: every connection of his, on whichever gateway, is closed with the operator's reason.
func TestKickedUserIsClosedEverywhere(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		a, b := newGateway(t, r), newGateway(t, r)
		one, two, carol := a.connect("bob"), b.connect("bob"), b.connect("carol")
		if n, err := a.registry.Kick(context.Background(), "bob", presence.Order{Code: protocol.CloseKicked, Reason: "spam", By: "operator"}); n.Marked != 2 || err != nil {
			t.Fatalf("%+v marked, %v", n, err)
		}
		for _, c := range []*client{one, two} {
			if f := c.wantEnd(protocol.CloseKicked); f.Reason != "spam" || f.By != "operator" {
				t.Errorf("closing %s", f)
			}
		}
		carol.wantAlive()
	})
}

// A kick is for one life of a connection: a word about another fence, or for a connection that is not here, closes nothing. What the
// registry gave up while this gateway was away is told to come back, spread over a window.
func TestVerdictsMeetTheRightConnection(t *testing.T) {
	g := embedded(t)
	alice, bob := g.connect("alice"), g.connect("bob")
	c := g.manager.ByUser("alice")[0]
	fence := entryOf(c).Fence()
	Kicked(g.manager, protocol.Kick{Conn: c.ID(), Fence: fence + 1, Code: protocol.CloseKicked, Reason: "r"})
	Kicked(g.manager, protocol.Kick{Conn: "nobody", Fence: fence, Code: protocol.CloseKicked, Reason: "r"})
	Judged(g.manager, presence.Verdict{Conn: "nobody", Reaped: true}, time.Second)
	alice.wantAlive()
	Kicked(g.manager, protocol.Kick{Conn: c.ID(), Fence: fence, Code: protocol.CloseRevoked, Reason: "revoked", By: "x"})
	alice.wantEnd(protocol.CloseRevoked)
	if cause, _ := c.Cause(); cause.Kind != connection.KindRevoked {
		t.Errorf("counted as %s", cause.Kind)
	}
	Judged(g.manager, presence.Verdict{Conn: g.manager.ByUser("bob")[0].ID(), Reaped: true}, 50*time.Millisecond)
	if f := bob.wantEnd(protocol.CloseSuperseded); f.WindowMs != 1000 || !f.Reconnect {
		t.Errorf("closing %s", f)
	}
}

// A session ends in whatever way: the registry forgets the connection, the router its feed, and what is sent then is stored.
func TestEndedSessionIsForgotten(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r, func(s *settings) { s.registry.Grace = 0 })
		alice := g.connect("alice")
		for i, end := range []func(*client){
			func(c *client) { _ = c.Close() },
			func(c *client) { c.Cut() },
			func(c *client) { c.say("\xff") },
			func(c *client) { c.say(strings.Repeat(" ", 65<<10)) },
		} {
			bob := g.connect("bob")
			end(bob)
			eventually(t, fmt.Sprintf("bob is offline after end %d", i), func() bool {
				states, err := alice.Presence("bob")
				return err == nil && states["bob"].State == "offline"
			})
			wantAck(t, alice.send("bob", "x", ""), protocol.StatusStored, uint64(i+1), 0)
		}
		if n := g.router.Stats().Unheld; n != 0 {
			t.Errorf("%d messages came for users who had left", n)
		}
	})
}

// The feed of a user who left is gone too: what still comes for him is for nobody.
func TestEndedSessionLeavesNoFeed(t *testing.T) {
	g := embedded(t)
	bob := g.connect("bob")
	word := protocol.AppendEphemeralRecord(protocol.AppendEphemeralHeader(nil), "u:bob", []byte(`{"type":"message","id":"t"`))
	tell := func() {
		t.Helper()
		if err := g.router.RouteToGateway(context.Background(), g.id, word); err != nil {
			t.Fatal(err)
		}
	}
	tell()
	bob.next("message")
	if n := g.router.Stats().Unheld; n != 0 {
		t.Errorf("%d messages for nobody, while bob was there", n)
	}
	if err := bob.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bob has no feed", func() bool { tell(); return g.router.Stats().Unheld > 0 })
}

// The gateway drains: everybody is told to come back elsewhere, and who comes in at the last moment too.
func TestDrainingTellsEverybody(t *testing.T) {
	g := embedded(t)
	alice, silent := g.connect("alice"), g.open()
	silent.say(`{"type":"heartbeat"}`)
	silent.wantError(protocol.CodeNotRegistered, "")
	g.manager.CloseAll(connection.Cause{Kind: connection.KindDraining, WindowMs: 10}, 0)
	for _, c := range []*client{alice, silent} {
		if f := c.wantEnd(protocol.CloseDraining); !f.Reconnect || f.WindowMs != 10 {
			t.Errorf("closing %s", f)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.manager.Close(ctx); err != nil {
		t.Fatal(err)
	}
	g.open().wantEnd(protocol.CloseDraining)
}
