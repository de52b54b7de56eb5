//go:build !secondpass

package handler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/hook"
	"chatgate/internal/protocol"
)

// The backend hangs, or a proxy says that it is not there. Each is a failure, answered as the configuration says, within the time it says; and soon
// nobody waits for it any more. Those who ask nothing notice nothing, heartbeats are answered, and when it is back it is asked again.
func TestABackendThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, allow := range map[string]bool{"deny": false, "allow": true} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true}` })
			g := embedded(t, b.decides(allow, hook.AskMessage))
			alice, bob := g.connect("alice"), g.connect("bob")
			want := func(id string) {
				t.Helper()
				if !allow {
					if f := alice.wantRefusal(protocol.CodeUnavailable, "decide"); f.ID != id || f.Retry == 0 {
						t.Errorf("%s", f.Raw)
					}
				} else if f, err := alice.Next("ack", patience); err != nil || f.ID != id {
					t.Errorf("%s, %v", f.Raw, err)
				}
			}
			b.hang(true)
			alice.say(`{"type":"message","id":"hung","to":"bob","content":1}`)
			alice.say(`{"type":"heartbeat"}`)
			eventually(t, "the backend is asked", func() bool { return len(b.questions()) == 1 })
			if _, err := bob.Heartbeat(patience); err != nil { // he waits for nobody
				t.Error(err)
			}
			if n := len(alice.Left("error")) + len(alice.Left("ack")); n != 0 {
				t.Error("bob waited for alice's backend")
			}
			want("hung")
			if _, err := alice.Next("heartbeat", patience); err != nil {
				t.Error(err)
			}
			b.hang(false)
			b.answer(503)
			for i := range 6 {
				id := fmt.Sprint("503-", i)
				alice.say(`{"type":"message","id":"` + id + `","to":"bob","content":1}`)
				want(id)
			}
			s := g.handler.cfg.Decider.Stats()[0]
			if !s.Open || s.Outcomes["failed"] != 5 || s.Outcomes["skipped"] < 2 {
				t.Errorf("counted %+v", s)
			}
			b.answer(0)
			eventually(t, "the backend is asked again", func() bool {
				alice.say(`{"type":"message","to":"bob","content":1}`)
				return !g.handler.cfg.Decider.Stats()[0].Open
			})
			alice.say(`{"type":"message","id":"back","to":"bob","content":1}`)
			if _, err := alice.NextOf("ack", patience, func(f gatewaytest.Frame) bool { return f.ID == "back" }); err != nil {
				t.Error(err)
			}
		})
	}
}

// While the backend is down nobody registers where it must decide, and comes in as soon as it is back; elsewhere everybody is let in as
// if it weren't asked.
func TestRegisterWithoutABackend(t *testing.T) {
	b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true,"userId":"alice"}` })
	b.answer(503)
	strict := embedded(t, b.decides(false, hook.AskRegister))
	c := strict.dial(nil)
	c.say(`{"type":"register"}`)
	c.wantRefusal(protocol.CodeUnavailable, "decide")
	b.answer(0)
	eventually(t, "the client is let in", func() bool {
		c.say(`{"type":"register"}`)
		_, err := c.Next("registered", 1100*time.Millisecond)
		return err == nil
	})
	b.answer(503)
	open := newGateway(t, strict.redis, b.decides(true, hook.AskRegister))
	open.connect("bob")
	closed := newGateway(t, strict.redis, func(s *settings) { s.handler.Anonymous = false }, b.decides(true, hook.AskRegister))
	d := closed.dial(nil)
	d.say(`{"type":"register","userId":"bob"}`)
	d.wantRefusal(protocol.CodeUnauthorized, "anonymous")
}

