package handler

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// Every frame counts, whatever it is and whether or not it is taken: over the rate the reader is held, and all are answered in the end.
func TestFramesAreHeldToTheRate(t *testing.T) {
	const perSecond, sent = 100, 250
	for name, tc := range map[string]struct {
		kind  int
		frame string
	}{
		"heartbeats":         {websocket.TextMessage, `{"type":"heartbeat"}`},
		"messages":           {websocket.TextMessage, `{"type":"message","id":"x","to":"bob","content":1}`},
		"confirmations":      {websocket.TextMessage, `{"type":"received","epoch":"e","offset":1}`},
		"what is refused":    {websocket.TextMessage, `{"type":"message","id":"x","room":"lobby","content":1}`},
		"what is no frame":   {websocket.TextMessage, `{`},
		"pings":              {websocket.PingMessage, "p"},
		"pongs nobody wants": {websocket.PongMessage, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t, gatewaytest.StartEmbedded(t), func(s *settings) { s.handler.FrameRate, s.handler.MaxBadFrames = perSecond, 0 })
			c := g.connect("alice")
			began := time.Now()
			for range sent {
				if err := c.WriteFrame(tc.kind, []byte(tc.frame)); err != nil {
					t.Fatal(err)
				}
			}
			c.say(`{"type":"leave","id":"last","room":"nowhere"}`)
			for c.next("error").ID != "last" {
			}
			if took, least := time.Since(began), time.Second*(sent-perSecond)/perSecond; took < least*9/10 {
				t.Errorf("%d frames in %v, want at least %v", sent, took, least)
			}
			for _, f := range c.Notes().Errors {
				if f.CodeText() == string(protocol.CodeLimited) {
					t.Fatalf("refused: %s", f)
				}
			}
		})
	}
}

// Bytes count as they are on the wire, the headers of frames too.
func TestBytesAreHeldToTheRate(t *testing.T) {
	const perSecond = 100_000
	for name, payload := range map[string]int{"large": 50_000, "small": 1000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t, gatewaytest.StartEmbedded(t), func(s *settings) { s.handler.ByteRate = perSecond })
			c := g.connect("alice")
			frame := fmt.Sprintf(`{"type":"received","epoch":"e","offset":1,"x":%q}`, strings.Repeat("x", payload))
			began, bytes := time.Now(), 0
			for bytes < 3*perSecond {
				c.say(frame)
				bytes += len(frame) + 8
			}
			c.wantAlive()
			if took, least := time.Since(began), time.Duration(float64(bytes-perSecond)/perSecond*float64(time.Second)); took < least*9/10 {
				t.Errorf("%d bytes in %v, want at least %v", bytes, took, least)
			}
		})
	}
}

// The fragments of one message count while they come: else one without an end would be read as fast as it is sent.
func TestFragmentsAreHeldToTheRate(t *testing.T) {
	t.Parallel()
	const perSecond, sent = 300_000, 900_000
	const owed = 2 * 64 << 10 // of the end, by what comes after it
	g := embedded(t, func(s *settings) { s.handler.ByteRate = perSecond })
	c := g.connect("alice")
	began := time.Now()
	for _, b := range [][]byte{
		gatewaytest.RawFrame(0x01, ""), bytes.Repeat(gatewaytest.RawFrame(0x00, ""), sent/6), gatewaytest.RawFrame(0x80, `{"type":"heartbeat"}`),
	} {
		if err := c.WriteRaw(b); err != nil {
			t.Fatal(err)
		}
	}
	c.next("heartbeat")
	if took, least := time.Since(began), time.Second*(sent-perSecond-owed)/perSecond; took < least*9/10 {
		t.Errorf("%d bytes of empty fragments in %v, want at least %v", sent, took, least)
	}
}

// A reader is held for a second at most. What would have to wait longer is refused, with the limit it is over and the time to wait: it is
// certainly not stored, and after that time it is taken.
func TestWhatWouldWaitTooLongIsRefused(t *testing.T) {
	t.Parallel()
	g := embedded(t, func(s *settings) { s.handler.ByteRate = 30_000 })
	c := g.connect("alice")
	large := strings.Repeat("x", 60_000)
	c.wantAlive()
	began := time.Now()
	wantAck(t, c.send("bob", large, "first"), protocol.StatusStored, 1, 0)
	wantAck(t, c.send("bob", large, "second"), protocol.StatusStored, 2, 0) // what is over is owed
	f := c.send("bob", "small", "third")
	answered := time.Now()
	if f.CodeText() != "limited" || f.Limit != "byte-rate" || f.Retry <= 0 || f.Retry > 1000 || f.ID != "third" {
		t.Fatalf("answered with %s after %v", f, answered.Sub(began))
	}
	if took := answered.Sub(began); took < holdFor {
		t.Errorf("refused after %v, before it was held", took)
	}
	<-time.After(time.Until(answered.Add(time.Duration(f.Retry) * time.Millisecond)))
	wantAck(t, c.send("bob", "small", "third"), protocol.StatusStored, 3, 0)
}

// A connection that is held hears at once that it is to end.
func TestAHeldConnectionEndsAtOnce(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.MessageRate = 1 })
	c := g.connect("alice")
	for i := range 3 {
		c.say(fmt.Sprintf(`{"type":"message","id":"m%d","to":"bob","content":1}`, i))
	}
	wantAck(t, c.answer("m0"), protocol.StatusStored, 1, 0)
	began := time.Now()
	g.stop()
	c.wantEnd(protocol.CloseDraining)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("ended after %v", took)
	}
	for _, f := range c.Notes().Acked {
		if f.ID == "m2" {
			t.Errorf("what was held was sent all the same: %s", f)
		}
	}
}

