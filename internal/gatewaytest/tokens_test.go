package gatewaytest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Three gateways take tokens that the command makes. Nothing is published while one user is revoked, and every gateway closes her
// connections all the same; those of others live on, and she is not let in again by what she has.
func TestARevokedUserIsClosedEverywhereWithoutAPublish(t *testing.T) {
	t.Parallel()
	r := StartRedis(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a secret of more than thirty-two bytes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := []string{"--auth.issuers=id", "--auth.audiences=chat", "--auth.secrets=" + secret}
	command := func(args ...string) string {
		t.Helper()
		var stderr bytes.Buffer
		cmd := exec.Command(Build(t), append(args, settings...)...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, &stderr)
		}
		return string(bytes.TrimSpace(out))
	}
	tokenOf := func(user string) string { return command("token", "gen", "--key", secret, "--user", user) }
	alices, bobs := tokenOf("alice"), tokenOf("bob")

	var hit, spared []*Client
	var urls []string
	for _, name := range []string{"a", "b", "c"} {
		g := StartGateway(t, r, Options{Name: name, Flags: settings})
		urls = append(urls, g.WS())
		for user, token := range map[string]string{"alice": alices, "bob": bobs} {
			c := Open(t, g.WS())
			if _, err := c.Register(user, "token", token); err != nil {
				t.Fatalf("%s on %s: %v\n%s", user, name, err, c.Story(5))
			}
			if user == "alice" {
				hit = append(hit, c)
			} else {
				spared = append(spared, c)
			}
		}
	}

	if err := r.Mute(); err != nil {
		t.Fatal(err)
	}
	command("token", "revoke", "--redis.url", r.URL, "--user", "alice")
	began := time.Now()
	for i, c := range hit {
		ended, err := c.WaitEnd(Deadline)
		if err != nil || ended.Code != 4504 {
			t.Fatalf("%v, %v, want 4504\n%s", ended, err, c.Story(5))
		}
		t.Logf("gateway %d: %v after the command's end", i+1, ended.Closing.At.Sub(began))
	}
	if err := r.Unmute(); err != nil {
		t.Fatal(err)
	}
	for _, c := range spared {
		if _, err := c.Heartbeat(Deadline); err != nil {
			t.Errorf("bob: %v\n%s", err, c.Story(5))
		}
	}
	for _, url := range urls {
		c := Open(t, url)
		if err := c.Write(map[string]any{"type": "register", "token": alices}); err != nil {
			t.Fatal(err)
		}
		if ended, err := c.WaitEnd(Deadline); err != nil || ended.Code != 4504 {
			t.Errorf("alice again: %v, %v\n%s", ended, err, c.Story(5))
		}
	}
}
