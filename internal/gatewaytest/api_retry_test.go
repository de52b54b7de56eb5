//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// leaveCall sends a call and never looks at the answer.
func leaveCall(t *testing.T, g *Gateway, body string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", g.Internal)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_, err = fmt.Fprintf(conn, "POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// A backend has sent and never gets the answer: the gateway it asked is killed. It asks another one with the same key:
// users and the room have the message once, and the answer is the one that was lost. Another content under the key is still a conflict.
func TestALostAnswerComesAgainFromAnotherGateway(t *testing.T) {
	t.Parallel()
	eachAPIKind(t, func(t *testing.T, r *Redis) {
		a := StartGateway(t, r, Options{Name: "a"})
		b := StartGateway(t, r, Options{Name: "b"})
		bob := Connect(t, b.WS(), "bob")
		const call = `{"to":["bob","carol"],"rooms":["lobby"],"content":"paid","id":"order-1"}`
		leaveCall(t, a, call)
		for _, log := range []string{"/users/bob", "/users/carol", "/rooms/lobby"} {
			untilAPI(t, b, 2*Deadline, "GET", log+"/history", "", func(x Answered) bool { return x.text("top") == "1" })
		}
		a.Kill()

		again := callAPI(t, b, 200, "POST", "/messages", call)
		for i, log := range []string{"/users/bob", "/users/carol", "/rooms/lobby"} {
			kept := callAPI(t, b, 200, "GET", log+"/history", "")
			if kept.text("top") != "1" || kept.field("messages.1") != nil {
				t.Errorf("%s has it twice: %v", log, kept)
			}
			for _, field := range []string{"epoch", "offset", "ts"} {
				if got, want := again.text(fmt.Sprintf("results.%d.%s", i, field)), kept.text("messages.0."+field); got != want {
					t.Errorf("%s: the answer has %s %s, and the log %s", log, field, got, want)
				}
			}
		}
		// As it was then, when the other gateway held nobody either.
		if got := again.text("results.0.status"); got != "routed" {
			t.Errorf("bob's is %s", got)
		}
		if got := again.text("results.1.status"); got != "stored" {
			t.Errorf("carol's is %s", got)
		}
		other := callAPI(t, b, 409, "POST", "/messages", strings.Replace(call, "paid", "unpaid", 1))
		if other.text("code") != "conflict" || other.text("results.2.error.code") != "conflict" {
			t.Errorf("%v", other)
		}
		if f, err := bob.Next("message", Deadline); err != nil || f.Offset != 1 {
			t.Errorf("bob got %s, %v", f.Raw, err)
		}
		callAPI(t, b, 200, "POST", "/messages", `{"to":["bob"],"content":"last"}`)
		if f, err := bob.Next("message", Deadline); err != nil || string(f.Content) != `"last"` {
			t.Errorf("bob got %s, %v", f.Raw, err)
		}
	})
}

// The gateway is killed anywhere in a call for many receivers. The same call to another gateway completes it: each has it once.
func TestACallThatDiedHalfwayIsCompletedElsewhere(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	a := StartGateway(t, r, Options{Name: "a"})
	b := StartGateway(t, r, Options{Name: "b"})
	const receivers = 1000
	halfway := 0
	for round := range 6 {
		names := make([]string, receivers)
		for i := range names {
			names[i] = fmt.Sprintf("round%d-%d", round, i)
		}
		list, _ := json.Marshal(names)
		call := fmt.Sprintf(`{"to":%s,"content":%d,"id":"half-%d"}`, list, round, round)
		conn := leaveCall(t, a, call)
		// As soon as one has it, or a little later.
		at := names[round*32]
		untilAPI(t, b, 2*Deadline, "GET", "/users/"+at+"/history", "", func(x Answered) bool { return x.text("top") == "1" })
		a.Kill()
		_ = conn.SetReadDeadline(time.Now().Add(Deadline))
		if got, _ := io.ReadAll(conn); len(got) == 0 {
			halfway++
		}
		var answer struct {
			Results []struct {
				To     string
				Offset int
			}
		}
		if err := json.Unmarshal(callAPI(t, b, 200, "POST", "/messages", call).Body, &answer); err != nil || len(answer.Results) != receivers {
			t.Fatalf("%d results, %v", len(answer.Results), err)
		}
		for i, x := range answer.Results {
			if x.To != names[i] || x.Offset != 1 {
				t.Fatalf("%+v", x)
			}
		}
		for _, name := range slices.Concat(names[:8], names[receivers-8:]) {
			if kept := callAPI(t, b, 200, "GET", "/users/"+name+"/history", ""); kept.text("top") != "1" {
				t.Errorf("%s: %v", name, kept)
			}
		}
		if err := a.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 6 were killed before they answered", halfway)
}

// A message for everyone is in no log, and nothing remembers its key: the same call is the same message again, with the id by which
// clients tell.
func TestAMessageForEveryoneComesAgainUnderItsId(t *testing.T) {
	r := Shared(t, Embedded)
	a := StartGateway(t, r, Options{Name: "a"})
	b := StartGateway(t, r, Options{Name: "b"})
	alice := Connect(t, a.WS(), "alice")
	for _, g := range []*Gateway{a, b} {
		if x := callAPI(t, g, 200, "POST", "/messages", `{"everyone":true,"content":"closing"}`, "Idempotency-Key", "news-1"); x.text("id") != "news-1" {
			t.Errorf("%v", x)
		}
		if f, err := alice.Next("message", Deadline); err != nil || f.ID != "news-1" || string(f.From) != `"system"` || !f.Ephemeral || f.Offset != 0 {
			t.Errorf("alice got %s, %v", f.Raw, err)
		}
	}
}

// A message for everyone is no larger than what clients were told to expect, like any other.
func TestAMessageForEveryoneIsNoLargerThanAFrame(t *testing.T) {
	a := StartGateway(t, Shared(t, Embedded), Options{Name: "a", Flags: []string{"--limits.frame-bytes=4096"}})
	alice := Connect(t, a.WS(), "alice")
	for _, to := range []string{`"everyone":true`, `"to":["alice"]`} {
		x := callAPI(t, a, 413, "POST", "/messages", fmt.Sprintf(`{%s,"content":%q}`, to, strings.Repeat("x", 4050)))
		if x.text("code") != "too_large" {
			t.Errorf("%v", x)
		}
	}
	callAPI(t, a, 200, "POST", "/messages", fmt.Sprintf(`{"everyone":true,"content":%q,"from":"s"}`, strings.Repeat("x", 3700)))
	if f, err := alice.Next("message", 2*Deadline); err != nil || len(f.Content) != 3702 {
		t.Errorf("%s, %v", f.Raw, err)
	}
}
