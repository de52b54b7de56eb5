//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// bound is what an answer says of a connection.
type bound struct {
	ID, User, Gateway string
	Meta              json.RawMessage
	Live              *struct{ Remote string }
}

// A backend sets what is bound to alice's connection, on the gateway that holds it or any other, over HTTP or by the stream of commands. Whoever looks
// sees it, her messages carry it, and what can't be set changes nothing.
func TestABackendSetsWhatIsBoundToAConnection(t *testing.T) {
	t.Parallel()
	EachRedis(t, func(t *testing.T, r *Redis) {
		flags := []string{"--stamp-meta", "--api.commands=control"}
		a, b := StartGateway(t, r, Options{Name: "a", Flags: flags}), StartGateway(t, r, Options{Name: "b", Flags: flags})
		alice := Connect(t, b.WS(), "alice", "meta", map[string]any{"contestId": 7, "seat": 12})
		at := "/connections/" + alice.ConnID()
		want := func(got bound, meta string) {
			t.Helper()
			if got.ID != alice.ConnID() || got.User != "alice" || got.Gateway != b.id(t) || string(got.Meta) != meta {
				t.Errorf("got %+v %s, want %s", got, got.Meta, meta)
			}
		}
		set := func(g *Gateway, patch, meta string) {
			t.Helper()
			var got bound
			g.ordered(t, 200, "PATCH", at, `{"meta":`+patch+`}`, &got)
			want(got, meta)
			for _, other := range []*Gateway{a, b} {
				got = bound{}
				other.ordered(t, 200, "GET", at, "", &got)
				want(got, meta)
			}
		}
		set(a, `{"contestId":8,"seat":"<12>"}`, `{"contestId":8,"seat":"<12>"}`)
		set(b, `{"contestId":null,"big":12345678901234567890}`, `{"seat":"<12>","big":12345678901234567890}`)
		set(a, `{"contestId":null}`, `{"seat":"<12>","big":12345678901234567890}`)
		r.command(t, "op", "setMeta", "reply", "shop", "body", `{"id":"`+alice.ConnID()+`","meta":{"big":1}}`)
		if err := Poll(4*Deadline, func() error {
			replies, err := r.commandReplies("shop")
			for _, all := range replies {
				if all[0].Status != 200 {
					return stop{fmt.Errorf("answered %+v", all)}
				}
				return nil
			}
			return fmt.Errorf("no answer yet, %w", err)
		}); err != nil {
			t.Fatal(err)
		}
		const final = `{"seat":"<12>","big":1}`
		for body, status := range map[string]int{
			`{"meta":{"x":"` + strings.Repeat("x", 1024) + `"}}`: 413, `{"meta":{"x":"` + strings.Repeat("x", 1005) + `"}}`: 413, `{"meta":[]}`: 400, `{"meta":null}`: 400, `{}`: 400,
			`{"meta":{"a":1,"a":2}}`: 400, `{"meta":{},"other":1}`: 400,
		} {
			b.ordered(t, status, "PATCH", at, body, nil)
		}
		a.ordered(t, 404, "PATCH", "/connections/nobody", `{"meta":{"a":1}}`, nil)
		set(b, `{}`, final)
		bob := Connect(t, a.WS(), "bob")
		if _, err := alice.Send("bob", "hi", "m1"); err != nil {
			t.Fatal(err)
		}
		if f, err := bob.Next("message", Deadline); err != nil || !strings.Contains(string(f.Raw), `"meta":`+final) {
			t.Errorf("%s, %v", f.Raw, err)
		}
		alice.Cut()
		if err := Poll(4*Deadline, func() error {
			if status, err := a.order("PATCH", at, `{"meta":{"a":1}}`, nil); status != 404 {
				return fmt.Errorf("status %d, %w", status, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// The gateway that holds the connection stands still: whoever sets something is told within moments that it is not known what became of it, and says it
// again when it goes on. Killed, nothing hangs, and there is no such connection.
func TestAMetaThatIsNotHeardIsSaid(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	flags := []string{"--cluster.reap-after=60s", "--cluster.lease=6s", "--cluster.quiet=6s"}
	a, b := StartGateway(t, r, Options{Name: "a", Flags: flags}), StartGateway(t, r, Options{Name: "b", Flags: flags})
	alice := Connect(t, b.WS(), "alice")
	at := "/connections/" + alice.ConnID()
	var problem struct{ Code string }
	b.Pause()
	a.ordered(t, 504, "PATCH", at, `{"meta":{"n":1}}`, &problem)
	b.Resume()
	if problem.Code != "unknown" {
		t.Errorf("code %s", problem.Code)
	}
	var got bound
	a.ordered(t, 200, "PATCH", at, `{"meta":{"n":1}}`, &got)
	if string(got.Meta) != `{"n":1}` {
		t.Errorf("got %s", got.Meta)
	}
	b.Kill()
	if err := Poll(10*Deadline, func() error {
		status, err := a.order("PATCH", at, `{"meta":{"n":2}}`, nil)
		switch {
		case err != nil:
			return stop{err}
		case status == 404:
			return nil
		case status != 503 && status != 504:
			return stop{fmt.Errorf("status %d", status)}
		}
		return fmt.Errorf("status %d", status)
	}); err != nil {
		t.Error(err)
	}
}
