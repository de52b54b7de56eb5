package handler

import (
	"fmt"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// Bob's phone says what it has, in a burst, and goes away. When it comes back it gets the rest; history gives what it had.
func TestDeviceGoesOnBehindWhatItReceived(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r)
		alice := g.connect("alice")
		for i := range 5 {
			wantAck(t, alice.send("bob", "x", fmt.Sprint("m", i)), protocol.StatusStored, uint64(i+1), 0)
		}
		bob := g.open()
		bob.say(`{"type":"register","userId":"bob","deviceId":"phone"}`)
		epoch := bob.next("registered").Epoch
		for range 5 {
			bob.next("message")
		}
		for i := range 3 {
			bob.say(fmt.Sprintf(`{"type":"received","epoch":%q,"offset":%d}`, epoch, i+1))
		}
		bob.say(`{"type":"received","epoch":"foreign","offset":5}`)
		bob.say(fmt.Sprintf(`{"type":"received","epoch":%q,"offset":3}`, epoch))
		eventually(t, "the cursor stands at 3", func() bool {
			at, err := g.handler.history.Kept(t.Context(), "bob", "phone", "u:bob")
			return err == nil && at[0] != nil && *at[0] == protocol.Position{Epoch: epoch, Offset: 3}
		})
		bob.say(`{"type":"register","userId":"bob"}`)
		bob.wantError(protocol.CodeAlreadyRegistered, "")

		again := g.open()
		again.say(`{"type":"register","userId":"bob","deviceId":"phone"}`)
		if f := again.next("registered"); f.Offset != 3 || f.Top != 5 || !f.Recovered {
			t.Errorf("registered: %s", f)
		}
		for o := uint64(4); o <= 5; o++ {
			if f := again.next("message"); f.Offset != o {
				t.Errorf("got %s, want offset %d", f, o)
			}
		}
		again.say(`{"type":"history","id":"h1","limit":2,"before":4}`)
		if f := again.next("history"); f.ID != "h1" || f.First != 1 || f.Top != 5 {
			t.Errorf("history: %s", f)
		}
		// What lies before an offset of an epoch that never was is nothing.
		again.say(`{"type":"history","id":"h0","epoch":"foreign","before":4}`)
		if f := again.next("history"); f.ID != "h0" || strings.Contains(string(f.Raw), `"messages":[{`) {
			t.Errorf("history: %s", f)
		}
		// Any number may be asked for.
		again.say(`{"type":"history","id":"h2","after":18446744073709551615}`)
		if f := again.next("history"); f.ID != "h2" {
			t.Errorf("history: %s", f)
		}
	})
}

// In one breath bob's phone says something that can't be, and then what it has. The good word counts: nothing that it has comes again.
func TestGoodWordCountsBehindOneTooFar(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r)
		alice := g.connect("alice")
		for i := range 5 {
			wantAck(t, alice.send("bob", "x", fmt.Sprint("m", i)), protocol.StatusStored, uint64(i+1), 0)
		}
		bob := g.open()
		bob.say(`{"type":"register","userId":"bob","deviceId":"phone"}`)
		epoch := bob.next("registered").Epoch
		bob.say(fmt.Sprintf(`{"type":"received","epoch":%q,"offset":99}`, epoch))
		bob.say(fmt.Sprintf(`{"type":"received","epoch":%q,"offset":3}`, epoch))
		eventually(t, "the cursor stands at 3", func() bool {
			at, err := g.handler.history.Kept(t.Context(), "bob", "phone", "u:bob")
			return err == nil && at[0] != nil && *at[0] == protocol.Position{Epoch: epoch, Offset: 3}
		})
	})
}
