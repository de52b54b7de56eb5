//go:build !secondpass

package handler

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/hook"
	"chatgate/internal/protocol"
)

// A backend is the customer's server that decides, as a test tells it to.
type backend struct {
	*testing.T
	server *httptest.Server

	mu     sync.Mutex
	decide func(hook.Inquiry) string // guarded by mu; what it answers
	status int                       // guarded by mu; 0: 200
	hung   chan struct{}             // guarded by mu; nil: it answers
	asked  []hook.Inquiry            // guarded by mu
}

func newBackend(t *testing.T, decide func(hook.Inquiry) string) *backend {
	b := &backend{T: t, decide: decide}
	b.server = httptest.NewServer(b)
	t.Cleanup(func() {
		b.hang(false)
		b.server.CloseClientConnections()
		b.server.Close()
	})
	return b
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var about hook.Inquiry
	if err := json.Unmarshal(body, &about); err != nil {
		b.Errorf("asked %s: %v", body, err)
	}
	b.mu.Lock()
	b.asked = append(b.asked, about)
	decide, status, hung := b.decide, b.status, b.hung
	b.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-r.Context().Done():
			return
		}
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	_, _ = io.WriteString(w, decide(about))
}

func (b *backend) hang(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case on && b.hung == nil:
		b.hung = make(chan struct{})
	case !on && b.hung != nil:
		close(b.hung)
		b.hung = nil
	}
}

func (b *backend) answer(status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = status
}

func (b *backend) questions() []hook.Inquiry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]hook.Inquiry(nil), b.asked...)
}

// decides has a gateway ask the backend.
func (b *backend) decides(allowOnFailure bool, questions ...hook.Question) func(*settings) {
	d := b.decider(500*time.Millisecond, allowOnFailure, questions...)
	return func(s *settings) { s.handler.Decider, s.handler.AskedHeaders = d, []string{"Cookie", "X-Contest"} }
}