// New limits count for connections that are open: a lower one from the next frame on, a higher one at once too, and none is none.
func TestReloadedLimitsCountForOpenConnections(t *testing.T) {
	t.Parallel()
	g := embedded(t)
	c := g.connect("alice")
	rush := func(n int) time.Duration {
		began := time.Now()
		for i := range n {
			c.say(fmt.Sprintf(`{"type":"message","id":"%d-%d","to":"bob","content":1}`, began.UnixNano(), i))
		}
		c.wantAlive()
		return time.Since(began)
	}
	rush(200)
	for _, limits := range []Limits{{MessageRate: 20}, {FrameRate: 20}, {ByteRate: 4000}} {
		g.handler.Reload(limits)
		if took := rush(40); limits.ByteRate == 0 && took < 900*time.Millisecond {
			t.Errorf("with %+v, 40 messages in %v", limits, took)
		}
		if limits.ByteRate > 0 {
			if took := rush(1000); took < time.Second {
				t.Errorf("with %+v, 1040 messages in %v", limits, took)
			}
		}
		g.handler.Reload(Limits{})
		began := time.Now()
		if rush(400); time.Since(began) > patience/2 { // and twenty seconds at 20 a second
			t.Errorf("without limits, 400 messages in %v", time.Since(began))
		}
	}
	g.handler.Reload(Limits{MaxRooms: 1, MaxWatches: 1})
	c.say(`{"type":"join","id":"1","room":"a"}`)
	c.next("joined")
	c.say(`{"type":"join","id":"2","room":"b"}`)
	if f := c.wantError(protocol.CodeLimited, "2"); f.Limit != "rooms-per-connection" {
		t.Errorf("refused with %s", f)
	}
	c.say(`{"type":"watch","id":"3","users":["a","b"]}`)
	if f := c.wantError(protocol.CodeLimited, "3"); f.Limit != "watches-per-connection" {
		t.Errorf("refused with %s", f)
	}
	g.handler.Reload(Limits{MaxRooms: 2, MaxWatches: 2})
	c.say(`{"type":"join","id":"4","room":"b"}`)
	c.next("joined")
}

// Pings are never refused, so whoever sends many at once is held for as long as they take. New limits let him go, and so does the end.
func TestWhoIsHeldForHisPingsHearsOfNewLimits(t *testing.T) {
	t.Parallel()
	g := embedded(t, func(s *settings) { s.handler.FrameRate = 1 })
	flood := func(c *client) {
		t.Helper()
		if err := c.WriteRaw(bytes.Repeat(gatewaytest.RawFrame(0x89, "p"), 500)); err != nil {
			t.Fatal(err)
		}
		c.say(`{"type":"heartbeat"}`)
		if err := c.None("heartbeat", 300*time.Millisecond); err != nil {
			t.Error(err)
		}
	}
	alice := g.connect("alice")
	flood(alice)
	g.handler.Reload(Limits{})
	if f, err := alice.Next("heartbeat", patience); err != nil {
		t.Errorf("%s, %v", f, err)
	}
	g.handler.Reload(Limits{FrameRate: 1})
	flood(alice)
	g.stop()
	alice.wantEnd(protocol.CloseDraining)
}

// What a token allows is not more than the limits are now.
func TestAReloadedLimitIsTheTokensToo(t *testing.T) {
	t.Parallel()
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	c, _ := x.enter(x.token("alice", time.Hour, "limits", map[string]int{"messageRate": 1000}))
	x.handler.Reload(Limits{MessageRate: 10})
	began := time.Now()
	for i := range 20 {
		wantAck(t, c.send("bob", "hi", fmt.Sprint("m", i)), protocol.StatusStored, uint64(i+1), 0)
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("20 messages in %v at 10 a second", took)
	}
}

// One user may be the first to so many users and rooms in an hour. The next one is refused, with the time until it may be another; what is
// known already goes on, and others have their own.
func TestNewAddressesAreLimited(t *testing.T) {
	g := embedded(t, func(s *settings) { s.handler.NewAddresses, s.handler.OpenRooms = 3, true })
	alice, carol := g.connect("alice"), g.connect("carol")
	wantAck(t, alice.send("bob", "x", "m1"), protocol.StatusStored, 1, 0)
	wantAck(t, alice.send("dave", "x", "m2"), protocol.StatusStored, 1, 0)
	alice.say(`{"type":"message","id":"m3","room":"lobby","content":1}`)
	wantAck(t, alice.answer("m3"), protocol.StatusStored, 1, 0)
	f := alice.send("erin", "x", "m4")
	if f.CodeText() != "limited" || f.Limit != "new-addresses" || f.Retry < 1_190_000 || f.Retry > 1_200_000 || f.ID != "m4" {
		t.Errorf("answered with %s", f)
	}
	wantAck(t, alice.send("bob", "x", "m5"), protocol.StatusStored, 2, 0)
	wantAck(t, carol.send("erin", "x", "m6"), protocol.StatusStored, 1, 0)
	g.handler.Reload(Limits{})
	wantAck(t, alice.send("frank", "x", "m7"), protocol.StatusStored, 1, 0)
}
