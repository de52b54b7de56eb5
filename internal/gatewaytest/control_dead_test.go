//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Bob is on a gateway that is killed, carol on one that stands still, dave is on the first and on one that lives. Each order about them names who could not
// do it, from the first moment on, and what can be done is done.
func TestAnOrderNamesTheDeadGatewaysThatHoldTheUser(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	flags := []string{"--cluster.reap-after=60s"}
	a, b, c := StartGateway(t, r, Options{Name: "a", Flags: flags}), StartGateway(t, r, Options{Name: "b", Flags: flags}), StartGateway(t, r, Options{Name: "c", Flags: flags})
	idB, idC := b.id(t), c.id(t)
	Connect(t, b.WS(), "bob")
	carol := Connect(t, c.WS(), "carol")
	Connect(t, b.WS(), "dave")
	dave := Connect(t, a.WS(), "dave")
	b.Kill()
	c.Pause()
	calls := map[string]func(Answered) bool{
		`/users/bob/join {"rooms":["x"]}`:   func(x Answered) bool { return x.text("missing") == "["+idB+"]" },
		`/users/bob/leave {"rooms":["x"]}`:  func(x Answered) bool { return x.text("missing") == "["+idB+"]" },
		`/users/carol/join {"rooms":["x"]}`: func(x Answered) bool { return x.text("missing") == "["+idC+"]" },
		`/users/dave/join {"rooms":["x"]}`: func(x Answered) bool {
			return x.text("missing") == "["+idB+"]" && x.text("connections.0.id") == dave.ConnID() && x.field("connections.1") == nil
		},
		`/users/bob/disconnect {}`:   func(x Answered) bool { return x.text("missing") == "["+idB+"]" && x.text("gone") == "0" },
		`/users/carol/disconnect {}`: func(x Answered) bool { return x.text("missing") == "["+idC+"]" && x.text("gone") == "0" },
		`/rebalance {"dryRun":true}`: func(x Answered) bool { return x.text("missing") == fmt.Sprint([]string{idB, idC}) },
	}
	try := func(when string, reasons ...string) {
		for call, holds := range calls {
			path, body, _ := strings.Cut(call, " ")
			x := callAPI(t, a, 207, "POST", path, body)
			if !holds(x) {
				t.Errorf("%s, %s: %v", when, call, x)
			}
			for _, id := range []string{idB, idC} {
				if strings.Contains(x.text("missing"), id) && !slices.Contains(reasons, x.text("reasons."+id)) {
					t.Errorf("%s, %s: %v", when, call, x)
				}
			}
		}
	}
	try("at once", "unreached", "silent", "dead")
	untilAPI(t, a, 4*Deadline, "GET", "/gateways", "", func(x Answered) bool { return x.text("missing") == fmt.Sprint([]string{idB, idC}) })
	try("when they are known to be dead", "dead")
	for _, id := range []string{idB, idC} {
		x := callAPI(t, a, 404, "POST", "/gateways/"+id+"/drain", "")
		if x.text("missing") != "["+id+"]" {
			t.Errorf("drain: %v", x)
		}
	}
	c.Resume()
	if ended, err := carol.WaitEnd(4 * Deadline); err != nil || ended.Code != 4503 {
		t.Errorf("%v, %v", ended, err)
	}
}

// Redis is emptied, and nobody has told it anything yet. No answer takes its silence for the truth: nobody is offline, no order is carried out on nobody, and
// whoever lives is asked, or named.
func TestAnEmptiedRedisIsNotBelieved(t *testing.T) {
	t.Parallel()
	eachAPIKind(t, func(t *testing.T, r *Redis) {
		a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
		idA, idB := a.id(t), b.id(t)
		bob, alice := Connect(t, b.WS(), "bob"), Connect(t, a.WS(), "alice")
		// Whom a gateway remembers its pulses have seen: b must have been there at one of a.
		both := time.Now().UnixMilli()
		untilAPI(t, b, 4*Deadline, "GET", "/gateways", "", func(x Answered) bool {
			at, err := strconv.ParseInt(x.text("gateways.0.time"), 10, 64)
			return err == nil && at > both
		})
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		for call, holds := range map[string]func(Answered) bool{
			`POST /presence {"users":["bob"]}`:             func(x Answered) bool { return x.text("users.bob.state") != "offline" },
			`POST /users/bob/join {"rooms":["x"]}`:         func(x Answered) bool { return x.Status == 503 },
			`GET /users/bob/connections `:                  func(x Answered) bool { return x.Status == 503 || x.text("connections.0.id") == bob.ConnID() },
			`GET /connections/` + bob.ConnID() + " ":       func(x Answered) bool { return x.Status == 503 || x.text("user") == "bob" },
			`POST /messages {"everyone":true,"content":1}`: func(x Answered) bool { return x.text("everyone.gateways") == "2" },
			`POST /rebalance {"dryRun":true}`:              func(x Answered) bool { return x.text("gateways.0.id") == idA && x.text("gateways.1.id") == idB },
			`POST /gateways/` + idB + `/resume `:           func(x Answered) bool { return x.text("state") == "serving" },
			`GET /rooms/lobby/members `:                    func(x Answered) bool { return x.Status == 503 },
			`GET /gateways `: func(x Answered) bool {
				return x.text("gateways.1.id") == idB || x.text("missing") == "["+idB+"]"
			},
			`GET /stats `:                   func(x Answered) bool { return x.text("gateways") == "2" || x.text("missing") == "["+idB+"]" },
			`POST /users/bob/disconnect {}`: func(x Answered) bool { return x.Status == 504 && x.text("code") == "unknown" },
		} {
			f := strings.SplitN(call, " ", 3)
			if x, err := a.tryAPI(f[0], f[1], f[2]); err != nil || !holds(x) {
				t.Errorf("%s: %v, %v", call, x, err)
			}
		}
		// Asked again, as the answer says, until it is sure.
		untilAPI(t, a, 6*Deadline, "POST", "/users/bob/disconnect", "{}", func(x Answered) bool { return x.Status == 200 })
		if ended, err := bob.WaitEnd(Deadline); err != nil || ended.Code != 4503 {
			t.Errorf("%v, %v", ended, err)
		}
		if _, err := alice.Heartbeat(Deadline); err != nil {
			t.Error(err)
		}
	})
}