func (b *backend) decider(timeout time.Duration, allowOnFailure bool, questions ...hook.Question) *hook.Decider {
	cfg := hook.DeciderConfig{
		Asked: make(map[hook.Question]hook.Asked), Secret: "a secret of enough characters", Allow: []string{"127.0.0.1"},
		Timeout: timeout, MaxInFlight: 8, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, q := range questions {
		cfg.Asked[q] = hook.Asked{URL: b.server.URL, AllowOnFailure: allowOnFailure}
	}
	d, err := hook.NewDecider(cfg)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// patient has a gateway wait for decisions as long as a busy machine may need.
func (b *backend) patient(s *settings) {
	s.handler.Decider = b.decider(patience, false, hook.AskMessage)
}

// dial opens a socket with headers of its own.
func (g *gateway) dial(header http.Header) *client {
	g.t.Helper()
	c, err := gatewaytest.Dial("ws"+strings.TrimPrefix(g.server.URL, "http"), header)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(c.Cut)
	return &client{Client: c, t: g.t}
}

func (c *client) wantRefusal(code protocol.ErrorCode, word string) gatewaytest.Frame {
	c.t.Helper()
	f, err := c.Next("error", patience)
	if err != nil || f.CodeText() != string(code) || !strings.Contains(f.Message, word) {
		c.t.Fatalf("%s, %v; want %s with %q", f.Raw, err, code, word)
	}
	return f
}

// Nobody is anonymous here. Who comes with a cookie is whom the backend knows by it: with the meta, the rooms and the limits that it says.
func TestTheBackendKnowsWhoRegisters(t *testing.T) {
	b := newBackend(t, func(q hook.Inquiry) string {
		if q.Headers["cookie"] != "session=7; theme=dark" {
			return `{"allow":false,"code":"unauthorized","reason":"no session"}`
		}
		return `{"allow":true,"userId":"alice","meta":{"contestId":"42"},"join":["hall","lobby"],"rooms":["hall","lobby","other"],"limits":{"rooms":3}}`
	})
	g := embedded(t, func(s *settings) { s.handler.Anonymous = false }, b.decides(false, hook.AskRegister))
	c := g.dial(http.Header{"Cookie": {"session=7; theme=dark"}, "X-Contest": {"42"}, "X-Other": {"no"}})
	c.say(`{"type":"register","deviceId":"phone","meta":{"mine":1},"rooms":{"lobby":{"epoch":"x","offset":0},"secret":null}}`)
	f, err := c.Next("registered", patience)
	if err != nil || f.UserID != "alice" {
		t.Fatalf("%s, %v", f.Raw, err)
	}
	joined := map[string]bool{}
	for range 2 {
		f, err := c.Next("joined", patience)
		if err != nil {
			t.Fatal(err)
		}
		joined[f.Room] = true
	}
	if !joined["hall"] || !joined["lobby"] {
		t.Errorf("joined %v", joined)
	}
	c.wantRefusal(protocol.CodeForbidden, "room")
	c.say(`{"type":"join","room":"other"}`)
	if _, err := c.Next("joined", patience); err != nil {
		t.Error(err)
	}
	c.say(`{"type":"join","room":"more"}`)
	c.wantRefusal(protocol.CodeForbidden, "room")
	identity, _ := g.manager.ByUser("alice")[0].Identity()
	if string(identity.Meta) != `{"contestId":"42"}` {
		t.Errorf("meta %s", identity.Meta)
	}
	if d := g.details(g.manager.ByUser("alice")[0].ID()); d.ExpiresAt != 0 {
		t.Errorf("nobody said until when, and it ends at %d", d.ExpiresAt)
	}
	q := b.questions()[0]
	if q.Question != hook.AskRegister || q.User != "" || q.Device != "phone" || string(q.Meta) != `{"mine":1}` || q.Address != "127.0.0.1" ||
		q.Headers["x-contest"] != "42" || len(q.Headers) != 2 || q.Conn == "" || q.Gateway != g.id {
		t.Errorf("asked %+v", q)
	}

	stranger := g.dial(nil)
	stranger.say(`{"type":"register","userId":"alice"}`)
	stranger.wantRefusal(protocol.CodeUnauthorized, "no session")
	if end, err := stranger.WaitEnd(patience); err != nil || end.Code != int(protocol.CloseUnauthorized) {
		t.Errorf("the stranger ended with %v, %v", end, err)
	}
	liar := g.dial(http.Header{"Cookie": {"session=7; theme=dark"}})
	liar.say(`{"type":"register","userId":"bob"}`)
	liar.wantRefusal(protocol.CodeForbidden, "userId")
}

// Whom a client meant to reach tells a backend of several sites which of them it is. Go keeps that header apart from the others.
func TestTheBackendIsToldTheHost(t *testing.T) {
	b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true,"userId":"alice"}` })
	g := embedded(t, b.decides(false, hook.AskRegister), func(s *settings) { s.handler.AskedHeaders = []string{"host"} })
	c := g.dial(nil)
	c.say(`{"type":"register"}`)
	if f, err := c.Next("registered", patience); err != nil {
		t.Fatalf("%s, %v", f.Raw, err)
	}
	if got, want := b.questions()[0].Headers["host"], g.server.Listener.Addr().String(); got != want {
		t.Errorf("the host is %q, want %q", got, want)
	}
}

// A list of rooms without end is no answer.
func TestNobodyIsInvitedEverywhere(t *testing.T) {
	t.Parallel()
	var rooms atomic.Int64
	b := newBackend(t, func(hook.Inquiry) string {
		return `{"allow":true,"userId":"alice","join":[` + strings.TrimSuffix(strings.Repeat(`"hall",`, int(rooms.Load())), ",") + `]}`
	})
	rooms.Store(100_000)
	g := embedded(t, b.decides(false, hook.AskRegister))
	c := g.dial(nil)
	c.say(`{"type":"register"}`)
	c.wantRefusal(protocol.CodeUnavailable, "decide")
	rooms.Store(1000)
	eventually(t, "the client is let in", func() bool {
		c.say(`{"type":"register"}`)
		_, err := c.Next("registered", 1100*time.Millisecond)
		return err == nil
	})
	if _, err := c.Next("joined", patience); err != nil || len(c.Left("joined")) != 0 {
		t.Errorf("joined %v, %v", c.Left("joined"), err)
	}
}

// What the backend leaves open stays open: a user it doesn't name must be let in by a token, or where anonymous users are.
func TestWhoIsNotNamedIsNotProven(t *testing.T) {
	b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true}` })
	closed := embedded(t, func(s *settings) { s.handler.Anonymous = false }, b.decides(false, hook.AskRegister))
	c := closed.dial(nil)
	c.say(`{"type":"register","userId":"alice"}`)
	c.wantRefusal(protocol.CodeUnauthorized, "anonymous")
	open := newGateway(t, closed.redis, b.decides(false, hook.AskRegister))
	open.connect("alice")
}

