package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func tokenFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const longSecret = "a secret of more than thirty-two bytes\n"

// runs is the command, of which it wants the exit code and a part of what it says.
func runs(t *testing.T, code int, stderr string, args ...string) (stdout string) {
	t.Helper()
	var out, errs bytes.Buffer
	got := run(args, nil, &out, &errs)
	if got != code || !strings.Contains(errs.String(), stderr) || stderr == "" && errs.Len() > 0 {
		t.Errorf("%q: code %d, want %d, and %q in\n%s", args, got, code, stderr, &errs)
	}
	return out.String()
}

func TestATokenIsMadeAndVerified(t *testing.T) {
	secret := tokenFile(t, "secret", longSecret)
	other := tokenFile(t, "other", "b"+longSecret)
	settings := []string{"--auth.issuers=https://id", "--auth.audiences=chat", "--auth.secrets=" + secret}
	with := func(command []string, more ...string) []string { return append(append(command, settings...), more...) }
	gen := func(more ...string) string {
		return runs(t, 0, "", with([]string{"token", "gen", "--key=" + secret, "--user=alice"}, more...)...)
	}
	verify := func(code int, stderr, token string) string {
		return runs(t, code, stderr, with([]string{"token", "verify", tokenFile(t, "token", token)})...)
	}
	token := gen("--id=t-1", "--ttl=90s", `--claims={"rooms":["lobby"],"meta":{"a":1},"sub":"mallory"}`)
	if strings.Count(token, ".") != 2 || !strings.HasSuffix(token, "\n") || strings.Count(token, "\n") != 1 {
		t.Errorf("printed %q", token)
	}
	var shown struct {
		User, TokenID       string
		IssuedAt, ExpiresAt time.Time
		Meta                map[string]int
		Allows              struct{ Rooms []string }
	}
	if err := json.Unmarshal([]byte(verify(0, "", token)), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.User != "alice" || shown.TokenID != "t-1" || shown.ExpiresAt.Sub(shown.IssuedAt) != 90*time.Second ||
		shown.Meta["a"] != 1 || len(shown.Allows.Rooms) != 1 {
		t.Errorf("verified as %+v", shown)
	}
	if one, two := gen(), gen(); one == two {
		t.Error("two tokens have one id")
	}

	verify(1, "gateway: token refused: signature\n", token[:len(token)-12]+"\n")
	verify(1, "gateway: token refused: malformed", "")
	verify(1, "gateway: token refused: too_large", strings.Repeat("a", 1<<20))
	verify(1, "gateway: token refused: audience", gen("--aud=shop"))
	verify(1, "gateway: token refused: issuer", gen("--iss=https://other"))
	verify(1, "gateway: token refused: subject", gen("--user=a\x01b"))
	runs(t, 2, "no such file", with([]string{"token", "verify", "/nowhere/at.all"})...)
	runs(t, 2, "nothing to verify a token with", "token", "verify", secret)
	runs(t, 2, "auth.secrets: open /nowhere", "token", "verify", secret, settings[0], settings[1], "--auth.secrets=/nowhere")
	runs(t, 1, "token refused: signature", "token", "verify", tokenFile(t, "token", token), settings[0], settings[1], "--auth.secrets="+other)

	runs(t, 0, "lives longer than", with([]string{"token", "gen", "--key=" + secret, "--user=a", "--ttl=25h"})...)
	runs(t, 2, "--claims: must be a JSON object", with([]string{"token", "gen", "--key=" + secret, "--user=a", "--claims=[]"})...)
	runs(t, 2, "--claims: the token would be", with([]string{"token", "gen", "--key=" + secret, "--user=a", `--claims={"x":"` + strings.Repeat("x", 9000) + `"}`})...)
	runs(t, 2, "--iss: is needed", "token", "gen", "--key="+secret, "--user=a")
	runs(t, 2, "--aud: is needed", "token", "gen", "--key="+secret, "--user=a", "--iss=x")
	runs(t, 2, "--ttl: must be", with([]string{"token", "gen", "--key=" + secret, "--user=a", "--ttl=1ms"})...)
	runs(t, 2, "want at least 32", with([]string{"token", "gen", "--key=" + tokenFile(t, "short", "short"), "--user=a"})...)
	runs(t, 2, "missing flags: --key", with([]string{"token", "gen", "--user=a"})...)
}

// A token is as good as a password: it can be given where nobody else sees it.
func TestATokenIsReadFromStandardInput(t *testing.T) {
	secret := tokenFile(t, "secret", longSecret)
	token := runs(t, 0, "", "token", "gen", "--key="+secret, "--user=alice", "--iss=x", "--aud=chat")
	for _, arg := range [][]string{nil, {"-"}} {
		cmd := exec.Command(os.Args[0], append([]string{"token", "verify", "--auth.issuers=x", "--auth.audiences=chat", "--auth.secrets=" + secret}, arg...)...)
		cmd.Env, cmd.Stdin = []string{asCommand + "=1"}, strings.NewReader(token)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), `"user": "alice"`) {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// Where a key set can't be had nobody knows whether the token is good, which is another exit code than a bad one's.
func TestATokenThatCanNotBeJudgedHasItsOwnExitCode(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	token := "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.e30." + strings.Repeat("A", 86)
	runs(t, 3, "gateway: auth: can't judge tokens now", "token", "verify", tokenFile(t, "token", token),
		"--auth.issuers=x", "--auth.audiences=chat", "--auth.key-sets="+s.URL)
}

// What is to be revoked is said exactly, and a Redis that can't be had is its own exit code. That it works is seen on real gateways.
func TestRevokingWantsToKnowWhatAndWhere(t *testing.T) {
	const redis = "--redis.url=redis://127.0.0.1:1"
	for name, c := range map[string]struct {
		code   int
		stderr string
		args   []string
	}{
		"nothing":     {2, "missing flags", []string{redis}},
		"two things":  {2, "can't be used together", []string{redis, "--user=a", "--id=b"}},
		"no Redis":    {2, "redis.url: is empty", []string{"--user=a"}},
		"no time":     {2, "--before", []string{redis, "--user=a", "--before=yesterday"}},
		"nobody":      {2, "of a user, of a token id, or of all", []string{redis, "--user="}},
		"not all":     {2, "of a user, of a token id, or of all", []string{redis, "--all=false"}},
		"no id":       {2, "the token id is no id", []string{redis, "--id=a\nb"}},
		"the future":  {2, "before is not in the past", []string{redis, "--user=a", "--before=2999-01-01T00:00:00Z"}},
		"Redis away":  {3, "gateway: dependency missing", []string{redis, "--all", "--before=2026-11-25T17:00:00Z"}},
		"Redis, user": {3, "gateway: dependency missing", []string{redis, "--user=a"}},
	} {
		t.Run(name, func(t *testing.T) {
			runs(t, c.code, c.stderr, append([]string{"token", "revoke"}, c.args...)...)
		})
	}
}

// A key that the issuer doesn't have makes a token bad, whichever of the fetch and the look at the token comes first.
func TestATokenOfAnUnknownKeyIsRefused(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"EC","crv":"P-256","kid":"other","x":"%s","y":"%s"}]}`, b64(point[1:33]), b64(point[33:]))
	}))
	defer s.Close()
	token := "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.e30." + strings.Repeat("A", 86)
	for range 3 {
		runs(t, 1, "gateway: token refused: unknown_key", "token", "verify", tokenFile(t, "token", token),
			"--auth.issuers=x", "--auth.audiences=chat", "--auth.key-sets="+s.URL)
	}
}
