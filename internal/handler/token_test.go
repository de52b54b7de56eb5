package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/auth"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// A guarded gateway takes tokens that its test signs.
type guarded struct {
	*gateway
	revocations *auth.Revocations
	signer      *auth.Signer
}

const testSecret = "a secret of more than thirty-two bytes"

func guard(t *testing.T, r *gatewaytest.Redis, tune ...func(*settings)) *guarded {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(testSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	v, err := auth.New(auth.Config{
		Issuers: []string{"id"}, Audiences: []string{"chat"}, Secrets: []string{secret}, Leeway: time.Minute, MaxLifetime: time.Hour, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	x := &guarded{}
	if x.signer, err = auth.LoadSigner(secret, ""); err != nil {
		t.Fatal(err)
	}
	rc := auth.DefaultRevocationsConfig()
	rc.Log, rc.Every, rc.Timeout = log, 100*time.Millisecond, patience
	rc.OnChange = func() { Revoked(x.manager, x.revocations) }
	x.revocations = auth.NewRevocations(r.Client(), rc)
	x.gateway = newGateway(t, r, append([]func(*settings){func(s *settings) {
		s.handler.Anonymous, s.handler.Tokens, s.handler.Revocations = false, v, x.revocations
	}}, tune...)...)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = x.revocations.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	nobody := auth.Identity{User: "nobody", IssuedAt: time.Now().Unix() + 99}
	eventually(t, "the revocations are read", func() bool { return x.revocations.Check(&nobody) == nil })
	return x
}

// token is a good one for a user, with these claims and for so long.
func (x *guarded) token(user string, lives time.Duration, claims ...any) string {
	x.t.Helper()
	now := time.Now().Unix()
	c := map[string]any{"iss": "id", "aud": "chat", "sub": user, "iat": now, "exp": now + int64(lives/time.Second)}
	for i := 0; i+1 < len(claims); i += 2 {
		c[claims[i].(string)] = claims[i+1]
	}
	payload, err := json.Marshal(c)
	if err != nil {
		x.t.Fatal(err)
	}
	token, err := x.signer.Sign(payload)
	if err != nil {
		x.t.Fatal(err)
	}
	return token
}

// enter opens a socket and registers with a token and nothing else.
func (x *guarded) enter(token string) (*client, gatewaytest.Frame) {
	x.t.Helper()
	c := x.open()
	c.say(`{"type":"register","token":"` + token + `"}`)
	return c, c.next("registered")
}

func (c *client) renew(token string) {
	c.t.Helper()
	c.say(`{"type":"refresh","id":"r","token":"` + token + `"}`)
}

// expiresAt reads the field of a frame, in whole seconds.
func expiresAt(t *testing.T, f gatewaytest.Frame) int64 {
	t.Helper()
	var v struct {
		ExpiresAt int64 `json:"expiresAt"`
	}
	if err := json.Unmarshal(f.Raw, &v); err != nil || v.ExpiresAt%1000 != 0 {
		t.Fatalf("%s: %v", f, err)
	}
	return v.ExpiresAt / 1000
}

// A token says who somebody is. What he says himself counts for nothing where it differs.
func TestATokenLetsItsUserIn(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	token := x.token("alice", time.Hour, "meta", map[string]string{"plan": "gold"})
	for name, fields := range map[string]string{
		"alone":               ``,
		"with the same name":  `,"userId":"alice"`,
		"with another's meta": `,"meta":{"plan":"platinum","app":"x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			c := x.open()
			c.say(`{"type":"register","token":"` + token + `"` + fields + `}`)
			f := c.next("registered")
			if left := expiresAt(t, f) - time.Now().Unix(); f.UserID != "alice" || left < 3500 || left > 3600 {
				t.Errorf("%s, good for %d s", f, left)
			}
			locations, err := x.registry.Get(context.Background(), "alice")
			if err != nil || len(locations) == 0 || locations[len(locations)-1].Meta != `{"plan":"gold"}` {
				t.Errorf("registered as %+v, %v", locations, err)
			}
			c.wantAlive()
		})
	}
	// Without meta in the token it is the client's.
	c := x.open()
	c.say(`{"type":"register","token":"` + x.token("bob", time.Hour) + `","meta":{"app":"x"}}`)
	c.next("registered")
	if locations, err := x.registry.Get(context.Background(), "bob"); err != nil || len(locations) != 1 || locations[0].Meta != `{"app":"x"}` {
		t.Errorf("registered as %+v, %v", locations, err)
	}
}

func TestABadTokenEndsTheConnection(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	good := x.token("mallory", time.Hour)
	if err := x.revocations.Revoke(context.Background(), auth.Revocation{TokenID: "gone"}); err != nil {
		t.Fatal(err)
	}
	gone := auth.Identity{User: "x", TokenID: "gone"}
	eventually(t, "the revocation is known", func() bool { return x.revocations.Hits(&gone) })
	for name, c := range map[string]struct {
		frame   string
		code    protocol.ErrorCode
		message string
		end     protocol.CloseCode
	}{
		"none":            {`"userId":"mallory"`, protocol.CodeUnauthorized, "anonymous", protocol.CloseUnauthorized},
		"made up":         {`"token":"x"`, protocol.CodeUnauthorized, "token: malformed", protocol.CloseUnauthorized},
		"tampered with":   {`"token":"` + good[:len(good)-11] + `"`, protocol.CodeUnauthorized, "token: signature", protocol.CloseUnauthorized},
		"for another":     {`"userId":"alice","token":"` + good + `"`, protocol.CodeForbidden, "userId: not the token's", protocol.CloseUnauthorized},
		"somebody else's": {`"token":"` + x.token("mallory", time.Hour, "aud", "shop") + `"`, protocol.CodeUnauthorized, "token: audience", protocol.CloseUnauthorized},
		// Both tell the client what it needs to know: to come back with a new one, or not.
		"run out": {`"token":"` + x.token("mallory", -time.Second) + `"`, protocol.CodeUnauthorized, "token: expired", protocol.CloseTokenExpired},
		"revoked": {`"token":"` + x.token("mallory", time.Hour, "jti", "gone") + `"`, protocol.CodeUnauthorized, "token: revoked", protocol.CloseRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			cl := x.open()
			cl.say(`{"type":"register",` + c.frame + `}`)
			if f := cl.wantError(c.code, ""); !strings.HasPrefix(f.Message, c.message) {
				t.Errorf("message %q, want %q", f.Message, c.message)
			}
			cl.wantEnd(c.end)
			for _, user := range []protocol.UserID{"alice", "mallory"} {
				if locations, err := x.registry.Get(context.Background(), user); err != nil || len(locations) != 0 {
					t.Errorf("the registry has %v of %s (%v)", locations, user, err)
				}
			}
		})
	}
	if s := x.handler.cfg.Tokens.Stats(); s.Refused[auth.ReasonRevoked] != 1 || s.Refused[auth.ReasonExpired] != 1 || s.Refused[auth.ReasonSignature] != 1 {
		t.Errorf("counted %+v", s)
	}
}

// A proxy that nobody configured shows itself by its headers: then loopback proves nothing.
func TestForwardedHeadersEndTheTrustInLoopback(t *testing.T) {
	for _, name := range []string{
		"", "Forwarded", "Via", "X-Forwarded-For", "x-forwarded-host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded", "X-Real-IP",
		"X-Original-Forwarded-For", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "Fly-Client-IP",
	} {
		for _, insecure := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", insecure), func(t *testing.T) {
				g := embedded(t, func(s *settings) { s.handler.AnonymousForwarded = insecure })
				header := http.Header{}
				if name != "" {
					header.Set(name, "")
				}
				dialed, err := gatewaytest.Dial("ws"+strings.TrimPrefix(g.server.URL, "http"), header)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(dialed.Cut)
				c := &client{Client: dialed, t: t}
				c.say(`{"type":"register","userId":"alice"}`)
				if name == "" || insecure {
					c.next("registered")
					return
				}
				c.wantError(protocol.CodeUnauthorized, "")
				c.wantEnd(protocol.CloseUnauthorized)
			})
		}
	}
}

// A page of a stranger may have its name lead to this machine, and is then of the same host as we are; and a proxy that adds nothing
// mostly keeps the name it was asked by.
func TestWhoAsksForAnotherHostIsNotOfThisMachine(t *testing.T) {
	g := embedded(t)
	host := "evil.example:" + g.server.URL[strings.LastIndex(g.server.URL, ":")+1:]
	dialed, err := gatewaytest.Dial("ws"+strings.TrimPrefix(g.server.URL, "http"), http.Header{"Host": {host}, "Origin": {"http://" + host}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dialed.Cut)
	c := &client{Client: dialed, t: t}
	c.say(`{"type":"register","userId":"alice"}`)
	c.wantError(protocol.CodeUnauthorized, "")
	c.wantEnd(protocol.CloseUnauthorized)
}

// The end of a token is the end of its connection, to the second, unless a new one was shown.
func TestAConnectionEndsWithItsToken(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	c, f := x.enter(x.token("alice", 4*time.Second))
	kept, kf := x.enter(x.token("bob", 4*time.Second))
	kept.renew(x.token("bob", time.Hour))
	if r := kept.next("refreshed"); r.ID != "r" || expiresAt(t, r) < expiresAt(t, kf)+3000 {
		t.Errorf("%s, want an hour", r)
	}
	end := time.Unix(expiresAt(t, f), 0)
	c.wantAlive()
	closing := c.wantEnd(protocol.CloseTokenExpired)
	if late := closing.At.Sub(end); late < 0 {
		t.Errorf("%v before its time", -late)
	} else {
		t.Logf("closed %v after the token's end", late)
	}
	kept.wantAlive()
}

// What is shown in vain costs nothing: the connection lives on by its first token.
func TestABadRefreshChangesNothing(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	c, f := x.enter(x.token("alice", time.Hour))
	for name, tc := range map[string]struct {
		token   string
		code    protocol.ErrorCode
		message string
	}{
		"made up":   {"x", protocol.CodeUnauthorized, "token: malformed"},
		"run out":   {x.token("alice", -time.Second), protocol.CodeUnauthorized, "token: expired"},
		"another's": {x.token("bob", time.Hour), protocol.CodeForbidden, "token: another user's"},
	} {
		t.Run(name, func(t *testing.T) {
			err := gatewaytest.Poll(patience, func() error { // one a second is looked at
				c.renew(tc.token)
				e := c.next("error")
				if e.CodeText() == string(protocol.CodeLimited) {
					return fmt.Errorf("refused: %s", e)
				}
				if e.CodeText() != string(tc.code) || e.Message != tc.message || e.ID != "r" {
					t.Errorf("got %s, want %s %s", e, tc.code, tc.message)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	c.wantAlive()
	if f.UserID != "alice" {
		t.Error(f)
	}
}

func TestRefreshesAreLimited(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	c, _ := x.enter(x.token("alice", time.Hour))
	looked := x.handler.cfg.Tokens.Stats().Accepted
	for range 50 {
		c.renew(x.token("alice", time.Hour))
	}
	c.next("refreshed")
	if f := c.next("error"); f.CodeText() != string(protocol.CodeLimited) || f.Limit != "refresh-rate" || f.Retry <= 0 {
		t.Errorf("got %s", f)
	}
	c.wantAlive()
	if n := x.handler.cfg.Tokens.Stats().Accepted - looked; n > 25 { // one a second; a busy machine may take some
		t.Errorf("%d tokens were looked at", n)
	}
}

// Redis did not answer the first register, and may have it all the same: with the meta of the token it was shown. Another meta wants
// another connection, and the client is told to make one, as it is told to wait before it shows a token again.
func TestARegisterThatIsRepeated(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded), func(s *settings) { s.handler.RegisterWait, s.registry.Timeout = 50*time.Millisecond, patience })
	first, second := x.token("alice", time.Hour, "meta", map[string]int{"v": 1}), x.token("alice", time.Hour, "meta", map[string]int{"v": 2})
	for name, tc := range map[string]struct {
		token string
		good  bool
	}{"with the same meta": {first, true}, "with another": {second, false}} {
		t.Run(name, func(t *testing.T) {
			release := x.general.hold("alice")
			c := x.open()
			c.say(`{"type":"register","token":"` + first + `"}`)
			c.wantError(protocol.CodeUnavailable, "")
			looked := x.handler.cfg.Tokens.Stats().Accepted
			for range 50 {
				c.say(`{"type":"register","token":"` + first + `"}`)
			}
			c.say(`{"type":"heartbeat"}`)
			limited := 0
			for f := c.next("error"); f.CodeText() != string(protocol.CodeNotRegistered); f = c.next("error") {
				if f.CodeText() == string(protocol.CodeLimited) && f.Limit == "refresh-rate" && f.Retry > 0 {
					limited++
				}
			}
			if n := x.handler.cfg.Tokens.Stats().Accepted - looked; n > 25 || limited != 50-int(n) { // one a second; a busy machine may take some
				t.Errorf("%d tokens were looked at, %d refused", n, limited)
			}
			release()
			looked = x.handler.cfg.Tokens.Stats().Accepted
			eventually(t, "the token is looked at", func() bool {
				_ = c.WriteFrame(1, []byte(`{"type":"register","token":"`+tc.token+`"}`)) // it may be closed already
				return x.handler.cfg.Tokens.Stats().Accepted > looked
			})
			if tc.good {
				c.next("registered")
				return
			}
			eventually(t, "it is forbidden", func() bool { return c.next("error").CodeText() == string(protocol.CodeForbidden) })
			c.wantEnd(protocol.CloseSuperseded)
		})
	}
}

func TestWithoutTokensThereIsNoRefresh(t *testing.T) {
	g := embedded(t)
	c := g.connect("alice")
	c.renew("x")
	c.wantError(protocol.CodeUnknownType, "r")
}

// What a token does not allow is forbidden from the first frame on, and ended when a new token says so.
func TestClaimsLimitWhatAConnectionDoes(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	x.enter(x.token("bob", time.Hour))
	c := x.open()
	c.say(`{"type":"register","rooms":{"team-1":null,"secret":null,"\"staff\"":null},"token":"` + x.token("alice", time.Hour,
		"rooms", []string{"team-*", "lobby"}, "watch", []string{"bob", "carol"}, "limits", map[string]int{"rooms": 2, "watches": 1}) + `"}`)
	c.next("registered")
	if f := c.next("joined"); f.Room != "team-1" {
		t.Errorf("joined %s", f)
	}
	if f := c.wantError(protocol.CodeForbidden, ""); !slices.Equal(f.RoomNames(), []string{"secret", `"staff"`}) {
		t.Errorf("refused: %s", f)
	}
	ask := func(frame string, code protocol.ErrorCode) {
		t.Helper()
		c.say(frame)
		c.wantError(code, "q")
	}
	c.say(`{"type":"join","id":"j","room":"lobby"}`)
	c.next("joined")
	ask(`{"type":"join","id":"q","room":"secret"}`, protocol.CodeForbidden)
	ask(`{"type":"join","id":"q","room":"team-2"}`, protocol.CodeLimited)
	ask(`{"type":"message","id":"q","room":"secret","content":1}`, protocol.CodeNotJoined)
	c.say(`{"type":"watch","id":"w","users":["bob","alice"]}`)
	c.wantError(protocol.CodeLimited, "w")
	c.say(`{"type":"watch","id":"w","users":["bob"]}`)
	c.next("presence")
	ask(`{"type":"watch","id":"q","users":["dave"]}`, protocol.CodeForbidden)
	ask(`{"type":"presence","id":"q","users":["bob","dave"]}`, protocol.CodeForbidden)
	c.say(`{"type":"presence","id":"p","users":["bob","alice"]}`) // oneself always
	c.next("presence")

	// To end a watch tells of nobody either.
	x.enter(x.token("dave", time.Hour))
	c.say(`{"type":"unwatch","id":"u","users":["dave","bob"]}`)
	if f := c.next("presence"); f.ID != "u" || f.States()["dave"].State != "unknown" || f.States()["bob"].State != "online" {
		t.Errorf("got %s", f)
	}
	c.say(`{"type":"watch","id":"w","users":["bob"]}`)
	c.next("presence")

	c.renew(x.token("alice", time.Hour, "rooms", []string{"lobby"}, "watch", []string{}, "limits", map[string]int{"messageRate": 0}))
	if f := c.next("left"); f.Room != "team-1" || f.ID != "" {
		t.Errorf("left %s", f)
	}
	c.next("refreshed")
	if n := x.registry.Stats(); n.HeldRooms != 1 || n.HeldWatches != 0 {
		t.Errorf("%d rooms and %d watches are held", n.HeldRooms, n.HeldWatches)
	}
	ask(`{"type":"message","id":"q","to":"bob","content":1}`, protocol.CodeForbidden)
	c.wantAlive()
}

func TestTheRateOfATokenHolds(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	c, _ := x.enter(x.token("alice", time.Hour, "limits", map[string]int{"messageRate": 5}))
	began := time.Now()
	for i := range 12 {
		wantAck(t, c.send("bob", "hi", fmt.Sprint("m", i)), protocol.StatusStored, uint64(i+1), 0)
	}
	if took := time.Since(began); took < 1390*time.Millisecond {
		t.Errorf("12 messages in %v at 5 a second", took)
	}
}

// What is revoked ends everywhere, and what is not lives on.
func TestRevocationClosesConnectionsOnEveryGateway(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	gateways := []*guarded{guard(t, r), guard(t, r), guard(t, r)}
	var hit, spared []*client
	for i, x := range gateways {
		a, _ := x.enter(x.token("alice", time.Hour))
		b, _ := x.enter(x.token("bob", time.Hour, "jti", fmt.Sprint("b", i)))
		hit, spared = append(hit, a), append(spared, b)
	}
	began := time.Now()
	if err := gateways[0].revocations.Revoke(context.Background(), auth.Revocation{User: "alice"}); err != nil {
		t.Fatal(err)
	}
	var last time.Duration
	for _, c := range hit {
		last = max(last, c.wantEnd(protocol.CloseRevoked).At.Sub(began))
	}
	t.Logf("closed on three gateways %v after the call", last)
	for _, c := range spared {
		c.wantAlive()
	}
	if err := gateways[2].revocations.Revoke(context.Background(), auth.Revocation{TokenID: "b1"}); err != nil {
		t.Fatal(err)
	}
	spared[1].wantEnd(protocol.CloseRevoked)
	spared[0].wantAlive()
	if err := gateways[1].revocations.Revoke(context.Background(), auth.Revocation{All: true}); err != nil {
		t.Fatal(err)
	}
	spared[0].wantEnd(protocol.CloseRevoked)
	spared[2].wantEnd(protocol.CloseRevoked)
}

// Whoever is held for what he sends, and for longer than anybody waits, is still closed at once, and what is held isn't sent.
func TestWhoIsHeldIsRevokedAtOnce(t *testing.T) {
	large := []byte(fmt.Sprintf(`{"type":"heartbeat","x":%q}`, strings.Repeat("x", 60_000)))
	for name, tc := range map[string]struct {
		limits Limits
		kind   int
		frame  []byte
	}{
		"for messages":       {Limits{MessageRate: 1}, websocket.TextMessage, []byte(`{"type":"message","to":"bob","content":1}`)},
		"for frames":         {Limits{FrameRate: 1}, websocket.TextMessage, []byte(`{"type":"heartbeat"}`)},
		"for control frames": {Limits{FrameRate: 1}, websocket.PingMessage, nil},
		"for bytes":          {Limits{ByteRate: 1000}, websocket.TextMessage, large},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := guard(t, gatewaytest.StartEmbedded(t))
			c, _ := x.enter(x.token("alice", time.Hour))
			x.handler.Reload(tc.limits)
			for range 30 {
				if err := c.WriteFrame(tc.kind, tc.frame); err != nil {
					t.Fatal(err)
				}
			}
			frames := func() uint64 { return x.handler.Stats().Frames }
			for before := frames(); ; before = frames() { // until it is held
				<-time.After(300 * time.Millisecond)
				if frames() <= before+1 {
					break
				}
			}
			began := time.Now()
			if err := x.revocations.Revoke(context.Background(), auth.Revocation{User: "alice"}); err != nil {
				t.Fatal(err)
			}
			c.wantEnd(protocol.CloseRevoked)
			c.Cut()
			eventually(t, "its reader has ended", func() bool { return x.manager.Count() == 0 })
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("over after %v", took)
			}
			if sent := len(c.Notes().Acked); sent > 5 {
				t.Errorf("%d messages were sent, and more than a few can't have been in time", sent)
			}
		})
	}
}

