//go:build !secondpass

package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/hook"
	"chatgate/internal/protocol"
)

// metaKept returns nil when the registry has this meta of the user's only connection.
func (g *gateway) metaKept(user, want string) error {
	l, err := g.registry.Get(context.Background(), protocol.UserID(user))
	if err != nil || len(l) != 1 || l[0].Meta != want {
		return fmt.Errorf("the registry has %+v, %w; want %s", l, err, want)
	}
	return nil
}

func (g *gateway) wantMetaKept(user, want string) {
	g.t.Helper()
	if err := gatewaytest.Poll(patience, func() error { return g.metaKept(user, want) }); err != nil {
		g.t.Fatal(err)
	}
}

// metaHere is what this gateway has bound to the user's only connection.
func (g *gateway) metaHere(user string) string {
	g.t.Helper()
	conns := g.manager.ByUser(protocol.UserID(user))
	if len(conns) != 1 {
		g.t.Fatalf("%d connections of %s", len(conns), user)
	}
	id, _ := conns[0].Identity()
	if now := sessionOf(conns[0]).entry.MetaNow(); now != string(id.Meta) {
		g.t.Errorf("the entry has %q, the identity %q", now, id.Meta)
	}
	return string(id.Meta)
}

// setMeta asks for a patch of a connection's meta; there is one gateway that has it.
func (g *gateway) setMeta(id protocol.ConnID, patch string, within time.Duration) (out protocol.MetaOutcome) {
	g.t.Helper()
	for _, body := range g.ask(protocol.VerbMeta, &protocol.MetaQuestion{Conn: id, Patch: patch}, within) {
		var o protocol.MetaOutcome
		if err := json.Unmarshal([]byte(body), &o); err != nil {
			g.t.Fatalf("answered %s: %v", body, err)
		}
		if out.Result == "" || o.Result != protocol.MetaGone {
			out = o
		}
	}
	return out
}

// What a decision binds to a connection is on the message it is about and on those after, in the next question, and in the registry. What it
// doesn't name stays, and what is denied binds nothing.
func TestADecisionBindsMeta(t *testing.T) {
	answers := map[string]string{
		"m1":   `{"allow":true,"meta":{"lang":"en","seat":null}}`,
		"m2":   `{"allow":true}`,
		"m3":   `{"allow":false,"meta":{"lang":"none"}}`,
		"m4":   `{"allow":true,"meta":null,"content":{"said":4}}`,
		"m5":   `{"allow":true,"meta":{"lang":{"spoken": "de"}}}`,
		"hall": `{"allow":true,"meta":{"hall":1e400},"deny":{"staff":{"code":"forbidden"}}}`,
	}
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		b := newBackend(t, func(q hook.Inquiry) string {
			if len(q.Rooms) > 0 {
				return answers[q.Rooms[0]]
			}
			return answers[q.ID]
		})
		d := b.decider(patience, false, hook.AskMessage, hook.AskJoin)
		g := newGateway(t, r, func(s *settings) { s.handler.Decider, s.handler.StampMeta = d, true })
		alice, bob := g.connect("alice", "meta", json.RawMessage(`{"seat":7,"exam":"x"}`)), g.connect("bob")
		say := func(id, stamped string) {
			t.Helper()
			alice.say(fmt.Sprintf(`{"type":"message","id":%q,"to":"bob","content":1,"copy":true}`, id))
			for _, c := range []*client{bob, alice} {
				f, err := c.NextOf("message", patience, func(f gatewaytest.Frame) bool { return f.ID == id })
				if err != nil || !strings.Contains(string(f.Raw), `"from":"alice","meta":`+stamped+`,"to":"bob"`) {
					t.Errorf("%s, %v; want it to be stamped %s", f.Raw, err, stamped)
				}
			}
			g.wantMetaKept("alice", stamped)
			if got := g.metaHere("alice"); got != stamped {
				t.Errorf("here it is %s, want %s", got, stamped)
			}
		}
		say("m1", `{"exam":"x","lang":"en"}`)
		say("m2", `{"exam":"x","lang":"en"}`)
		alice.say(`{"type":"message","id":"m3","to":"bob","content":1}`)
		alice.wantRefusal(protocol.CodeForbidden, "allow")
		say("m4", `{"exam":"x","lang":"en"}`)
		say("m5", `{"exam":"x","lang":{"spoken":"de"}}`)
		c := g.open()
		c.say(`{"type":"register","userId":"carol","rooms":{"hall":null,"staff":null}}`)
		if f := c.next("joined"); f.Room != "hall" {
			t.Errorf("%s", f.Raw)
		}
		g.wantMetaKept("carol", `{"hall":1e400}`)
		var asked []string
		for _, q := range b.questions() {
			asked = append(asked, string(q.Meta))
		}
		want := []string{`{"seat":7,"exam":"x"}`, `{"exam":"x","lang":"en"}`, `{"exam":"x","lang":"en"}`, `{"exam":"x","lang":"en"}`, `{"exam":"x","lang":"en"}`, ``}
		if fmt.Sprintf("%q", asked) != fmt.Sprintf("%q", want) {
			t.Errorf("asked with %q, want %q", asked, want)
		}
	})
}

