//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// tryAPI makes a call of the server API, and holds the answer against the OpenAPI document. The body may be empty; headers are pairs.
func (g *Gateway) tryAPI(method, path, body string, headers ...string) (Answered, error) {
	a, err := g.callOnce(method, path, body, headers...)
	if err == nil {
		err = asDescribed(method, path, a)
	}
	return a, err
}

// callAPI is tryAPI where an answer of this status must come.
func callAPI(t testing.TB, g *Gateway, status int, method, path, body string, headers ...string) Answered {
	t.Helper()
	a, err := g.tryAPI(method, path, body, headers...)
	if err != nil || a.Status != status {
		t.Fatalf("%s %s %s on %s: %v, %v, want %d", method, path, body, g.Name, a, err, status)
	}
	kind := "application/json"
	if status >= 400 {
		kind = "application/problem+json"
	}
	if got := a.Header.Get("Content-Type"); got != kind {
		t.Errorf("%s %s: Content-Type %q", method, path, got)
	}
	return a
}

// untilAPI repeats a call until the answer holds.
func untilAPI(t testing.TB, g *Gateway, within time.Duration, method, path, body string, holds func(Answered) bool) Answered {
	t.Helper()
	var last Answered
	err := Poll(within, func() (err error) {
		if last, err = g.tryAPI(method, path, body); err == nil && !holds(last) {
			err = fmt.Errorf("%v", last)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s %s %s on %s: %v", method, path, body, g.Name, err)
	}
	return last
}

// apiKinds are the kinds of Redis on which calls may differ: Sentinel's is a standalone one for them.
var apiKinds = []Kind{Embedded, Standalone, Cluster}

func eachAPIKind(t *testing.T, run func(t *testing.T, r *Redis)) {
	for _, kind := range apiKinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			run(t, Shared(t, kind))
		})
	}
}

// A backend speaks to the gateway it happens to reach, and all that clients do anywhere is there: it sends to users, rooms and everyone,
// asks who is where, and reads what was said.
func TestABackendReachesTheWholeClusterThroughAnyGateway(t *testing.T) {
	t.Parallel()
	eachAPIKind(t, func(t *testing.T, r *Redis) {
		a := StartGateway(t, r, Options{Name: "a"})
		b := StartGateway(t, r, Options{Name: "b"})
		alice := Connect(t, a.WS(), "alice", "deviceId", "phone", "meta", map[string]any{"exam": 7})
		bob := Connect(t, b.WS(), "bob")
		if err := bob.Write(map[string]any{"type": "join", "room": "lobby"}); err != nil {
			t.Fatal(err)
		}
		if _, err := bob.Next("joined", Deadline); err != nil {
			t.Fatal(err)
		}

		sent := callAPI(t, a, 200, "POST", "/messages", `{"to":["bob","carol","bob"],"rooms":["lobby"],"from":"shop","id":"order-17","content":{"text":"a < b","n":1e400}}`)
		for path, want := range map[string]string{
			"id": "order-17", "results.0.to": "bob", "results.0.status": "routed", "results.0.devices": "1", "results.0.offset": "1",
			"results.1.to": "carol", "results.1.status": "stored", "results.1.devices": "<nil>", "results.2.room": "lobby",
			"results.2.status": "routed", "results.3": "<nil>",
		} {
			if got := sent.text(path); got != want {
				t.Errorf("%s is %s, want %s: %v", path, got, want, sent)
			}
		}
		for _, room := range []string{"", "lobby"} {
			f, err := bob.NextOf("message", Deadline, func(f Frame) bool { return f.Room == room })
			if err != nil {
				t.Fatal(err)
			}
			if f.ID != "order-17" || string(f.From) != `"shop"` || string(f.Content) != `{"text":"a < b","n":1e400}` || f.Offset != 1 {
				t.Errorf("bob got %s", f.Raw)
			}
		}

		news := callAPI(t, b, 200, "POST", "/messages", `{"everyone":true,"content":"maintenance at six"}`)
		if news.text("everyone.gateways") != "2" || news.text("everyone.missing") != "[]" {
			t.Errorf("%v", news)
		}
		for _, c := range []*Client{alice, bob} {
			if f, err := c.Next("message", Deadline); err != nil || string(f.Content) != `"maintenance at six"` || string(f.From) != `"system"` || !f.Ephemeral {
				t.Errorf("%s got %s, %v", c.Name, f.Raw, err)
			}
		}
		dropped := callAPI(t, a, 200, "POST", "/messages", `{"to":["bob","carol"],"ephemeral":true,"content":null}`)
		if dropped.text("results.0.status") != "routed" || dropped.text("results.1.status") != "dropped" || dropped.field("results.0.offset") != nil {
			t.Errorf("%v", dropped)
		}
		if f, err := bob.Next("message", Deadline); err != nil || string(f.Content) != "null" {
			t.Errorf("bob got %s, %v", f.Raw, err)
		}

		for _, g := range []*Gateway{a, b} {
			here := callAPI(t, g, 200, "POST", "/presence", `{"users":["alice","bob","carol"]}`)
			for path, want := range map[string]string{
				"users.alice.state": "online", "users.alice.devices": "1", "users.bob.state": "online", "users.carol.state": "offline", "missing": "[]",
			} {
				if got := here.text(path); got != want {
					t.Errorf("on %s %s is %s, want %s", g.Name, path, got, want)
				}
			}
			of := callAPI(t, g, 200, "GET", "/users/alice/connections", "")
			one := callAPI(t, g, 200, "GET", "/connections/"+alice.ConnID(), "")
			for path, want := range map[string]string{"id": alice.ConnID(), "user": "alice", "device": "phone", "meta.exam": "7"} {
				if got := of.text("connections.0." + path); got != want {
					t.Errorf("on %s %s is %s, want %s: %v", g.Name, path, got, want, of)
				}
				if got := one.text(path); got != want {
					t.Errorf("on %s %s is %s, want %s: %v", g.Name, path, got, want, one)
				}
			}
			if got := one.text("gateway"); !strings.HasPrefix(got, "a-") {
				t.Errorf("on %s the gateway is %s", g.Name, got)
			}
			callAPI(t, g, 404, "GET", "/connections/nobody", "")
			if in := callAPI(t, g, 200, "GET", "/rooms/lobby/members", ""); in.text("count") != "1" || in.text("users") != "[bob]" {
				t.Errorf("%v", in)
			}
			if log := callAPI(t, g, 200, "GET", "/users/carol/history", ""); log.text("top") != "1" || log.text("messages.0.id") != "order-17" || log.text("messages.0.to") != "carol" {
				t.Errorf("%v", log)
			}
			if log := callAPI(t, g, 200, "GET", "/rooms/lobby/history?after=0&limit=1", ""); log.text("messages.0.room") != "lobby" || log.text("more") != "false" {
				t.Errorf("%v", log)
			}
			untilAPI(t, g, 2*Deadline, "GET", "/stats", "", func(a Answered) bool { return a.text("gateways") == "2" && a.text("connections") == "2" })
		}

		alice.Cut()
		for _, g := range []*Gateway{a, b} {
			untilAPI(t, g, 2*Deadline, "GET", "/connections/"+alice.ConnID(), "", func(a Answered) bool { return a.Status == 404 })
		}
	})
}