// A backend that is slow for one client is so for nobody else: others' messages go on, and the slow one's come in the order sent.
func TestASlowDecisionHoldsItsOwnConnection(t *testing.T) {
	slow := make(chan struct{})
	b := newBackend(t, func(q hook.Inquiry) string {
		if q.User == "alice" && q.ID == "0" {
			select {
			case <-slow:
			case <-time.After(patience):
			}
		}
		return `{"allow":true}`
	})
	g := embedded(t, b.patient)
	alice, bob, carol := g.connect("alice"), g.connect("bob"), g.connect("carol")
	for i := range 20 {
		alice.say(fmt.Sprintf(`{"type":"message","id":"%d","to":"carol","content":%d}`, i, i))
	}
	eventually(t, "alice's first is asked about", func() bool { return len(b.questions()) > 0 })
	for i := range 20 {
		bob.say(fmt.Sprintf(`{"type":"message","id":"%d","to":"carol","content":%d}`, i, i))
		if f, err := bob.Next("ack", patience); err != nil || f.ID != fmt.Sprint(i) {
			t.Fatalf("%s, %v", f.Raw, err)
		}
	}
	if n := len(alice.Left("ack")); n != 0 {
		t.Errorf("%d acks before the decision", n)
	}
	close(slow)
	for i := range 40 {
		f, err := carol.Next("message", patience)
		want := fmt.Sprintf(`"content":%d`, i%20)
		if err != nil || !strings.Contains(string(f.Raw), want+",") && !strings.Contains(string(f.Raw), want+"}") || (string(f.From) == `"alice"`) != (i >= 20) {
			t.Fatalf("%d: %s, %v", i, f.Raw, err)
		}
	}
}

// An answer that is no decision refuses the one message it is about, and never stops the asking for others.
func TestAWrongAnswerIsItsOwn(t *testing.T) {
	answers := map[string]string{
		"no JSON": `yes`, "no allow": `{}`, "not a boolean": `{"allow":1}`, "half a surrogate": `{"allow":true,"content":"\ud800"}`,
		"deep":        `{"allow":true,"extra":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}`,
		"very deep":   `{"allow":true,"content":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`,
		"huge":        `{"allow":true,"reason":"` + strings.Repeat("x", 3<<20) + `"}`,
		"two answers": `{"allow":false,"allow":true}`, "in another case": `{"Allow":true}`, "no UTF-8": "{\"allow\":true,\"reason\":\"\xff\"}",
	}
	b := newBackend(t, func(q hook.Inquiry) string {
		if answer, ok := answers[q.ID]; ok {
			return answer
		}
		return `{"allow":true,"content":null,"code":null}`
	})
	g := embedded(t, b.patient)
	alice, bob := g.connect("alice"), g.connect("bob")
	for name := range answers {
		alice.say(fmt.Sprintf(`{"type":"message","id":%q,"to":"bob","content":1}`, name))
		if f := alice.wantRefusal(protocol.CodeUnavailable, "decide"); f.ID != name {
			t.Errorf("%s", f.Raw)
		}
	}
	alice.say(`{"type":"message","id":"good","to":"bob","content":{"as":"it is"}}`)
	if f, err := bob.Next("message", patience); err != nil || !strings.Contains(string(f.Raw), `"content":{"as":"it is"}`) {
		t.Errorf("%s, %v", f.Raw, err)
	}
	if s := g.handler.cfg.Decider.Stats()[0]; s.Open || s.Outcomes["failed"] != uint64(len(answers)) {
		t.Errorf("%+v", s)
	}
	// A program that stumbles over a message, and a filter that dislikes it, say so with a status.
	for _, status := range []int{400, 403, 413, 301, 500, 500, 429, 429, 429} {
		b.answer(status)
		alice.say(`{"type":"message","to":"bob","content":"odd"}`)
		alice.wantRefusal(protocol.CodeUnavailable, "decide")
	}
	b.answer(0)
	bob.say(`{"type":"message","id":"good","to":"alice","content":1}`)
	if f, err := bob.Next("ack", patience); err != nil {
		t.Errorf("%s, %v", f.Raw, err)
	}
}
