//go:build !race

package gatewaytest

import (
	"fmt"
	"slices"
	"testing"
)

// A gateway is killed as soon as a backend was told that what it bound to the connections there is kept: each of their ends tells it, once. What was told of
// their beginning stays as it was, and a connection that nobody touched ends as it began.
func TestAKilledGatewaysConnectionsEndWithWhatWasBoundLast(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r, to := StartKind(t, kind), StartReceiver(t)
			flags := append(slices.Clone(swift), sinksFile(t, webhookSink(to)))
			a, b := StartGateway(t, r, Options{Name: "a", Flags: flags}), StartGateway(t, r, Options{Name: "b", Flags: flags})
			want := make(map[string]string)
			var conns []string
			for i := range 20 {
				c := Connect(t, b.WS(), fmt.Sprint("user", i), "meta", map[string]any{"n": 1})
				conns = append(conns, c.ConnID())
				want[c.ConnID()] = `connect {"n":1} disconnect gateway_lost {"n":1,"set":true}`
			}
			untouched := Connect(t, b.WS(), "untouched", "meta", map[string]any{"n": 1})
			want[untouched.ConnID()] = `connect {"n":1} disconnect gateway_lost {"n":1}`
			for _, c := range conns {
				a.ordered(t, 200, "PATCH", "/connections/"+c, `{"meta":{"set":true}}`, nil)
			}
			b.Kill()
			if err := Poll(10*Deadline, func() error {
				events, _, err := to.Once()
				if err != nil {
					return stop{err}
				}
				got := make(map[string]string)
				for _, e := range events {
					switch e.Type {
					case "connect":
						got[e.Conn] += fmt.Sprintf("connect %s", e.Meta)
					case "disconnect":
						got[e.Conn] += fmt.Sprintf(" disconnect %s %s", e.Cause, e.Meta)
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					return fmt.Errorf("got %v, want %v", got, want)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}
