//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

func withClasses(policy string, list ...string) func(*Config) {
	return func(c *Config) {
		c.Classes, _ = ParseClasses(list)
		c.OldestStay = policy == "oldest"
	}
}

// connectAs registers a connection of a class of devices.
func (g *gateway) connectAs(user string, class protocol.ClassID) *Entry {
	g.fleet.t.Helper()
	e := g.entry(user, "")
	e.Class = class
	g.register(e)
	return e
}

// wantTaken has a connection refused because another has its place.
func (g *gateway) wantTaken(user string, class protocol.ClassID, by *Entry) {
	g.fleet.t.Helper()
	e := g.entry(user, "")
	e.Class = class
	_, err := g.registry.Register(context.Background(), e)
	no := (*Refusal)(nil)
	if !errors.As(err, &no) || !errors.Is(err, ErrTaken) || no.By != by.Conn || no.At != by.Since {
		g.fleet.t.Errorf("registered with %+v (%v), want it taken by %s since %d", no, err, by.Conn, by.Since)
	}
}

// One phone and one desktop, anywhere in the cluster: a new phone takes the old one's place, and the desktop notices nothing.
func TestInAFullClassTheNewestWins(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withClasses("newest", "phone=1", "desktop=2", "tv=0"))
		a, b := f.gateway("a"), f.gateway("b")
		phone := a.connectAs("alice", "phone")
		desktop, laptop := b.connectAs("alice", "desktop"), a.connectAs("alice", "desktop")
		f.wantAt("alice", phone, desktop, laptop)

		other := b.connectAs("alice", "phone")
		a.wantReplaced(phone, other)
		third := a.connectAs("alice", "desktop")
		b.wantReplaced(desktop, third)
		f.wantAt("alice", other, laptop, third)

		// Nobody else's phone, and no class without a limit.
		bobs := a.connectAs("bob", "phone")
		tvs := []*Entry{a.connectAs("bob", "tv"), b.connectAs("bob", "tv")}
		f.wantAt("bob", append(tvs, bobs)...)
		f.wantAt("alice", other, laptop, third)
	})
}

// Who has the place keeps it: a second phone is told who that is, and leaves nothing behind.
func TestInAFullClassTheOldestStay(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withClasses("oldest", "phone=1", "desktop=2"))
		a, b := f.gateway("a"), f.gateway("b")
		phone := a.connectAs("alice", "phone")
		desktop, laptop := b.connectAs("alice", "desktop"), a.connectAs("alice", "desktop")
		b.wantTaken("alice", "phone", phone)
		a.wantTaken("alice", "phone", phone)
		a.wantTaken("alice", "desktop", laptop)
		f.wantAt("alice", phone, desktop, laptop)
		f.wantStory("alice", "connect online connect connect")

		// The place is free again with the end of the connection.
		a.disconnect(phone)
		f.eventually(func() error { return a.at("alice", desktop, laptop) })
		f.wantAt("alice", desktop, laptop, b.connectAs("alice", "phone"))
	})
}

// Twenty phones come at the same moment, through three gateways. One has the place in the end, by either policy, and every
// other knows that it has not.
func TestManyAtOnceForOnePlace(t *testing.T) {
	for _, policy := range []string{"newest", "oldest"} {
		t.Run(policy, func(t *testing.T) {
			eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
				f := newFleet(t, r, withClasses(policy, "phone=1"))
				gs := []*gateway{f.gateway("a"), f.gateway("b"), f.gateway("c")}
				var mu sync.Mutex
				var registered []*Entry
				taken := 0
				var coming sync.WaitGroup
				for i := range 20 {
					g := gs[i%3]
					coming.Go(func() {
						e := g.entry("alice", "")
						e.Class = "phone"
						_, err := g.tryRegister(e)
						mu.Lock()
						defer mu.Unlock()
						switch {
						case err == nil:
							registered = append(registered, e)
						case errors.Is(err, ErrTaken):
							taken++
						default:
							t.Error(err)
						}
					})
				}
				coming.Wait()
				if policy == "oldest" && (len(registered) != 1 || taken != 19) || policy == "newest" && len(registered) != 20 {
					t.Errorf("%d registered, %d found the place taken", len(registered), taken)
				}
				slices.SortFunc(registered, func(x, y *Entry) int { return int(int64(x.Fence()) - int64(y.Fence())) })
				f.wantAt("alice", registered[len(registered)-1])
			})
		})
	}
}

// What stands in the way but isn't there: a connection of a killed gateway, and one that was silent for 1.5 heartbeats, keep
// the place from nobody.
func TestGhostsKeepNoPlace(t *testing.T) {
	for _, policy := range []string{"newest", "oldest"} {
		t.Run(policy, func(t *testing.T) {
			eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
				f := newFleet(t, r, withClasses(policy, "phone=1", "desktop=1"), func(c *Config) { c.ReapAfter = time.Hour })
				// It doesn't run, so that nothing refreshes the silent one; its lease is long enough all the same.
				a := f.prepare("a", func(c *Config) { c.Lease = time.Hour })
				if err := a.registry.Join(context.Background()); err != nil {
					t.Fatal(err)
				}
				b, other := f.gateway("b"), f.gateway("other")
				ghost, silent := b.connectAs("alice", "phone"), a.connectAs("alice", "desktop")
				f.shiftExpiry(silent, -(f.cfg.Heartbeat*3/2 + time.Second).Milliseconds())
				b.stop()
				f.eventually(func() error { return other.at("alice", silent) })
				var phone *Entry
				f.eventually(func() (err error) { // nobody is judged in a quiet time, which a busy machine may cause
					e := other.entry("alice", "")
					e.Class = "phone"
					if _, err = other.tryRegister(e); err == nil {
						phone = e
					}
					return err
				})
				f.wantMarked("alice", ghost)
				var desktop *Entry
				f.eventually(func() (err error) {
					e := other.entry("alice", "")
					e.Class = "desktop"
					if _, err = other.tryRegister(e); err == nil {
						desktop = e
					}
					return err
				})
				f.wantMarked("alice", ghost, silent)
				f.eventually(func() error { return other.at("alice", phone, desktop) })
			})
		})
	}
}