// The word comes while alice is being entered: too late for what is checked before, too early for her to be found.
func TestWhoIsRevokedWhileRegisteringIsClosed(t *testing.T) {
	x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded), func(s *settings) { s.handler.RegisterWait, s.registry.Timeout = patience, patience })
	token := x.token("alice", time.Hour)
	release := x.general.hold("alice")
	c := x.open()
	c.say(`{"type":"register","token":"` + token + `"}`)
	eventually(t, "the register waits", x.general.holds)
	if err := x.revocations.Revoke(context.Background(), auth.Revocation{User: "alice"}); err != nil {
		t.Fatal(err)
	}
	alice := auth.Identity{User: "alice", IssuedAt: time.Now().Unix() - 1}
	eventually(t, "the revocation is known", func() bool { return x.revocations.Hits(&alice) })
	release()
	c.wantEnd(protocol.CloseRevoked)
}

// A token may allow no frame to others at all. To end what its connection has is none.
func TestWhoMaySendNothingMayLeaveAndUnwatch(t *testing.T) {
	for name, rate := range map[string]int{"with a rate": 2, "without": 0} {
		t.Run(name, func(t *testing.T) {
			x := guard(t, gatewaytest.Shared(t, gatewaytest.Embedded), func(s *settings) { s.handler.MessageRate = rate })
			c := x.open()
			c.say(`{"type":"register","rooms":{"lobby":null,"attic":null},"token":"` + x.token("alice", time.Hour, "limits", map[string]int{"messageRate": 0}) + `"}`)
			c.next("registered")
			c.next("joined")
			c.next("joined")
			for _, frame := range []string{
				`{"type":"message","id":"q","to":"bob","content":1}`, `{"type":"join","id":"q","room":"cellar"}`, `{"type":"history","id":"q"}`,
				`{"type":"presence","id":"q","users":["bob"]}`, `{"type":"watch","id":"q","users":["bob"]}`, `{"type":"members","id":"q","room":"lobby"}`,
			} {
				c.say(frame)
				if f := c.wantError(protocol.CodeForbidden, "q"); f.Limit != "message-rate" {
					t.Errorf("%s: %s", frame, f)
				}
			}
			c.say(`{"type":"leave","id":"l","room":"lobby"}`)
			c.next("left")
			c.say(`{"type":"unwatch","id":"u","users":["bob"]}`)
			c.next("presence")
			// But not as often as he likes: the reader is held.
			began := time.Now()
			for range 5 {
				c.say(`{"type":"unwatch","id":"u","users":["bob"]}`)
			}
			c.say(`{"type":"leave","id":"l","room":"attic"}`)
			c.next("left")
			if took := time.Since(began); rate > 0 && took < 2*time.Second { // 8 in all, of which 2 at once and the rest 2 a second
				t.Errorf("answered after %v", took)
			}
		})
	}
}