// Redis stands still for a moment with the order in its hands, and carries it out when it goes on. Whoever gave it was told that this is not known, and not
// that certainly nothing was done.
func TestAnOrderThatRedisHasIsUnknownAndNotUndone(t *testing.T) {
	r := Shared(t, Standalone)
	a := StartGateway(t, r, Options{Name: "a", Flags: []string{"--redis.timeout=300ms"}})
	bob := Connect(t, a.WS(), "bob")
	callAPI(t, a, 200, "POST", "/users/nobody/disconnect", "{}") // Redis has to know the script, or it has nothing to carry out
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	x, err := a.tryAPI("POST", "/users/bob/disconnect", "{}")
	if err2 := r.Resume(); err2 != nil {
		t.Fatal(err2)
	}
	// Had a pulse found out before, it would have been refused unheard.
	if err != nil || x.text("code") != "unknown" && x.text("code") != "unavailable" {
		t.Fatalf("%v, %v", x, err)
	}
	if x.text("code") == "unavailable" {
		if err := bob.None("closing", Deadline/4); err != nil || bob.Ended() != nil {
			t.Errorf("nothing was done, it said: %v, %v", bob.Ended(), err)
		}
		return
	}
	if ended, err := bob.WaitEnd(4 * Deadline); err != nil || ended.Code != 4503 {
		t.Errorf("%v, %v", ended, err)
	}
}

// Two gateways are told to end while they wait for one that stands still: the first for a backend that called it, the other for a command. Nobody is with them,
// so they could end at once; whoever has begun something with them hears what came of it all the same. The command can only be done when the one that stood still
// goes on: cut off, it would be left to whoever takes it over.
func TestAGatewayThatEndsAnswersForWhatItHasInHand(t *testing.T) {
	t.Parallel()
	r := StartRedis(t)
	called := StartGateway(t, r, Options{Name: "called"})
	taking := StartGateway(t, r, Options{Name: "taking", Flags: []string{"--api.commands=control", "--api.deadline=15s", "--api.takeover=45s"}})
	still := StartGateway(t, r, Options{Name: "still", Flags: []string{"--cluster.lease=20s", "--cluster.quiet=20s"}}) // not dead meanwhile
	bob, carol := Connect(t, still.WS(), "bob").ConnID(), Connect(t, still.WS(), "carol").ConnID()
	still.Pause()
	type answered struct {
		Answered
		err error
	}
	answer := make(chan answered, 1)
	go func() {
		x, err := called.callOnce("POST", "/connections/"+bob+"/disconnect", "")
		answer <- answered{x, err}
	}()
	// On a very busy machine the call may be over before anybody has seen it: then nothing is proven of it, and nothing is wrong.
	wantWithin(t, 4*Deadline, func() bool {
		n, err := called.metric("gateway_api_calls_under_way")
		return err == nil && n == 1 || len(answer) == 1
	})
	called.Term()
	command := r.command(t, "op", "setMeta", "reply", "r", "body", `{"id":"`+carol+`","meta":{"seat":7}}`)
	wantWithin(t, 4*Deadline, func() bool {
		n, err := r.inHand("")
		return err == nil && n == 1
	})
	taking.Term()
	if x := <-answer; x.err != nil || x.Status != 207 {
		t.Errorf("the call was answered %v, %v", x.Answered, x.err)
	}
	exits := func(g *Gateway) {
		if code, err := g.ExitCode(4 * Deadline); err != nil || code != 0 {
			t.Errorf("%s ended with %d, %v", g.Name, code, err)
		}
	}
	exits(called)
	still.Resume()
	exits(taking)
	if replies, err := r.commandReplies("r"); err != nil || len(replies[command]) != 1 || replies[command][0].Status != 200 {
		t.Errorf("the command was answered %+v, %v", replies, err)
	}
}
