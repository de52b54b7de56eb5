//go:build !secondpass

package presence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// found asks a gateway for a connection.
func (g *gateway) found(id protocol.ConnID) (string, error) {
	u, l, ok, err := g.registry.Find(context.Background(), id)
	if err != nil || !ok {
		return "", err
	}
	return fmt.Sprintf("%s %s %s %s", u, l.Gateway, l.Conn, l.Device), nil
}

func (g *gateway) wantFound(id protocol.ConnID, want string) {
	g.fleet.t.Helper()
	g.fleet.eventually(func() error {
		if got, err := g.found(id); err != nil || got != want {
			return fmt.Errorf("%s is %q, %v, want %q", id, got, err, want)
		}
		return nil
	})
}

// Any gateway finds any connection by its id alone, and none that has ended, was told to go, or was on a gateway that died. Names of
// what a gateway holds beside connections are no connections.
func TestAConnectionIsFoundByItsIDAlone(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		all := a.connectMany(users(20)...)
		for _, e := range all {
			for _, g := range []*gateway{a, b} {
				g.wantFound(e.Conn, fmt.Sprintf("%s a-1 %s ", e.User, e.Conn))
			}
		}
		phone := b.connect("alice", "phone")
		a.wantFound(phone.Conn, fmt.Sprintf("alice b-1 %s phone", phone.Conn))

		a.disconnect(all[0])
		b.wantFound(all[0].Conn, "")
		for _, id := range []protocol.ConnID{"nobody", "", "r:lobby", "w:alice", "alice"} {
			b.wantFound(id, "")
		}

		a.stop()
		b.wantFound(all[1].Conn, "")
		f.eventually(func() error {
			if dead := b.registry.Dead(); len(dead) > 0 && !slices.Equal(dead, []protocol.GatewayID{a.id}) {
				return fmt.Errorf("dead are %v", dead)
			}
			if n := f.client.HLen(context.Background(), keyspace.Own(b.registry.groupOf(all[1].User).name, a.id)).Val(); n > 0 {
				return fmt.Errorf("%d are not reaped", n)
			}
			if dead := b.registry.Dead(); len(dead) != 0 {
				return fmt.Errorf("%v are dead still", dead)
			}
			return nil
		})
	})
}

// A gateway whose lease ended is named until it is reaped.
func TestADeadGatewayIsNamedUntilItIsReaped(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, func(c *Config) { c.ReapAfter = time.Hour })
		a, b := f.gateway("a"), f.gateway("b")
		e := a.connect("alice", "")
		if dead := b.registry.Dead(); len(dead) != 0 {
			t.Fatalf("%v are dead", dead)
		}
		a.stop()
		f.eventually(func() error {
			if dead := b.registry.Dead(); !slices.Equal(dead, []protocol.GatewayID{a.id}) {
				return fmt.Errorf("dead are %v", dead)
			}
			return nil
		})
		b.wantFound(e.Conn, "")
		a.run()
		f.eventually(func() error {
			if dead := b.registry.Dead(); len(dead) != 0 {
				return fmt.Errorf("%v are dead", dead)
			}
			return nil
		})
		b.wantFound(e.Conn, fmt.Sprintf("alice a-1 %s ", e.Conn))
	})
}

// A Redis that lost everything doesn't know the connection: until the gateways have told it again, that it isn't there is a guess.
func TestAConnectionThatRedisForgotIsNotSaidToBeGone(t *testing.T) {
	eachRealRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		e := a.connect("alice", "")
		b.wantFound(e.Conn, fmt.Sprintf("alice a-1 %s ", e.Conn))
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.eventually(func() error {
			// What was lost before the first pulse after it nobody can know.
			v := b.registry.groupOf("alice").view.Load()
			got, err := b.found(e.Conn)
			if v.quiet != 0 && got == "" && !errors.Is(err, ErrUnsure) {
				t.Fatalf("in quiet time it isn't there: %v", err)
			}
			if got == "" {
				return fmt.Errorf("it isn't there: %v", err)
			}
			return nil
		})
	})
}