// A device that comes as another class than before, and finds no place there, is refused. What it had until then is not taken from it.
func TestWhoFindsNoPlaceKeepsWhatHeHad(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents, withClasses("oldest", "phone=1", "tablet=1"))
		a, b := f.gateway("a"), f.gateway("b")
		phone, tablet := a.entry("alice", "d"), b.connectAs("alice", "tablet")
		phone.Class = "phone"
		a.register(phone)
		e := b.entry("alice", "d")
		e.Class = "tablet"
		if _, err := b.registry.Register(context.Background(), e); !errors.Is(err, ErrTaken) {
			t.Errorf("registered: %v", err)
		}
		f.wantMarked("alice")
		f.wantAt("alice", phone, tablet)
	})
}

// Redis was away for longer than a heartbeat: nobody could refresh. The oldest stay all the same.
func TestSilenceInQuietTimeCostsNobodyHisPlace(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withClasses("oldest", "phone=1"))
		// It doesn't run, so that nothing refreshes the phone.
		a := f.prepare("a", func(c *Config) { c.Lease = time.Hour })
		if err := a.registry.Join(context.Background()); err != nil {
			t.Fatal(err)
		}
		phone := a.connectAs("alice", "phone")
		f.shiftExpiry(phone, -(f.cfg.Heartbeat*3/2 + time.Second).Milliseconds())
		quiet := time.Now().Add(time.Hour).UnixMilli()
		if err := f.client.HSet(context.Background(), keyspace.Line(f.group("alice")), "quiet", quiet).Err(); err != nil {
			t.Fatal(err)
		}
		f.gateway("b").wantTaken("alice", "phone", phone)
		f.wantMarked("alice")
	})
}

// Redis lost a phone, and another one came meanwhile. When the first registers again, the place goes to whom the policy gives
// it, as if nothing had been lost.
func TestWhoRegistersAgainHasTheRightsOfHisFence(t *testing.T) {
	for _, policy := range []string{"newest", "oldest"} {
		t.Run(policy, func(t *testing.T) {
			eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
				f := newFleet(t, r, withClasses(policy, "phone=1"))
				a, b := f.gateway("a"), f.gateway("b")
				first := a.connectAs("alice", "phone")
				f.lose(first)
				second := b.connectAs("alice", "phone")
				f.eventually(func() error {
					a.registry.Refresh(first)
					loser, g := first, a
					if policy == "oldest" {
						loser, g = second, b
						b.registry.Refresh(second)
					}
					if v, told := g.verdict(loser); !told || v.Code != protocol.CloseReplaced || v.At == 0 {
						return fmt.Errorf("%s was told %+v", loser.Conn, v)
					}
					return nil
				})
				if policy == "oldest" {
					f.wantAt("alice", first)
				} else {
					f.wantAt("alice", second)
				}
			})
		})
	}
}

// wantMarked has exactly these told to go.
func (f *fleet) wantMarked(user string, want ...*Entry) {
	f.t.Helper()
	var ids []protocol.ConnID
	for _, e := range want {
		ids = append(ids, e.Conn)
	}
	slices.Sort(ids)
	if got := f.marked(user); !slices.Equal(got, ids) {
		f.t.Errorf("told to go: %v, want %v", got, ids)
	}
}

func TestClassesAreRead(t *testing.T) {
	got, err := ParseClasses([]string{"phone=1", "desk top=0"})
	if err != nil || len(got) != 2 || got["phone"] != 1 {
		t.Errorf("%v, %v", got, err)
	}
	for _, wrong := range []string{"phone", "phone=", "phone=x", "phone=-1", "=1", "a\n=1", "phone=1=2"} {
		if got, err := ParseClasses([]string{wrong}); err == nil {
			t.Errorf("%q is read as %v", wrong, got)
		}
	}
}

// Who registers again and lost his place is told when the other took it, not when he heard of it.
func TestWhoLostHisPlaceHearsWhenItWasTaken(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withClasses("newest", "phone=1"))
		a, b := f.gateway("a"), f.gateway("b")
		for user, device := range map[string]string{"alice": "", "bob": "phone-1"} { // his class was taken, or his device
			connect := func(g *gateway) *Entry {
				e := g.entry(user, device)
				e.Class = "phone"
				g.register(e)
				return e
			}
			first := connect(a)
			f.lose(first)
			second := connect(b)
			f.outlast(50 * time.Millisecond)
			if v := a.wantVerdict(first); v.By != string(second.Conn) || v.At != int64(second.Fence()/1000) {
				t.Errorf("%s was told %+v, want replaced by %s at %d", user, v, second.Conn, second.Fence()/1000)
			}
		}
	})
}
