package handler

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/auth"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// What is revoked ends everywhere, and what is not lives on.
func TestRevocationClosesConnectionsOnEveryGateway(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	gateways := []*guarded{guard(t, r), guard(t, r), guard(t, r)}
	var hit, spared []*client
	for i, x := range gateways {
		a, _ := x.enter(x.token("alice", time.Hour))
		b, _ := x.enter(x.token("bob", time.Hour, "jti", fmt.Sprint("b", i)))
		hit, spared = append(hit, a), append(spared, b)
	}
	began := time.Now()
	if err := gateways[0].revocations.Revoke(context.Background(), auth.Revocation{User: "alice"}); err != nil {
		t.Fatal(err)
	}
	var last time.Duration
	for _, c := range hit {
		last = max(last, c.wantEnd(protocol.CloseRevoked).At.Sub(began))
	}
	t.Logf("closed on three gateways %v after the call", last)
	for _, c := range spared {
		c.wantAlive()
	}
	if err := gateways[2].revocations.Revoke(context.Background(), auth.Revocation{TokenID: "b1"}); err != nil {
		t.Fatal(err)
	}
	spared[1].wantEnd(protocol.CloseRevoked)
	spared[0].wantAlive()
	if err := gateways[1].revocations.Revoke(context.Background(), auth.Revocation{All: true}); err != nil {
		t.Fatal(err)
	}
	spared[0].wantEnd(protocol.CloseRevoked)
	spared[2].wantEnd(protocol.CloseRevoked)
}

// Whoever is held for what he sends, and for longer than anybody waits, is still closed at once, and what is held isn't sent.
func TestWhoIsHeldIsRevokedAtOnce(t *testing.T) {
	large := []byte(fmt.Sprintf(`{"type":"heartbeat","x":%q}`, strings.Repeat("x", 60_000)))
	for name, tc := range map[string]struct {
		limits Limits
		kind   int
		frame  []byte
	}{
		"for messages":       {Limits{MessageRate: 1}, websocket.TextMessage, []byte(`{"type":"message","to":"bob","content":1}`)},
		"for frames":         {Limits{FrameRate: 1}, websocket.TextMessage, []byte(`{"type":"heartbeat"}`)},
		"for control frames": {Limits{FrameRate: 1}, websocket.PingMessage, nil},
		"for bytes":          {Limits{ByteRate: 1000}, websocket.TextMessage, large},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := guard(t, gatewaytest.StartEmbedded(t))
			c, _ := x.enter(x.token("alice", time.Hour))
			x.handler.Reload(tc.limits)
			for range 30 {
				if err := c.WriteFrame(tc.kind, tc.frame); err != nil {
					t.Fatal(err)
				}
			}
			frames := func() uint64 { return x.handler.Stats().Frames }
			for before := frames(); ; before = frames() { // until it is held
				<-time.After(300 * time.Millisecond)
				if frames() <= before+1 {
					break
				}
			}
			began := time.Now()
			if err := x.revocations.Revoke(context.Background(), auth.Revocation{User: "alice"}); err != nil {
				t.Fatal(err)
			}
			c.wantEnd(protocol.CloseRevoked)
			c.Cut()
			eventually(t, "its reader has ended", func() bool { return x.manager.Count() == 0 })
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("over after %v", took)
			}
			if sent := len(c.Notes().Acked); sent > 5 {
				t.Errorf("%d messages were sent, and more than a few can't have been in time", sent)
			}
		})
	}
}

// The word comes while alice is being entered: too late for what is checked before, too early for her to be found.
func TestWhoIsRevokedWhileRegisteringIsClosed(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded), func(s *settings) { s.handler.RegisterWait, s.registry.Timeout = patience, patience })
	token := x.token("alice", time.Hour)
	release := x.general.hold("alice")
	c := x.open()
	c.say(`{"type":"register","token":"` + token + `"}`)
	eventually(t, "the register waits", x.general.holds)
	if err := x.revocations.Revoke(context.Background(), auth.Revocation{User: "alice"}); err != nil {
		t.Fatal(err)
	}
	alice := auth.Identity{User: "alice", IssuedAt: time.Now().Unix() - 1}
	eventually(t, "the revocation is known", func() bool { return x.revocations.Hits(&alice) })
	release()
	c.wantEnd(protocol.CloseRevoked)
}