// A meta that can't be bound is no answer: what counts then is what the operator said, and nothing is bound.
func TestAMetaThatCanNotBeBoundIsNoAnswer(t *testing.T) {
	for name, meta := range map[string]string{
		"a list": `[1]`, "a text": `"x"`, "twice": `{"a":1,"a":2}`, "half a pair": `{"a":"\ud800"}`,
		"too large": `{"a":"` + strings.Repeat("x", protocol.MaxMetaBytes) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true,"content":2,"meta":` + meta + `}` })
			strict := embedded(t, func(s *settings) { s.handler.Decider = b.decider(patience, false, hook.AskMessage, hook.AskJoin) })
			alice := strict.connect("alice", "meta", json.RawMessage(`{"seat":7}`))
			alice.say(`{"type":"message","id":"m","to":"bob","content":1}`)
			alice.wantRefusal(protocol.CodeUnavailable, "decide")
			alice.say(`{"type":"join","id":"j","room":"hall"}`)
			alice.wantRefusal(protocol.CodeUnavailable, "decide")
			if got := strict.metaHere("alice"); got != `{"seat":7}` {
				t.Errorf("it is %s", got)
			}
			lenient := newGateway(t, strict.redis, func(s *settings) { s.handler.Decider = b.decider(patience, true, hook.AskMessage) })
			carol := lenient.connect("carol", "meta", json.RawMessage(`{"seat":8}`))
			carol.say(`{"type":"message","id":"m","to":"carol","content":1}`)
			if f := carol.next("message"); !strings.Contains(string(f.Raw), `"content":1`) {
				t.Errorf("%s", f.Raw)
			}
			if got := lenient.metaHere("carol"); got != `{"seat":8}` {
				t.Errorf("it is %s", got)
			}
		})
	}
}

// A client that leaves no room for what the backend binds, or makes of its message, is refused, also where the operator lets through what nobody decides: else a
// meta or a message large enough would be a way around the backend. Once there is room, it is let through as the backend said.
func TestWhoLeavesNoRoomForADecisionIsNotLetThrough(t *testing.T) {
	b := newBackend(t, func(q hook.Inquiry) string {
		if len(q.Rooms) > 0 {
			return `{"allow":true,"deny":{"staff":{}},"meta":{"seen":true}}`
		}
		return `{"allow":true,"content":{"was":` + string(q.Content) + `,"checkedBy":"somebody who has a long name"},"meta":{"seen":true}}`
	})
	for name, lenient := range map[string]bool{"deny": false, "allow": true} {
		t.Run(name, func(t *testing.T) {
			g := embedded(t, func(s *settings) { s.handler.Decider = b.decider(patience, lenient, hook.AskMessage, hook.AskJoin) })
			full := `{"a":"` + strings.Repeat("x", protocol.MaxMetaBytes-len(`{"a":""}`)) + `"}`
			alice, bob := g.connect("alice", "meta", json.RawMessage(full)), g.connect("bob")
			alice.say(`{"type":"message","id":"m","to":"bob","content":"a curse"}`)
			if f := alice.wantRefusal(protocol.CodeTooLarge, "meta: no room"); f.ID != "m" || f.Limit != protocol.LimitMeta {
				t.Errorf("%s", f.Raw)
			}
			for _, room := range []string{"staff", "hall"} {
				alice.say(fmt.Sprintf(`{"type":"join","id":%q,"room":%q}`, room, room))
				if f := alice.wantRefusal(protocol.CodeTooLarge, "meta: no room"); f.ID != room || !strings.Contains(string(f.Raw), `"rooms":["`+room+`"]`) {
					t.Errorf("%s", f.Raw)
				}
			}
			if got := g.metaHere("alice"); got != full {
				t.Errorf("it is %s", got)
			}
			carol := g.connect("carol")
			carol.say(`{"type":"message","id":"large","to":"bob","content":"` + strings.Repeat("x", int(g.handler.cfg.MaxFrameBytes)-64) + `"}`)
			carol.wantRefusal(protocol.CodeTooLarge, "content: too large")
			carol.say(`{"type":"message","id":"deep","to":"bob","content":` + strings.Repeat("[", protocol.MaxDepth) + strings.Repeat("]", protocol.MaxDepth) + `}`)
			carol.wantRefusal(protocol.CodeTooLarge, "content: too large or too deep")
			if got := g.metaHere("carol"); got != "" {
				t.Errorf("a refused message has bound %s", got)
			}
			carol.say(`{"type":"message","id":"m","to":"bob","content":"a curse"}`)
			if f := bob.next("message"); !strings.Contains(string(f.Raw), `"content":{"was":"a curse","checkedBy":`) {
				t.Errorf("%.200s", f.Raw)
			}
			alice.wantAlive()
		})
	}
}

// A backend sets the meta of a connection on another gateway, and the answer says what it is then. What is wrong, or for nobody, changes nothing.
func TestABackendSetsTheMetaOfAConnection(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		stamped := func(s *settings) { s.handler.StampMeta = true }
		a, b := newGateway(t, r), newGateway(t, r, stamped)
		alice, bob := b.connect("alice", "meta", json.RawMessage(`{"seat":7}`)), a.connect("bob")
		want := func(patch string, result protocol.MetaResult, meta string) {
			t.Helper()
			o := a.setMeta(alice.id(), patch, patience)
			if result == protocol.MetaSet && o.Result == protocol.MetaUnsure { // a busy machine
				o = a.setMeta(alice.id(), patch, patience)
			}
			if o.Result != result || result != protocol.MetaRefused && o.Meta != meta || (o.Code == "") != (result != protocol.MetaRefused) {
				t.Errorf("%s: %+v, want %s and %s", patch, o, result, meta)
			}
			if err := a.metaKept("alice", meta); err != nil { // the answer came behind it
				t.Error(err)
			}
			if got := b.metaHere("alice"); got != meta {
				t.Errorf("here it is %s, want %s", got, meta)
			}
		}
		want(`{"row":[1, 2]}`, protocol.MetaSet, `{"seat":7,"row":[1,2]}`)
		want(`{"row":[1, 2]}`, protocol.MetaSet, `{"seat":7,"row":[1,2]}`)
		want(`{}`, protocol.MetaSet, `{"seat":7,"row":[1,2]}`)
		want(`{"seat":null}`, protocol.MetaSet, `{"row":[1,2]}`)
		want(`[]`, protocol.MetaRefused, `{"row":[1,2]}`)
		want(`{"a":"`+strings.Repeat("x", protocol.MaxMetaBytes)+`"}`, protocol.MetaRefused, `{"row":[1,2]}`)
		alice.send("bob", "hi", "m1")
		if f := bob.next("message"); !strings.Contains(string(f.Raw), `"meta":{"row":[1,2]}`) {
			t.Errorf("%s", f.Raw)
		}
		if o := a.setMeta("nobody", `{"a":1}`, patience); o.Result != protocol.MetaGone {
			t.Errorf("for nobody: %+v", o)
		}
		alice.wantAlive()
	})
}

// Many backends say something of one connection at once, on two gateways, while its client talks and its messages are decided on: nothing of it is lost, and
// what the gateway has in the end is what Redis has.
func TestMetasThatAreSetAtOnceDoNotMix(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		backend := newBackend(t, func(q hook.Inquiry) string { return fmt.Sprintf(`{"allow":true,"meta":{"said":%q}}`, q.ID) })
		a, b := newGateway(t, r, backend.patient), newGateway(t, r, backend.patient)
		alice := b.connect("alice")
		const each = 12
		var all sync.WaitGroup
		for i := range each {
			for j, g := range []*gateway{a, b} {
				all.Go(func() {
					// Who finds the connection busy, or doesn't hear, says it again.
					if err := gatewaytest.Poll(patience, func() error {
						if o := g.setMeta(alice.id(), fmt.Sprintf(`{"k%d":{"from":%d},"last":%d}`, i, i, 2*i+j), patience); o.Result != protocol.MetaSet {
							return fmt.Errorf("%+v", o)
						}
						return nil
					}); err != nil {
						t.Error(err)
					}
				})
			}
		}
		all.Go(func() {
			for i := range each {
				if _, err := alice.Send("bob", "hi", fmt.Sprint("m", i)); err != nil {
					t.Error(err)
				}
				alice.answer(fmt.Sprint("m", i))
			}
		})
		all.Wait()
		here := b.metaHere("alice")
		a.wantMetaKept("alice", here)
		for i := range each {
			if !strings.Contains(here, fmt.Sprintf(`"k%d":{"from":%d}`, i, i)) {
				t.Errorf("%s lacks k%d", here, i)
			}
		}
		if !strings.Contains(here, fmt.Sprintf(`"said":"m%d"`, each-1)) || strings.Count(here, `"last"`) != 1 {
			t.Errorf("it is %s", here)
		}
	})
}

// Two wait for the turn of one connection, and what the second says is merged into what the first said.
func TestMetasThatWaitForOneTurnAreBothSet(t *testing.T) {
	b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true,"meta":{"hook":1}}` })
	g := embedded(t, b.patient)
	alice := g.connect("alice")
	b.hang(true)
	alice.say(`{"type":"message","id":"m","to":"bob","content":1}`)
	eventually(t, "the backend is asked", func() bool { return len(b.questions()) == 1 })
	turns := &sessionOf(g.manager.ByUser("alice")[0]).turns
	var all sync.WaitGroup
	for i := range 2 {
		all.Go(func() {
			g.handler.setMeta(context.Background(), &protocol.MetaQuestion{Conn: alice.id(), Patch: fmt.Sprintf(`{"k%d":1}`, i)})
		})
		eventually(t, "it waits", func() bool {
			turns.mu.Lock()
			defer turns.mu.Unlock()
			return len(turns.waiting) == i+1
		})
	}
	b.hang(false)
	all.Wait()
	if got := g.metaHere("alice"); got != `{"hook":1,"k0":1,"k1":1}` {
		t.Errorf("it is %s", got)
	}
	g.wantMetaKept("alice", `{"hook":1,"k0":1,"k1":1}`)
}

