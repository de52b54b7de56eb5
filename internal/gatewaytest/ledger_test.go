//go:build !race

package gatewaytest

import (
	"testing"
	"time"
)

// fast are gateways that let people hurry, and judge each other sooner than usual.
var fast = []string{
	"--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", "--limits.connect-rate-per-ip=0", "--limits.connect-rate=0",
	"--cluster.pulse-interval=500ms", "--cluster.lease=1500ms", "--cluster.quiet=1500ms", "--cluster.reap-after=1s",
}

func startGateways(t testing.TB, r *Redis, flags []string, names ...string) (gateways []*Gateway, urls []string) {
	t.Helper()
	for _, name := range names {
		g := StartGateway(t, r, Options{Name: name, Flags: flags})
		gateways, urls = append(gateways, g), append(urls, g.WS())
	}
	return gateways, urls
}

// wantShown waits until people were shown more messages: the faults of a test should meet talk, not silence.
func wantShown(t testing.TB, l *Ledger, more int) {
	t.Helper()
	if err := l.WaitShown(more, 30*time.Second); err != nil {
		t.Fatal(err)
	}
}

// People talk over two gateways, to each other and in a room; one leaves and comes back, one moves on. Everything is there
// afterwards, also on bob's tablet, which trusts its cursor, and in the copies that alice keeps.
func TestPeopleKeepALedger(t *testing.T) {
	_, urls := startGateways(t, Shared(t, Standalone), fast, "a", "b")
	l := NewLedger(t, urls...)
	hall := []string{"hall"}
	alice, bob, carol := l.Join("alice", "rooms", hall), l.Join("bob", "deviceId", "phone", "rooms", hall), l.Join("carol", "rooms", hall)
	tablet := l.Join("bob", "deviceId", "tablet", "rooms", hall, "byCursor", true)
	l.Watch(100 * time.Millisecond)
	alice.Talk(Talk{To: []string{"bob", "room:hall", "carol"}, Rate: 200, Window: 8, Copies: 2})
	carol.Talk(Talk{To: []string{"bob"}, Count: 300, Window: 16, Pad: 100})
	tablet.Talk(Talk{To: []string{"alice", "room:hall"}, Rate: 50, Window: 8, Copies: 2})
	wantShown(t, l, 300)
	bob.Leave()
	wantShown(t, l, 200)
	bob.Return()
	wantShown(t, l, 100)
	tablet.Move(1)
	wantShown(t, l, 100)
	alice.Leave()
	wantShown(t, l, 20)
	alice.Move(1)
	if err := l.Settle(30 * time.Second); err != nil {
		t.Error(err)
	}
	v := l.Check()
	v.Want(t)
	t.Log(v)
	if v.Sightings == 0 || v.Words < 3 {
		t.Errorf("the observer saw %d states and was told %d", v.Sightings, v.Words)
	}
	if v.Copies == 0 || v.Repeated == 0 {
		t.Error("there were no copies, or nothing came again for the tablet's cursor")
	}
	for _, r := range l.Records() {
		if r.Name == "carol" && len(r.Sent) != 300 {
			t.Errorf("carol sent %d messages, want 300", len(r.Sent))
		}
	}
}

// A gateway is killed under them, again and again.
func TestPeopleSurviveAKilledGateway(t *testing.T) {
	gateways, urls := startGateways(t, Shared(t, Standalone), fast, "a", "b")
	l := NewLedger(t, urls...)
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		l.Join(name)
	}
	for _, p := range l.people {
		p.Talk(Talk{To: []string{"alice", "bob", "carol", "dave"}, Rate: 100, Window: 8})
	}
	for _, g := range gateways {
		wantShown(t, l, 200)
		if err := g.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Settle(30 * time.Second); err != nil {
		t.Error(err)
	}
	v := l.Check()
	v.Want(t)
	t.Log(v)
}
