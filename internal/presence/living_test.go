//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// A gateway is killed: it is named as dead until it is reaped. What it held is still left to be seen, and so is who was told to go and has not gone.
func TestTheDeadAndTheRemainingAreNamed(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		slow := func(c *Config) { c.ReapAfter *= 100 }
		a, b := f.gateway("a", slow), f.gateway("b", slow)
		a.obeys = false
		ctx := context.Background()
		marked, there := a.connect("carol", "desktop"), b.connect("carol", "phone")
		if k, err := b.registry.Kick(ctx, "carol", Order{Conn: marked.Conn, Code: protocol.CloseKicked, By: "ops"}); err != nil || k.Marked != 1 {
			t.Fatal(k, err)
		}
		living, dead, err := a.registry.Gateways(ctx)
		if err != nil || len(living) != 2 || len(dead) != 0 || a.registry.IsDead(b.id) {
			t.Errorf("alive %v, dead %v, %v", living, dead, err)
		}
		b.stop()
		f.eventually(func() error {
			living, dead, err := a.registry.Gateways(ctx)
			if err != nil || !slices.Equal(living, []protocol.GatewayID{a.id}) || !slices.Equal(dead, []protocol.GatewayID{b.id}) || !a.registry.IsDead(b.id) {
				return fmt.Errorf("alive %v, dead %v, %v", living, dead, err)
			}
			return nil
		})
		conns := []protocol.ConnID{marked.Conn, there.Conn, "nobody"}
		left, err := a.registry.Left(ctx, "carol", conns)
		if err != nil || len(left) != 2 || left[marked.Conn] != a.id || left[there.Conn] != b.id {
			t.Errorf("left are %v, %v", left, err)
		}
		a.disconnect(marked)
		f.eventually(func() error {
			left, err := a.registry.Left(ctx, "carol", conns)
			if err != nil || len(left) != 1 || left[there.Conn] != b.id {
				return fmt.Errorf("left are %v, %v", left, err)
			}
			return nil
		})
		b.run() // it was only paused
	})
}
