package presence

import (
	"context"
	"fmt"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
)

// Somebody types FLUSHALL. Within seconds everyone is registered again, with the fence he had, and for the outside
// nothing has happened: not one event.
func TestFlushAllIsHealedWithTheSameFencesAndWithoutEvents(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a, b := f.gateway("a"), f.gateway("b")
		phone := a.connect("alice", "phone")
		desktop := b.connect("alice", "desktop")
		a.connectMany(users(300)...)
		fences := []uint64{phone.Fence(), desktop.Fence()}
		f.wantSound()

		began := time.Now()
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.eventually(func() error {
			if n := a.registry.Stats().Again; n < 301 {
				return fmt.Errorf("a registered %d of 301 again", n)
			}
			return nil
		})
		f.wantAt("alice", phone, desktop)
		f.wantSound()
		t.Logf("everybody was back after %v", time.Since(began).Round(time.Millisecond))
		if got := []uint64{phone.Fence(), desktop.Fence()}; got[0] != fences[0] || got[1] != fences[1] {
			t.Errorf("fences are %v, were %v", got, fences)
		}
		f.wantState("alice", "online")
		for _, user := range append(users(300), "alice") {
			if got := f.story(user); got != "" {
				t.Fatalf("after the flush %s had the events %q", user, got)
			}
		}
		// What happens from then on is told again.
		a.disconnect(phone)
		b.disconnect(desktop)
		f.wantStory("alice", "disconnect disconnect offline")
		for _, g := range []*gateway{a, b} {
			if n := len(g.verdicts); n != 0 {
				t.Errorf("%s heard %d verdicts", g.id, n)
			}
		}
	})
}

// While everyone registers again, one has left already: nobody brings him back.
func TestAConnectionThatEndsDuringTheFlushStaysAway(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		for i := range 20 {
			e := a.connect("alice", "")
			if err := r.FlushAll(); err != nil {
				t.Fatal(err)
			}
			f.outlast(time.Duration(i) * 10 * time.Millisecond) // before, while and after it is registered again
			a.disconnect(e)
		}
		f.wantSound()
		if n, err := f.client.Exists(context.Background(), keyspace.Conns("alice")).Result(); n != 0 || err != nil {
			t.Errorf("alice is still there: %d, %v", n, err)
		}
	})
}
