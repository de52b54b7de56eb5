//go:build !race

package gatewaytest

import (
	"fmt"
	"slices"
	"testing"
)

// A backend ends alice's connections on three gateways with a code and a reason of its own: her clients are told, and so is whoever gets the events.
// Who was moved by order, off a gateway that is drained or has more than the others, neither said goodbye nor dropped out.
func TestEventsSayWhoWasSentAwayAndWhoWasMoved(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r, to := StartKind(t, kind), StartReceiver(t)
			flags := append(slices.Clone(swift), "--drain.delay=0s", "--drain.window=200ms", sinksFile(t, webhookSink(to)))
			var gs []*Gateway
			for _, name := range []string{"a", "b", "c"} {
				gs = append(gs, StartGateway(t, r, Options{Name: name, Flags: flags}))
			}
			want := make(map[string]string) // connection -> how it ends
			var alices []*Client
			for i, g := range gs {
				c := Connect(t, g.WS(), "alice")
				alices = append(alices, c)
				want[c.ConnID()] = "kicked goodbye 4901 exam over: grüße none"
				want[Connect(t, gs[1].WS(), fmt.Sprint("drained", i)).ConnID()] = "draining moved 4000  "
			}
			var got disconnected
			gs[2].ordered(t, 200, "POST", "/users/alice/disconnect", `{"code":4901,"reason":"exam over: grüße"}`, &got)
			if got.Marked != 3 || got.Gone != 3 || len(got.Missing) != 0 {
				t.Errorf("got %+v", got)
			}
			for _, c := range alices {
				if ended, err := c.WaitEnd(4 * Deadline); err != nil || ended.Code != 4901 || ended.Text != "exam over: grüße" || ended.Closing == nil || ended.Closing.Reconnect {
					t.Errorf("%v, %v", ended, err)
				}
			}
			gs[0].ordered(t, 200, "POST", "/gateways/"+gs[1].id(t)+"/drain", "", nil)
			gs[2].waitLoad(t, gs[1].id(t), "drained", 0)
			for i := range 6 {
				c := Connect(t, gs[2].WS(), fmt.Sprint("many", i))
				if i < 3 { // of six and none, on two that take clients, the three that came first move
					want[c.ConnID()] = "rebalance moved 4005  "
				}
			}
			var plan rebalanced
			gs[0].ordered(t, 200, "POST", "/rebalance", `{"floor":0,"tolerance":0}`, &plan)
			if plan.Mean != 3 || plan.Shed != 3 {
				t.Errorf("planned %+v", plan)
			}
			if err := Poll(6*Deadline, func() error {
				events, _, err := to.Once()
				if err != nil {
					t.Fatal(err)
				}
				ends := make(map[string]string)
				for _, e := range events {
					if e.Type == "disconnect" {
						ends[e.Conn] = fmt.Sprintf("%s %s %d %s %s", e.Cause, e.Kind, e.Code, e.Reason, e.By)
					}
				}
				if fmt.Sprint(ends) != fmt.Sprint(want) {
					return fmt.Errorf("got %q, want %q", ends, want)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}