// Names that a path would make something else of, and those that mean something to Redis: each is its own user and its own room.
func TestAnyNameStandsInAPath(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{})
	names := []string{
		"a/b", "..", ".", "../..", "/", "//", "a b", " ", "%2F", "%", "a%b", "?x=1", "#", "a&b=c", "+", ";", "a:b", "{x}", "}{", "*", "über", "日本", "😀", "u:alice",
		"openapi.json", "<script>", `"`, `\`, "'", strings.Repeat("x", 128),
	}
	for i, name := range names {
		quoted, _ := json.Marshal(name)
		content := fmt.Sprint(i)
		callAPI(t, g, 200, "POST", "/messages", fmt.Sprintf(`{"to":[%s],"rooms":[%s],"content":%s}`, quoted, quoted, content))
	}
	for i, name := range names {
		// "." may stand in a path as it is, but then clients take it out.
		encoded := strings.ReplaceAll(url.PathEscape(name), ".", "%2E")
		for _, kind := range []string{"/users/", "/rooms/"} {
			log := callAPI(t, g, 200, "GET", kind+encoded+"/history", "")
			if log.text("top") != "1" || log.text("messages.0.content") != fmt.Sprint(i) {
				t.Errorf("%s%q: %v", kind, name, log)
			}
		}
		if c := callAPI(t, g, 200, "GET", "/users/"+encoded+"/connections", ""); c.field("user") != name {
			t.Errorf("%q is %v", name, c)
		}
		if m := callAPI(t, g, 200, "GET", "/rooms/"+encoded+"/members", ""); m.field("room") != name {
			t.Errorf("%q is %v", name, m)
		}
	}
}

// Many at once repeat one call, on two gateways: every one gets the same answer, and each receiver has it once. The key with another
// content is a conflict, told for each receiver that has it under this key; the others get the new one.
func TestAnIdempotencyKeyStoresOnceInTheWholeCluster(t *testing.T) {
	t.Parallel()
	eachAPIKind(t, func(t *testing.T, r *Redis) {
		gateways := []*Gateway{StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})}
		const repeats = 24
		answers := make([]Answered, repeats)
		errs := make([]error, repeats)
		var calls sync.WaitGroup
		for i := range repeats {
			calls.Go(func() {
				answers[i], errs[i] = gateways[i%2].tryAPI("POST", "/messages", `{"to":["alice","bob"],"rooms":["lobby"],"content":[1,2]}`, "Idempotency-Key", "once")
			})
		}
		calls.Wait()
		for i, a := range answers {
			if errs[i] != nil || a.Status != 200 {
				t.Fatalf("%v, %v", a, errs[i])
			}
			for _, path := range []string{"id", "results.0.offset", "results.0.epoch", "results.1.offset", "results.1.epoch", "results.2.offset", "results.2.epoch", "results.2.ts"} {
				if got, want := a.text(path), answers[0].text(path); got != want || got == "<nil>" {
					t.Errorf("answer %d: %s is %s, and %s of the first", i, path, got, want)
				}
			}
		}
		for _, path := range []string{"/users/alice/history", "/users/bob/history", "/rooms/lobby/history"} {
			if log := callAPI(t, gateways[0], 200, "GET", path, ""); log.text("top") != "1" || log.field("messages.1") != nil {
				t.Errorf("%s: %v", path, log)
			}
		}

		all := callAPI(t, gateways[1], 409, "POST", "/messages", `{"to":["alice","bob"],"content":3,"id":"once"}`)
		if all.text("code") != "conflict" || all.text("results.1.error.code") != "conflict" {
			t.Errorf("%v", all)
		}
		some := callAPI(t, gateways[0], 207, "POST", "/messages", `{"to":["carol","alice"],"content":3}`, "Idempotency-Key", "once")
		if some.text("results.0.status") != "stored" || some.text("results.1.error.code") != "conflict" || some.field("results.1.status") != nil {
			t.Errorf("%v", some)
		}
		if log := callAPI(t, gateways[0], 200, "GET", "/users/alice/history", ""); log.text("top") != "1" {
			t.Errorf("alice has %v", log)
		}
		// Another sender has keys of his own.
		callAPI(t, gateways[0], 200, "POST", "/messages", `{"to":["alice"],"from":"shop","content":3}`, "Idempotency-Key", "once")
	})
}

// A call for a thousand receivers is one message for each, told one by one.
func TestAThousandReceiversInOneCall(t *testing.T) {
	t.Parallel()
	eachAPIKind(t, func(t *testing.T, r *Redis) {
		g := StartGateway(t, r, Options{Name: "a"})
		names := make([]string, 1000)
		for i := range names {
			names[i] = fmt.Sprintf("user%04d", i)
		}
		list, _ := json.Marshal(names)
		there := Connect(t, g.WS(), names[777])
		body := fmt.Sprintf(`{"to":%s,"content":"exam begins","id":"exam"}`, list)
		for range 2 { // again, and the first answer comes again
			var answer struct {
				Results []struct {
					To, Status string
					Offset     int
				}
			}
			// On a busy machine Redis may be found not to answer in the middle of it.
			whole := untilAPI(t, g, 4*Deadline, "POST", "/messages", body, func(a Answered) bool { return a.Status == 200 })
			if err := json.Unmarshal(whole.Body, &answer); err != nil || len(answer.Results) != len(names) {
				t.Fatalf("%d results, %v", len(answer.Results), err)
			}
			for i, r := range answer.Results {
				want := "stored"
				if i == 777 {
					want = "routed"
				}
				if r.To != names[i] || r.Status != want || r.Offset != 1 {
					t.Fatalf("%s: %+v", names[i], r)
				}
			}
		}
		if f, err := there.Next("message", Deadline); err != nil || f.ID != "exam" {
			t.Errorf("%s, %v", f.Raw, err)
		}
	})
}

// Redis stands still: each call says so within its usual deadlines, sending certainly didn't happen or is unknown, and all is well when it is back.
func TestTheAPISaysThatRedisIsAway(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	g := StartGateway(t, r, Options{})
	calls := []string{
		`POST /messages {"to":["bob"],"content":1,"id":"in-vain"}`, `POST /messages {"to":["bob"],"content":1,"ephemeral":true}`, `POST /messages {"everyone":true,"content":1}`,
		`POST /presence {"users":["bob"]}`, "GET /users/bob/connections ", "GET /connections/x ", "GET /rooms/lobby/members ", "GET /users/bob/history ",
		"GET /rooms/lobby/history ", "GET /gateways ", "GET /stats ",
	}
	try := func(call string) (Answered, time.Duration, error) {
		f := strings.SplitN(call, " ", 3)
		began := time.Now()
		a, err := g.tryAPI(f[0], f[1], f[2])
		return a, time.Since(began), err
	}
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	for round := range 2 { // the first call has to find out
		for _, call := range calls {
			a, took, err := try(call)
			unknown := round == 0 && a.Status == 504 && strings.HasPrefix(call, "POST /messages")
			if err != nil || a.Status != 503 && !unknown || took > 4*time.Second {
				t.Errorf("%s: %v, %v after %v", call, a, err, took)
			}
			if code := a.text("code"); code != "unavailable" && !unknown {
				t.Errorf("%s: code %s", call, code)
			}
		}
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, call := range calls {
		f := strings.SplitN(call, " ", 3)
		untilAPI(t, g, 4*Deadline, f[0], f[1], f[2], func(a Answered) bool {
			return a.Status == 200 || a.Status == 404 && strings.HasPrefix(f[1], "/connections/")
		})
	}
}
