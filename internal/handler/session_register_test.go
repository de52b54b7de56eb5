//go:build !secondpass

package handler

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// Who a connection is can't change, neither to somebody else nor to itself once more.
func TestRegisterTwiceIsRefused(t *testing.T) {
	g := embedded(t)
	c, bob := g.connect("alice"), g.connect("bob")
	for _, user := range []string{"alice", "mallory", "bob"} {
		c.say(`{"type":"register","userId":"` + user + `"}`)
		c.wantError(protocol.CodeAlreadyRegistered, "")
	}
	wantAck(t, c.send("bob", "still me", "m1"), protocol.StatusRouted, 1, 1)
	if m := bob.next("message"); m.Sender() != "alice" {
		t.Errorf("bob got %s", m)
	}
	if n := len(g.manager.ByUser("alice")); n != 1 {
		t.Errorf("%d connections of alice, want 1", n)
	}
}

// Where anonymous users are not let in, a register without a token that is good ends the connection, and the client need not come back.
func TestAnonymousIsRefusedWhereItIsOff(t *testing.T) {
	for name, tc := range map[string]struct {
		anonymous bool
		frame     string
	}{
		"no token":                 {false, `{"type":"register","userId":"alice"}`},
		"a token nobody checks":    {false, `{"type":"register","userId":"alice","token":"x"}`},
		"only a token nobody asks": {true, `{"type":"register","token":"x"}`},
	} {
		t.Run(name, func(t *testing.T) {
			g := embedded(t, func(s *settings) { s.handler.Anonymous = tc.anonymous })
			c := g.open()
			c.say(tc.frame)
			c.wantError(protocol.CodeUnauthorized, "")
			if f := c.wantEnd(protocol.CloseUnauthorized); f.Reconnect {
				t.Errorf("told to come back: %s", f)
			}
			if locations, err := g.registry.Get(context.Background(), "alice"); err != nil || len(locations) != 0 {
				t.Errorf("the registry has %v (%v)", locations, err)
			}
		})
	}
}

// Redis is away when alice registers: she is told to try again, her socket stays, and her ten seconds start again. On this connection
// she can't become somebody else then, since nobody knows whether the first attempt was entered; as herself she gets in, once Redis is back.
func TestRegisterWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	r, within := gatewaytest.Shared(t, gatewaytest.Standalone), gatewaytest.Busier(t)
	g := newGateway(t, r, func(s *settings) {
		s.registry.Timeout, s.conns.RegisterTimeout = 400*time.Millisecond, 1500*time.Millisecond
	})
	c := g.open()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	opened := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for time.Since(opened) < 3*time.Second {
		<-tick.C
		c.say(`{"type":"register","userId":"alice"}`)
		began := time.Now()
		if f := c.wantError(protocol.CodeUnavailable, ""); f.Retry <= 0 {
			t.Errorf("no time to come back: %s", f)
		}
		if d := time.Since(began); d > within(2*time.Second) {
			t.Errorf("refused after %v", d)
		}
	}
	c.say(`{"type":"register","userId":"mallory"}`)
	c.wantError(protocol.CodeForbidden, "")
	c.say(`{"type":"heartbeat"}`)
	c.wantError(protocol.CodeNotRegistered, "")
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	c.say(`{"type":"register","userId":"mallory"}`)
	c.wantError(protocol.CodeForbidden, "")
	eventually(t, "a pulse is answered again", func() bool { return g.registry.Answers("u:alice") })
	c.register("alice")
	c.wantAlive()
	locations, err := g.registry.Get(context.Background(), "alice")
	if err != nil || len(locations) != 1 {
		t.Errorf("the registry has %v (%v), want one connection", locations, err)
	}
}

// The ten seconds to register start again with a refusal that was not the client's fault. They do end.
func TestRefusedRegisterStartsTheTimeAgain(t *testing.T) {
	t.Parallel()
	r, within := gatewaytest.Shared(t, gatewaytest.Standalone), gatewaytest.Busier(t)
	const limit = 1200 * time.Millisecond
	g := newGateway(t, r, func(s *settings) { s.registry.Timeout, s.conns.RegisterTimeout = 300*time.Millisecond, limit })
	c := g.open()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	var refused time.Time
	for opened := time.Now(); time.Since(opened) < limit; {
		c.say(`{"type":"register","userId":"alice"}`)
		c.wantError(protocol.CodeUnavailable, "")
		refused = time.Now()
	}
	c.wantEnd(protocol.CloseRegisterTimeout)
	if d, late := time.Since(refused), within(0); d < limit-100*time.Millisecond-late || d > 2*limit+late {
		t.Errorf("the connection ended %v after the last refusal, want %v", d, limit)
	}
	if err := r.Resume(); err != nil { // or the gateway would wait for it at the end
		t.Fatal(err)
	}
}

// Her register was refused, and alice leaves. Redis may have entered her all the same when it woke: nothing of it stays.
func TestRefusedRegisterLeavesNoGhost(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	g := newGateway(t, r, func(s *settings) { s.registry.Timeout = 300 * time.Millisecond })
	c := g.open()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	c.say(`{"type":"register","userId":"alice"}`)
	c.wantError(protocol.CodeUnavailable, "")
	c.Cut()
	eventually(t, "the socket is gone", func() bool { return g.manager.Count() == 0 })
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	quiet := 0
	eventually(t, "the registry is empty, and stays so", func() bool {
		locations, err := g.registry.Get(context.Background(), "alice")
		holders, err2 := g.registry.Holders(context.Background(), "u:alice")
		if err != nil || err2 != nil || len(locations) != 0 || len(holders[0]) != 0 {
			quiet = 0
			return false
		}
		quiet++
		return quiet > 10
	})
}

// Meta and device of a register reach the registry as they were given.
func TestRegisterCarriesMetaAndDevice(t *testing.T) {
	g := embedded(t)
	g.connect("alice", "deviceId", "téléphone 1", "meta", json.RawMessage(`{"app":"7.1","n":1e400}`))
	locations, err := g.registry.Get(context.Background(), "alice")
	if err != nil || len(locations) != 1 || locations[0].Device != "téléphone 1" || locations[0].Meta != `{"app":"7.1","n":1e400}` {
		t.Errorf("the registry has %+v, %v", locations, err)
	}
	if locations[0].Gateway != g.id || locations[0].Fence == 0 || !recent(locations[0].Since) {
		t.Errorf("the registry has %+v", locations[0])
	}
}

// Where classes of devices are limited, a client must name one of them; what it says about a class is checked like any id.
func TestDeviceClassesAreChosenFromAList(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.Classes = []string{"desktop", "phone"} })
	for name, class := range map[string]string{
		"none": ``, "unknown": `,"deviceClass":"tv"`, "other case": `,"deviceClass":"Phone"`, "empty": `,"deviceClass":""`,
		"a number": `,"deviceClass":1`, "a list": `,"deviceClass":["phone"]`, "too long": `,"deviceClass":"` + strings.Repeat("p", 129) + `"`,
		"control characters": `,"deviceClass":"ph\u001fone"`, "twice": `,"deviceClass":"tv","deviceClass":"phone"`,
	} {
		t.Run(name, func(t *testing.T) {
			c := g.open()
			c.say(`{"type":"register","userId":"alice"` + class + `}`)
			if f := c.wantError(protocol.CodeBadRequest, ""); !strings.Contains(string(f.Raw), "deviceClass") {
				t.Errorf("answered %s", f)
			}
			// Nothing happened yet: it can still do better.
			c.say(`{"type":"register","userId":"alice","deviceClass":"phone"}`)
			c.next("registered")
		})
	}
}