// An expiry that the backend says ends the connection as a token's does.
func TestTheBackendSaysUntilWhen(t *testing.T) {
	t.Parallel()
	b := newBackend(t, func(hook.Inquiry) string {
		return fmt.Sprintf(`{"allow":true,"userId":"alice","expiresAt":%d}`, time.Now().Add(2500*time.Millisecond).UnixMilli())
	})
	g := embedded(t, b.decides(false, hook.AskRegister))
	c := g.dial(nil)
	c.say(`{"type":"register"}`)
	if f, err := c.Next("registered", patience); err != nil || !strings.Contains(string(f.Raw), `"expiresAt"`) {
		t.Fatalf("%s, %v", f.Raw, err)
	}
	if end, err := c.WaitEnd(patience); err != nil || end.Code != int(protocol.CloseTokenExpired) {
		t.Errorf("ended with %v, %v", end, err)
	}
}

// Rooms are asked for together, and denied one by one.
func TestTheBackendDecidesOnJoins(t *testing.T) {
	b := newBackend(t, func(q hook.Inquiry) string {
		for _, room := range q.Rooms {
			if room == "none" {
				return `{"allow":false,"reason":"never"}`
			}
		}
		return `{"allow":true,"deny":{"staff":{"code":"forbidden","reason":"staff only"}}}`
	})
	g := embedded(t, b.decides(false, hook.AskJoin))
	c := g.connect("alice")
	if n := len(b.questions()); n != 0 {
		t.Errorf("asked %d times at register", n)
	}
	c.say(`{"type":"join","id":"1","room":"lobby"}`)
	if f, err := c.Next("joined", patience); err != nil || f.Room != "lobby" {
		t.Fatalf("%s, %v", f.Raw, err)
	}
	c.say(`{"type":"join","id":"2","room":"staff"}`)
	if f := c.wantRefusal(protocol.CodeForbidden, "staff only"); f.ID != "2" {
		t.Errorf("%s", f.Raw)
	}
	c.say(`{"type":"join","id":"3","room":"none"}`)
	c.wantRefusal(protocol.CodeForbidden, "never")
	d := g.open()
	d.say(`{"type":"register","userId":"bob","rooms":{"lobby":null,"staff":null}}`)
	if f, err := d.Next("joined", patience); err != nil || f.Room != "lobby" {
		t.Fatalf("%s, %v", f.Raw, err)
	}
	d.wantRefusal(protocol.CodeForbidden, "staff only")
	if q := b.questions(); len(q) != 4 || len(q[3].Rooms) != 2 || q[3].User != "bob" {
		t.Errorf("asked %+v", q)
	}
}

// A message is denied, changed, or let through as it is. A repetition gets the first answer, whatever the backend makes of it then, and
// messages keep their order.
func TestTheBackendDecidesOnMessages(t *testing.T) {
	n := 0
	b := newBackend(t, func(q hook.Inquiry) string {
		switch {
		case strings.Contains(string(q.Content), "curse"):
			return `{"allow":false,"code":"forbidden","reason":"be kind"}`
		case strings.Contains(string(q.Content), "number"):
			n++
			return fmt.Sprintf(`{"allow":true,"content":{"was":%s,"n":%d}}`, q.Content, n)
		case strings.Contains(string(q.Content), "broken"):
			return `{"allow":true,"content":"\ud800"}`
		}
		return `{"allow":true}`
	})
	g := embedded(t, b.decides(false, hook.AskMessage))
	alice, bob := g.connect("alice", "deviceId", "phone"), g.connect("bob")
	alice.say(`{"type":"message","id":"1","to":"bob","content":"hello"}`)
	alice.say(`{"type":"message","id":"2","to":"bob","content":"a curse"}`)
	alice.say(`{"type":"message","id":"3","to":"bob","content":"number"}`)
	alice.say(`{"type":"message","id":"3","to":"bob","content":"number"}`)
	if f := alice.wantRefusal(protocol.CodeForbidden, "be kind"); f.ID != "2" {
		t.Errorf("%s", f.Raw)
	}
	for _, want := range []string{`"hello"`, `{"was":"number","n":1}`} {
		f, err := bob.Next("message", patience)
		if err != nil || !strings.Contains(string(f.Raw), `"content":`+want) {
			t.Errorf("%s, %v; want %s", f.Raw, err, want)
		}
	}
	offsets := map[uint64]int{}
	for range 3 {
		f, err := alice.Next("ack", patience)
		if err != nil {
			t.Fatal(err)
		}
		offsets[f.Offset]++
	}
	if offsets[1] != 1 || offsets[2] != 2 {
		t.Errorf("acknowledged as %v", offsets)
	}
	alice.say(`{"type":"message","id":"4","to":"bob","content":"a curse too","ephemeral":true}`)
	alice.wantRefusal(protocol.CodeForbidden, "be kind")
	alice.say(`{"type":"message","id":"5","to":"bob","content":"broken"}`)
	alice.wantRefusal(protocol.CodeUnavailable, "decide")
	if q := b.questions()[0]; q.User != "alice" || q.To != "bob" || q.ID != "1" || q.Device != "phone" || string(q.Content) != `"hello"` {
		t.Errorf("asked %+v", q)
	}
}

