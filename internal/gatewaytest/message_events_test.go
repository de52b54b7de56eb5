//go:build !race

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whoever hears of messages hears from whom, to whom, by which connection of which device, where each stands and whether somebody was there to get it: of
// what clients say to a user and in a room, and of what a backend sends. Of what isn't stored, and of a sender's own copy, there is no word.
func TestEventsOfMessagesSayWhoAndWhere(t *testing.T) {
	t.Parallel()
	for _, content := range []bool{true, false} {
		t.Run(map[bool]string{true: "content", false: "envelope"}[content], func(t *testing.T) {
			t.Parallel()
			to := StartReceiver(t)
			sink := strings.Replace(webhookSink(to), "{name: web", "{name: web, types: [message]", 1)
			g := StartGateway(t, StartEmbedded(t), Options{Flags: []string{
				sinksFile(t, sink), "--events.messages=" + map[bool]string{true: "content", false: "envelope"}[content],
			}})
			bob := Connect(t, g.WS(), "bob", "rooms", map[string]any{"lobby": nil})
			alice := Connect(t, g.WS(), "alice", "deviceId", "phone", "meta", json.RawMessage(`{"contestId": 42}`), "rooms", map[string]any{"lobby": nil})
			say := func(frame string) {
				t.Helper()
				if err := alice.WriteFrame(1, []byte(frame)); err != nil {
					t.Fatal(err)
				}
				if _, err := alice.Next("ack", Deadline); err != nil {
					t.Fatal(err)
				}
			}
			say(`{"type":"message","id":"m1","to":"bob","content":{"text":"hi <bob>"},"copy":true}`)
			say(`{"type":"message","id":"m1","to":"bob","content":{"text":"hi <bob>"},"copy":true}`)
			say(`{"type":"message","id":"m2","room":"lobby","content":null}`)
			say(`{"type":"message","id":"m3","to":"nobody","content":[1]}`)
			say(`{"type":"message","id":"m4","to":"bob","content":"typing","ephemeral":true}`)
			g.ordered(t, 200, "POST", "/messages", `{"to":["bob"],"rooms":["lobby"],"content":7,"id":"m5","from":"shop"}`, nil)
			g.ordered(t, 200, "POST", "/messages", `{"everyone":true,"content":7}`, nil)
			g.ordered(t, 200, "PATCH", "/connections/"+alice.ConnID(), `{"meta":{"contestId":null,"seat":12}}`, nil)
			say(`{"type":"message","id":"m6","to":"bob","content":6}`)

			by := Received{Conn: alice.ConnID(), Device: "phone", Meta: json.RawMessage(`{"contestId":42}`)}
			seated := by
			seated.Meta = json.RawMessage(`{"seat":12}`)
			message := func(e Received, user, id, to, room, status string, offset uint64, devices int, content string) Received {
				e.Type, e.User, e.Message, e.To, e.Room, e.Status, e.Offset, e.Devices, e.Content = "message", user, id, to, room, status, offset, devices, json.RawMessage(content)
				return e
			}
			shop := Received{By: "none"} // no key is needed on this machine
			want := map[string]Received{
				"m1 bob":    message(by, "alice", "m1", "bob", "", "routed", 1, 1, `{"text":"hi <bob>"}`),
				"m2 lobby":  message(by, "alice", "m2", "", "lobby", "routed", 1, 0, `null`),
				"m3 nobody": message(by, "alice", "m3", "nobody", "", "stored", 1, 0, `[1]`),
				"m5 bob":    message(shop, "shop", "m5", "bob", "", "routed", 2, 1, `7`),
				"m6 bob":    message(seated, "alice", "m6", "bob", "", "routed", 3, 1, `6`),
				"m5 lobby":  message(shop, "shop", "m5", "", "lobby", "routed", 2, 0, `7`),
			}
			var got map[string]Received
			if err := Poll(Deadline, func() error {
				events, _, err := to.Once()
				if err != nil {
					t.Fatal(err)
				}
				got = make(map[string]Received)
				for _, e := range events {
					if !strings.HasPrefix(e.ID, "all-m") || e.N == 0 || e.Epoch == "" || e.Ms == 0 || e.Ts == 0 || e.Gateway != g.id(t) {
						t.Fatalf("%+v", e)
					}
					key := e.Message + " " + e.To + e.Room
					e.ID, e.N, e.Epoch, e.Ms, e.Ts, e.Gateway, e.At = "", 0, "", 0, 0, "", want[key].At
					got[key] = e
				}
				if len(got) < len(want) {
					return fmt.Errorf("%q came", slices.Sorted(maps.Keys(got)))
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if !content {
				for key, e := range want {
					e.Content = nil
					want[key] = e
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if _, err := bob.Heartbeat(Deadline); err != nil {
				t.Error(err)
			}
		})
	}
}