// A connection whose turn doesn't come in time, because its message is being decided on, is busy, and nothing was set.
func TestAMetaForABusyConnection(t *testing.T) {
	b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true}` })
	g := embedded(t, b.patient)
	alice := g.connect("alice")
	b.hang(true)
	alice.say(`{"type":"message","id":"m","to":"bob","content":1}`)
	eventually(t, "the backend is asked", func() bool { return len(b.questions()) == 1 })
	o := protocol.MetaOutcome{}
	eventually(t, "it is told that it is busy", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		o = g.handler.setMeta(ctx, &protocol.MetaQuestion{Conn: alice.id(), Patch: `{"a":1}`})
		return o.Result == protocol.MetaBusy
	})
	b.hang(false)
	alice.answer("m")
	alice.wantAlive()
	if got := g.metaHere("alice"); got != "" {
		t.Errorf("it is %s", got)
	}
	fresh := g.open()
	eventually(t, "it is there", func() bool { return g.manager.Count() == 2 })
	g.manager.ForEach(func(c *connection.Connection) bool {
		if c.ID() != alice.id() {
			if o := g.handler.setMeta(context.Background(), &protocol.MetaQuestion{Conn: c.ID(), Patch: `{"a":1}`}); o.Result != protocol.MetaBusy {
				t.Errorf("before its register: %+v", o)
			}
		}
		return true
	})
	fresh.register("carol")
}

// Redis is away, and decisions bind something all the same: the client is answered as ever, what is bound counts here, and Redis has it when it is back. So
// does the end of a connection that did not wait for that.
func TestADecisionBindsMetaWhileRedisIsAway(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	n := 0
	b := newBackend(t, func(hook.Inquiry) string {
		n++
		return fmt.Sprintf(`{"allow":true,"meta":{"n":%d}}`, n)
	})
	g := newGateway(t, r, b.patient, func(s *settings) { s.registry.Timeout = patience }) // whoever waits for Redis waits long
	alice := g.connect("alice")
	release := g.general.hold(string(alice.id()))
	for i := range 3 {
		alice.say(fmt.Sprintf(`{"type":"message","id":"h%d","to":"bob","content":1,"ephemeral":true}`, i))
	}
	alice.wantAlive()
	eventually(t, "Redis is told", g.general.holds)
	release()
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		alice.say(fmt.Sprintf(`{"type":"message","id":"m%d","to":"bob","content":1,"ephemeral":true}`, i))
	}
	alice.wantAlive() // behind all of them
	if got := g.metaHere("alice"); got != `{"n":23}` {
		t.Errorf("here it is %s", got)
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	g.wantMetaKept("alice", `{"n":23}`)
	alice.wantAlive()
}

// A backend is above a token: it may set what that bound, and no token that comes later takes it back.
func TestABackendIsAboveTheMetaOfAToken(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	c, _ := x.enter(x.token("alice", time.Hour, "meta", map[string]any{"contestId": "42", "seat": 1}))
	if o := x.setMeta(x.manager.ByUser("alice")[0].ID(), `{"contestId":"43"}`, patience); o.Meta != `{"contestId":"43","seat":1}` {
		t.Errorf("%+v", o)
	}
	c.renew(x.token("alice", time.Hour, "meta", map[string]any{"contestId": "44"}))
	c.next("refreshed")
	if got := x.metaHere("alice"); got != `{"contestId":"43","seat":1}` {
		t.Errorf("it is %s", got)
	}
	x.wantMetaKept("alice", `{"contestId":"43","seat":1}`)
}