// A content that two readers may take for two is shown to nobody.
func TestAContentWithANameTwiceIsNotAskedAbout(t *testing.T) {
	b := newBackend(t, func(hook.Inquiry) string { return `{"allow":true}` })
	g := embedded(t, b.patient)
	alice, bob := g.connect("alice"), g.connect("bob")
	alice.say(`{"type":"message","id":"1","to":"bob","content":{"text":"nice","te\u0078t":"nasty"}}`)
	alice.wantRefusal(protocol.CodeBadRequest, "content")
	alice.say(`{"type":"message","id":"2","to":"bob","content":{"text":"nice"}}`)
	if f, err := bob.Next("message", patience); err != nil || f.ID != "2" || len(b.questions()) != 1 {
		t.Errorf("%s, %v, asked %d times", f.Raw, err, len(b.questions()))
	}
}

// What another spelling of a field says is not said: a denial stays one.
func TestFieldsOfADecisionHaveOneSpelling(t *testing.T) {
	b := newBackend(t, func(hook.Inquiry) string { return `{"allow":false,"ALLOW":true,"reason":"no","Reason":"yes"}` })
	g := embedded(t, b.patient)
	alice := g.connect("alice")
	alice.say(`{"type":"message","to":"bob","content":1}`)
	if f := alice.wantRefusal(protocol.CodeForbidden, "no"); !strings.Contains(string(f.Raw), `"no"`) {
		t.Errorf("%s", f.Raw)
	}
}

// Who has no backend pays nothing for it.
func TestAskingNobodyAllocatesNothing(t *testing.T) {
	s := &session{handler: &Handler{}}
	f := &protocol.Frame{Content: []byte("1")}
	rooms := []protocol.RoomResume{{Room: []byte("lobby")}}
	if n := testing.AllocsPerRun(100, func() {
		if content, ok := s.passed(f); !ok || len(content) != 1 || len(s.welcome(nil, rooms)) != 1 || len(s.guests(rooms)) != 1 {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Where the gateway is told so, a message says with which meta its sender came: the backend's, where that spoke; and so does the log.
func TestMessagesCarryTheirSendersMeta(t *testing.T) {
	b := newBackend(t, func(q hook.Inquiry) string {
		if string(q.Claimed) == "alice" {
			return `{"allow":true,"userId":"alice","meta":{"contestId": 42}}`
		}
		return `{"allow":true}`
	})
	g := embedded(t, b.decides(false, hook.AskRegister), func(s *settings) { s.handler.StampMeta = true })
	alice, bob := g.connect("alice", "meta", map[string]any{"contestId": 7}), g.connect("bob")
	alice.say(`{"type":"message","id":"1","to":"bob","content":1}`)
	f, err := bob.Next("message", patience)
	if err != nil || !strings.Contains(string(f.Raw), `"from":"alice","meta":{"contestId":42},"to":"bob"`) {
		t.Errorf("%s, %v", f.Raw, err)
	}
	bob.say(`{"type":"history","limit":1}`)
	if f, err := bob.Next("history", patience); err != nil || !strings.Contains(string(f.Raw), `"meta":{"contestId":42}`) {
		t.Errorf("%s, %v", f.Raw, err)
	}
	bob.say(`{"type":"message","id":"1","to":"alice","content":1}`)
	if f, err := alice.Next("message", patience); err != nil || strings.Contains(string(f.Raw), `"meta"`) {
		t.Errorf("%s, %v", f.Raw, err)
	}
}
