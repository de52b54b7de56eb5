package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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

// The end of a token is the end of its connection, to the second, unless a new one was shown.
func TestAConnectionEndsWithItsToken(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
