//go:build !race

package gatewaytest_test

import (
	"fmt"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

// A full room over three gateways, of which two are killed one after the other while somebody speaks: each member gets each
// message once and in order, those of a killed gateway too, who come back to the others all at once.
func TestFaultFullRoom(t *testing.T) {
	type size struct{ members, perSecond int }
	sizes := []size{{300, 50}}
	if gatewaytest.FullLength() {
		sizes = []size{{1000, 50}, {10000, 4}}
	}
	for _, s := range sizes {
		t.Run(fmt.Sprintf("%d members", s.members), func(t *testing.T) {
			redis := gatewaytest.StartRedis(t)
			var gateways []*gatewaytest.Gateway
			args := roomArgs{Members: s.members}
			for _, name := range []string{"a", "b", "c"} {
				g := gatewaytest.StartGateway(t, redis, gatewaytest.Options{Name: name, Flags: unlimited})
				gateways, args.Addrs = append(gateways, g), append(args.Addrs, g.Addr)
			}
			l := &roomLoad{}
			_, err := l.connect(args)
			must(t, err)
			defer l.close()
			_, err = l.start(roomPace{PerSecond: s.perSecond})
			must(t, err)
			// everybody waits until all have what was sent so far, and so many messages more.
			everybody := func(more int) {
				t.Helper()
				want := (l.sent.Load() + uint64(more)) * uint64(s.members)
				must(t, gatewaytest.Poll(time.Minute, func() error {
					c, err := l.count(nothing{})
					if err == nil && c.Delivered < want {
						err = fmt.Errorf("%d deliveries of %d", c.Delivered, want)
					}
					return err
				}))
			}
			everybody(10)
			moved := 0
			for _, g := range gateways[1:] {
				began := time.Now()
				g.Kill()
				everybody(10)
				t.Logf("gateway %s killed: everybody has everything again after %v", g.Name, time.Since(began).Round(time.Millisecond))
				must(t, g.Restart())
				if n := int(l.resumed.Load()); n-moved < s.members/3 {
					t.Errorf("gateway %s was killed and %d members came back elsewhere", g.Name, n-moved)
				} else {
					moved = n
				}
			}
			c, err := l.stop(nothing{})
			must(t, err)
			if !c.complete() {
				t.Errorf("of %d sent, %d were answered, and %d arrived at %d members", c.Sent, c.Answered, c.Delivered, s.members)
			}
			t.Logf("%d messages, %d deliveries in order and once, %d came back; sent to the last member's p50 %v, p99 %v", c.Sent, c.Delivered, moved, c.P50, c.P99)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
