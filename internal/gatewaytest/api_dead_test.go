//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Of three gateways one is killed and one stands still. From the first moment on no call to the third waits for them; and from the end of
// their leases until they are cleaned up after, each answer names both, and counts nothing of what they held.
func TestADeadGatewayIsNamedByEveryAnswerAndDelaysNone(t *testing.T) {
	t.Parallel()
	eachAPIKind(t, func(t *testing.T, r *Redis) {
		// Nobody is cleaned up after while this looks.
		flags := []string{"--cluster.reap-after=1m"}
		a := StartGateway(t, r, Options{Name: "a", Flags: flags})
		b := StartGateway(t, r, Options{Name: "b", Flags: flags})
		c := StartGateway(t, r, Options{Name: "c", Flags: flags})
		alice, bob, carol := Connect(t, a.WS(), "alice"), Connect(t, b.WS(), "bob"), Connect(t, c.WS(), "carol")
		for _, one := range []*Client{alice, bob, carol} {
			if err := one.Write(map[string]any{"type": "join", "room": "lobby"}); err != nil {
				t.Fatal(err)
			}
			if _, err := one.Next("joined", Deadline); err != nil {
				t.Fatal(err)
			}
		}
		holder := func(one *Client) string {
			return callAPI(t, a, 200, "GET", "/connections/"+one.ConnID(), "").text("gateway")
		}
		dead := []string{holder(bob), holder(carol)}
		slices.Sort(dead)
		b.Kill()
		c.Pause()
		died := time.Now()

		named := "[" + strings.Join(dead, " ") + "]"
		state := func(user, want string) func(Answered) bool {
			return func(x Answered) bool { return x.text("users."+user+".state") == want }
		}
		calls := map[string]func(Answered) bool{
			"GET /gateways ": func(x Answered) bool {
				return x.text("gateways.0.alive") == "true" && x.text("gateways.1.alive") == "false" && x.text("gateways.2.alive") == "false"
			},
			"GET /stats ": func(x Answered) bool { return x.text("gateways") == "1" && x.text("connections") == "1" },
			`POST /presence {"users":["bob","alice","carol"]}`: func(x Answered) bool {
				return state("bob", "offline")(x) && state("carol", "offline")(x) && state("alice", "online")(x)
			},
			"GET /users/bob/connections ":              func(x Answered) bool { return x.text("connections") == "[]" },
			"GET /users/alice/connections ":            func(x Answered) bool { return x.text("connections.0.id") == alice.ConnID() },
			"GET /connections/" + bob.ConnID() + " ":   func(x Answered) bool { return x.Status == 404 },
			"GET /connections/" + carol.ConnID() + " ": func(x Answered) bool { return x.Status == 404 },
			"GET /rooms/lobby/members ":                func(x Answered) bool { return x.text("count") == "1" && x.text("users") == "[alice]" },
			`POST /messages {"everyone":true,"content":1}`: func(x Answered) bool {
				return x.Status == 207 && x.text("everyone.gateways") == "1"
			},
			// Each receiver of a message has a result of his own, and there nobody is missing.
			`POST /messages {"to":["bob","carol"],"content":1,"id":"late"}`: func(x Answered) bool {
				return x.Status == 200 && x.text("results.0.offset") == "1" && x.text("results.1.offset") == "1"
			},
		}
		var slowest time.Duration
		make1 := func(call string) (Answered, error) {
			f := strings.SplitN(call, " ", 3)
			began := time.Now()
			x, err := a.tryAPI(f[0], f[1], f[2])
			took := time.Since(began)
			slowest = max(slowest, took)
			if took > 5*time.Second { // api.deadline
				t.Errorf("%s took %v, %v after they died", call, took, began.Sub(died))
			}
			return x, err
		}
		for call := range calls { // while both still count
			if x, err := make1(call); err != nil || x.Status != 200 && x.Status != 207 && x.Status != 404 {
				t.Errorf("%s: %v, %v", call, x, err)
			}
		}
		for call, holds := range calls {
			err := Poll(4*Deadline, func() error {
				x, err := make1(call)
				missing := x.text("missing") == named || x.text("everyone.missing") == named || strings.Contains(call, "late")
				if err == nil && (!missing || !holds(x)) {
					err = fmt.Errorf("%v; missing should be %s", x, named)
				}
				return err
			})
			if err != nil {
				t.Fatalf("%s: %v", call, err) // each of the others would wait as long
			}
		}
		stored := callAPI(t, a, 200, "POST", "/messages", `{"to":["bob","carol"],"content":2}`)
		if stored.text("results.0.status") != "stored" || stored.text("results.1.status") != "stored" {
			t.Errorf("%v", stored)
		}
		t.Logf("the slowest of all calls took %v", slowest.Round(time.Millisecond))

		// It was only paused: then it is one of them again, and the other one is still missing.
		c.Resume()
		untilAPI(t, a, 4*Deadline, "GET", "/stats", "", func(x Answered) bool {
			return x.text("gateways") == "2" && strings.HasPrefix(x.text("missing"), "[b-") && !strings.Contains(x.text("missing"), "c-")
		})
	})
}

// What was cleaned up after is missing no more.
func TestWhoIsCleanedUpAfterIsNotMissing(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	flags := []string{"--cluster.reap-after=1s"}
	a := StartGateway(t, r, Options{Name: "a", Flags: flags})
	b := StartGateway(t, r, Options{Name: "b", Flags: flags})
	Connect(t, b.WS(), "bob")
	b.Kill()
	untilAPI(t, a, 4*Deadline, "GET", "/gateways", "", func(x Answered) bool { return strings.HasPrefix(x.text("missing"), "[b-") })
	untilAPI(t, a, 4*Deadline, "GET", "/gateways", "", func(x Answered) bool { return x.text("missing") == "[]" && x.field("gateways.1") == nil })
}
