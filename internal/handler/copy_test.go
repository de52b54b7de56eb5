package handler

import (
	"strconv"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// Alice writes from her laptop and keeps a copy: her phone has it too, under a position of her own log, marked as her own. A repeat adds
// nothing to either log. The same id to somebody else is another message, with a copy of its own.
func TestCopiesReachAllDevicesOfTheSender(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		g := newGateway(t, r)
		laptop, phone, bob := g.connect("alice"), g.connect("alice"), g.connect("bob")
		first := laptop.send("bob", "hi", "m1", "copy", true)
		wantAck(t, first, protocol.StatusRouted, 1, 1)
		if again := phone.send("bob", "hi", "m1", "copy", true); string(again.Raw) != string(first.Raw) {
			t.Errorf("the repeat got %s, the first %s", again, first)
		}
		wantAck(t, laptop.send("carol", "hi", "m1", "copy", true), protocol.StatusStored, 1, 0)
		wantAck(t, laptop.send("bob", "no copy", "m2"), protocol.StatusRouted, 2, 1)
		wantAck(t, laptop.send("bob", "end", "m3", "copy", true), protocol.StatusRouted, 3, 1)

		for _, c := range []*client{laptop, phone} {
			for i, want := range []struct{ id, to string }{{"m1", "bob"}, {"m1", "carol"}, {"m3", "bob"}} {
				m := c.next("message")
				if !m.Own || m.ID != want.id || string(m.To) != strconv.Quote(want.to) || m.Sender() != "alice" || m.Offset != uint64(i+1) {
					t.Errorf("alice's copy %d is %s, want %s to %s", i+1, m, want.id, want.to)
				}
			}
		}
		for i, id := range []string{"m1", "m2", "m3"} {
			if m := bob.next("message"); m.Own || m.ID != id || m.Offset != uint64(i+1) {
				t.Errorf("bob got %s, want %s as message %d", m, id, i+1)
			}
		}
		if s := g.router.Stats(); s.Conflicts != 0 {
			t.Errorf("%d conflicts", s.Conflicts)
		}
	})
}

// A message to oneself is in the own log already: one message, marked as the copy it is. What is refused leaves no copy.
func TestCopiesThatAreNone(t *testing.T) {
	g := embedded(t)
	alice := g.connect("alice")
	wantAck(t, alice.send("alice", "note", "m1", "copy", true), protocol.StatusRouted, 1, 1)
	wantAck(t, alice.send("bob", "hi", "m2"), protocol.StatusStored, 1, 0)
	if f := alice.send("bob", "ho", "m2", "copy", true); f.CodeText() != string(protocol.CodeConflict) || f.ID != "m2" {
		t.Errorf("other content got %s", f)
	}
	wantAck(t, alice.send("alice", "end", "m3"), protocol.StatusRouted, 2, 1)
	for i, own := range []bool{true, false} {
		if m := alice.next("message"); m.Own != own || m.Offset != uint64(i+1) {
			t.Errorf("alice got %s, want offset %d and own %v", m, i+1, own)
		}
	}
}

// Messages whose answers carry copies use the same window as others, and give their place back.
func TestCopiesTakeOnePlaceInTheWindow(t *testing.T) {
	g := embedded(t, func(s *settings) { s.conns.InFlight = 2 })
	alice := g.connect("alice")
	const count = 50
	for i := range count {
		if _, err := alice.Send("bob", i, "", "copy", true); err != nil {
			t.Fatal(err)
		}
	}
	for i := range count {
		if f := alice.next("ack"); f.Offset != uint64(i+1) {
			t.Fatalf("ack %d is %s", i+1, f)
		}
	}
	for i := range count {
		if m := alice.next("message"); m.Offset != uint64(i+1) || !m.Own {
			t.Fatalf("copy %d is %s", i+1, m)
		}
	}
}
