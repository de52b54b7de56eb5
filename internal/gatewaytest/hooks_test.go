//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A gateway as an operator configures it asks a backend everything, with nobody anonymous: who comes with a cookie and nothing else is known, is in the room that the backend said,
// and what is written there is what the backend made of it. Figures tell how often it was asked; the secret is nowhere.
func TestABackendIsAskedEverything(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var q struct {
			Question, User string
			Headers        map[string]string
			Rooms          []string
			Content        json.RawMessage
		}
		if err := json.Unmarshal(body, &q); err != nil || r.Header.Get("Webhook-Signature") == "" || "/"+q.Question != r.URL.Path {
			t.Errorf("%s %s: %v", r.URL, body, err)
		}
		switch q.Question {
		case "register":
			fmt.Fprintf(w, `{"allow":%v,"userId":%q,"join":["hall"]}`, q.Headers["cookie"] != "", strings.TrimPrefix(q.Headers["cookie"], "user="))
		case "join":
			fmt.Fprintf(w, `{"allow":%v}`, q.Rooms[0] != "staff")
		case "message":
			fmt.Fprintf(w, `{"allow":true,"content":{"said":%s}}`, q.Content)
		}
	}))
	t.Cleanup(backend.Close)
	const secret = "nobody should ever read this"
	g := StartGateway(t, nil, Options{Flags: []string{
		"--hooks.register=" + backend.URL + "/register", "--hooks.join=" + backend.URL + "/join", "--hooks.message=" + backend.URL + "/message",
		"--hooks.allow=127.0.0.1", "--hooks.secret=" + secret, "--hooks.headers=Cookie", "--hooks.timeout=8s",
	}})
	dial := func(cookie string) *Client {
		c, err := Dial(g.WS(), http.Header{"Cookie": {cookie}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Cut)
		return c
	}
	say := func(c *Client, frame string) {
		if err := c.WriteFrame(1, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(c *Client, kind, word string) {
		t.Helper()
		if f, err := c.Next(kind, Deadline); err != nil || !strings.Contains(string(f.Raw), word) {
			t.Fatalf("%s, %v; want %s", f.Raw, err, word)
		}
	}
	alice, bob := dial("user=alice"), dial("user=bob")
	for _, c := range []*Client{alice, bob} {
		say(c, `{"type":"register"}`)
		want(c, "registered", `"userId"`)
		want(c, "joined", `"room":"hall"`)
	}
	say(alice, `{"type":"join","room":"staff"}`)
	want(alice, "error", `"forbidden"`)
	say(alice, `{"type":"message","room":"hall","content":"hi"}`)
	want(bob, "message", `"from":"alice","room":"hall","content":{"said":"hi"}`)
	_, metrics, err := g.GetInternal("/metrics")
	for _, line := range []string{
		`gateway_hook_decisions_total{hook="register",outcome="allowed"} 2`, `gateway_hook_decisions_total{hook="join",outcome="denied"} 1`,
		`gateway_hook_decision_seconds_count{hook="message"} 1`, `gateway_hook_open{hook="message"} 0`, `gateway_hook_waiting{hook="join"} 0`,
	} {
		if err != nil || !strings.Contains(string(metrics), line+"\n") {
			t.Errorf("%v: /metrics lacks %s", err, line)
		}
	}
	_, stats, err := g.Get("/stats")
	if err != nil || !strings.Contains(string(stats), `"question": "register"`) {
		t.Errorf("%v: /stats has %s", err, stats)
	}
	if strings.Contains(string(stats)+string(metrics), secret) {
		t.Error("the secret is shown")
	}
}
