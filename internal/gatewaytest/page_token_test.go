//go:build !secondpass

package gatewaytest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A gateway that takes tokens refuses a page without one. The page asks for it then, shows it to nobody but the gateway, and asks again when
// its time is over.
func TestPageAsksForATokenWhereOneIsWanted(t *testing.T) {
	secret := []byte("a secret of more than thirty-two bytes")
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--auth.issuers=id", "--auth.audiences=chat", "--auth.secrets=" + file}})
	tokenOf := func(user string, lives time.Duration) string {
		now := time.Now()
		return mint(t, claims{"alg": "HS256"}, claims{"iss": "id", "aud": "chat", "sub": user, "iat": now.Unix(), "exp": now.Add(lives).Unix()}, secret)
	}
	alice := startChromium(t).open("alice", g.URL()+"/?user=alice&to=bob")
	shown := func() (is bool) {
		alice.eval("!document.querySelector('#door').hidden && document.querySelector('#enter-token').checkVisibility()", &is)
		return is
	}
	wantTheDoor := func(says string) {
		t.Helper()
		alice.wantPart("#enter-error", says)
		var focus, value string
		alice.eval("document.activeElement.id", &focus)
		alice.eval("document.querySelector('#enter-token').value", &value)
		if !shown() || focus != "enter-token" || value != "" {
			t.Fatalf("the field for a token is shown: %v, holds %q, and the focus is on %q", shown(), value, focus)
		}
	}

	wantTheDoor("anonymous users are not let in here")
	alice.fill("#enter-token", "secret")
	wantTheDoor("token: malformed")
	alice.fill("#enter-token", tokenOf("bob", time.Hour))
	wantTheDoor("userId: not the token's")

	// What a person pastes has spaces around it. It lives long enough to be looked for on a busy machine.
	const lives = 8 * time.Second
	good := tokenOf("alice", lives)
	alice.fill("#enter-token", " "+good+" ")
	alice.connected()
	alice.wantPart("#frames-list", `"token":"…"`)
	var everywhere string
	alice.eval(`document.documentElement.outerHTML + [...document.querySelectorAll('input')].map((i) => i.value) + location.href +
		JSON.stringify([document.cookie, { ...sessionStorage }, { ...localStorage }, history.state])`, &everywhere)
	if !strings.Contains(everywhere, "alice") || strings.Contains(everywhere, good[strings.LastIndexByte(good, '.')+1:]) {
		t.Error("the page keeps the token where others may see it")
	}

	// Over: the page comes back with what it has, is refused, and asks.
	err := Poll(lives+3*Deadline, func() error {
		if !shown() {
			return errors.New("still inside")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wantTheDoor("token: expired")
	bob := Open(t, g.WS())
	if _, err := bob.Register("bob", "token", tokenOf("bob", time.Hour)); err != nil {
		t.Fatal(err)
	}
	id, err := bob.Send("alice", "while you were out", "")
	if err != nil {
		t.Fatal(err)
	}
	if ack, err := bob.Ack(id, Deadline); err != nil || ack.Status != "stored" {
		t.Fatalf("%v, %v, want stored", ack, err)
	}
	alice.fill("#enter-token", tokenOf("alice", time.Hour))
	alice.connected()
	alice.click("#people li:first-child button")
	alice.wantExactly(thread+".theirs .content", "while you were out")

	// Who signs out takes the token along.
	alice.click("#sign-out")
	alice.fill("#enter-user", "alice")
	wantTheDoor("anonymous users are not let in here")
}
