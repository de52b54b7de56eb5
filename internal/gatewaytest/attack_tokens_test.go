//go:build !secondpass

package gatewaytest

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Claims of a token, or its header.
type claims map[string]any

// but is c with other values; a nil one is left out.
func (c claims) but(name string, value any) claims {
	c = maps.Clone(c)
	if c[name] = value; value == nil {
		delete(c, name)
	}
	return c
}

// mint makes a token by hand. The key is an RSA key, the bytes of a shared secret, or nil for no signature at all.
func mint(t testing.TB, header, payload any, key any) string {
	t.Helper()
	part := func(v any) string {
		raw, ok := v.(string)
		if !ok {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			raw = string(b)
		}
		return base64.RawURLEncoding.EncodeToString([]byte(raw))
	}
	signed := part(header) + "." + part(payload)
	digest := sha256.Sum256([]byte(signed))
	var signature []byte
	switch k := key.(type) {
	case *rsa.PrivateKey:
		var err error
		if signature, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:]); err != nil {
			t.Fatal(err)
		}
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(signed))
		signature = mac.Sum(nil)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// The gateway takes tokens of one issuer, signed by an RSA key or with a secret. What a stranger can make of what he knows, and what an
// issuer may get wrong, is refused for its own reason; those who chat notice nothing.
func TestBadTokensAreRefusedAndHurtNobodyElse(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	secret := []byte("a secret of more than thirty-two bytes")
	dir := t.TempDir()
	files := map[string][]byte{"public.pem": public, "secret": secret}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{
		"--limits.connect-rate-per-ip=0", "--auth.issuers=id", "--auth.audiences=chat", "--auth.max-lifetime=24h", "--auth.leeway=30s",
		"--auth.keys=" + filepath.Join(dir, "public.pem"), "--auth.secrets=" + filepath.Join(dir, "secret"),
	}})
	now := time.Now().Unix()
	good := claims{"iss": "id", "aud": "chat", "sub": "mallory", "iat": now - 5, "exp": now + 3600}
	rs, hs := claims{"alg": "RS256", "typ": "JWT"}, claims{"alg": "HS256", "typ": "JWT"}
	enter := func(user string) *Client {
		c := Open(t, g.WS())
		if _, err := c.Register(user, "token", mint(t, rs, good.but("sub", user), private)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	n := &neighbours{alice: enter("alice"), bob: enter("bob")}

	by := func(c claims) string { return mint(t, rs, c, private) }
	const (
		unauthorized, expired = 4501, 4006
		ok                    = 0
	)
	for name, tc := range map[string]struct {
		token any    // nil: none
		as    string // the userId; empty: left out
		code  string // of the error; empty: there is none
		says  string // its message, or the beginning
		end   int    // the close code; 0: the connection lives
	}{
		"good":                            {token: by(good), end: ok},
		"good, with the secret":           {token: mint(t, hs, good, secret), end: ok},
		"none at all":                     {as: "mallory", code: "unauthorized", says: "anonymous users are not let in", end: unauthorized},
		"empty":                           {token: "", code: "bad_request", says: "token", end: ok},
		"a number":                        {token: 7, code: "bad_request", says: "token", end: ok},
		"a word":                          {token: "secret", code: "unauthorized", says: "token: malformed", end: unauthorized},
		"alg none":                        {token: mint(t, claims{"alg": "none"}, good, nil), code: "unauthorized", says: "token: algorithm", end: unauthorized},
		"alg None, signed":                {token: mint(t, claims{"alg": "None"}, good, private), code: "unauthorized", says: "token: algorithm", end: unauthorized},
		"no alg":                          {token: mint(t, claims{"typ": "JWT"}, good, private), code: "unauthorized", says: "token: algorithm", end: unauthorized},
		"another alg":                     {token: mint(t, claims{"alg": "HS384"}, good, secret), code: "unauthorized", says: "token: algorithm", end: unauthorized},
		"the public key as secret":        {token: mint(t, hs, good, public), code: "unauthorized", says: "token: signature", end: unauthorized},
		"the public key's bytes":          {token: mint(t, hs, good, der), code: "unauthorized", says: "token: signature", end: unauthorized},
		"an empty secret":                 {token: mint(t, hs, good, []byte{}), code: "unauthorized", says: "token: signature", end: unauthorized},
		"an RSA signature under HS256":    {token: mint(t, hs, good, private), code: "unauthorized", says: "token: signature", end: unauthorized},
		"no signature":                    {token: mint(t, rs, good, nil), code: "unauthorized", says: "token: signature", end: unauthorized},
		"kid: a file":                     {token: mint(t, hs.but("kid", "../../../dev/null"), good, []byte{}), code: "unauthorized", says: "token: signature", end: unauthorized},
		"kid: a query":                    {token: mint(t, hs.but("kid", "x' UNION SELECT 'a"), good, []byte("a")), code: "unauthorized", says: "token: signature", end: unauthorized},
		"kid: a place":                    {token: mint(t, hs.but("kid", "http://127.0.0.1/key"), good, []byte("a")), code: "unauthorized", says: "token: signature", end: unauthorized},
		"kid: control characters":         {token: mint(t, hs.but("kid", "a\r\nb\x00"), good, []byte("a")), code: "unauthorized", says: "token: signature", end: unauthorized},
		"kid: 300 bytes":                  {token: mint(t, hs.but("kid", strings.Repeat("k", 300)), good, secret), code: "unauthorized", says: "token: malformed", end: unauthorized},
		"kid: a number":                   {token: mint(t, hs.but("kid", 7), good, secret), code: "unauthorized", says: "token: malformed", end: unauthorized},
		"it brings its key":               {token: mint(t, rs.but("jwk", claims{"kty": "RSA"}), good, private), code: "unauthorized", says: "token: malformed", end: unauthorized},
		"it says where its key is":        {token: mint(t, rs.but("jku", "http://evil.example/"), good, private), code: "unauthorized", says: "token: malformed", end: unauthorized},
		"it is a logout":                  {token: mint(t, rs.but("typ", "logout+jwt"), good, private), code: "unauthorized", says: "token: malformed", end: unauthorized},
		"exp missing":                     {token: by(good.but("exp", nil)), code: "unauthorized", says: "token: claims", end: unauthorized},
		"exp past":                        {token: by(good.but("exp", now-1)), code: "unauthorized", says: "token: expired", end: expired},
		"exp past by a fraction":          {token: by(good.but("exp", float64(now)-0.5)), code: "unauthorized", says: "token: expired", end: expired},
		"exp a fraction":                  {token: by(good.but("exp", float64(now)+100.5)), end: ok},
		"exp 1e300":                       {token: by(good.but("exp", 1e300)), code: "unauthorized", says: "token: claims", end: unauthorized},
		"exp a text":                      {token: by(good.but("exp", "never")), code: "unauthorized", says: "token: claims", end: unauthorized},
		"exp too far":                     {token: by(good.but("exp", now+7*86400)), code: "unauthorized", says: "token: lifetime", end: unauthorized},
		"iat missing":                     {token: by(good.but("iat", nil)), code: "unauthorized", says: "token: claims", end: unauthorized},
		"iat ahead":                       {token: by(good.but("iat", now+1800)), code: "unauthorized", says: "token: not_yet", end: unauthorized},
		"nbf ahead":                       {token: by(good.but("nbf", now+1800)), code: "unauthorized", says: "token: not_yet", end: unauthorized},
		"aud missing":                     {token: by(good.but("aud", nil)), code: "unauthorized", says: "token: audience", end: unauthorized},
		"aud another service":             {token: by(good.but("aud", []string{"shop"})), code: "unauthorized", says: "token: audience", end: unauthorized},
		"iss missing":                     {token: by(good.but("iss", nil)), code: "unauthorized", says: "token: issuer", end: unauthorized},
		"iss another":                     {token: by(good.but("iss", "evil")), code: "unauthorized", says: "token: issuer", end: unauthorized},
		"sub missing":                     {token: by(good.but("sub", nil)), code: "unauthorized", says: "token: subject", end: unauthorized},
		"sub a number":                    {token: by(good.but("sub", 7)), code: "unauthorized", says: "token: claims", end: unauthorized},
		"sub with NUL":                    {token: by(good.but("sub", "a\x00b")), code: "unauthorized", says: "token: subject", end: unauthorized},
		"sub of 10 KB":                    {token: by(good.but("sub", strings.Repeat("a", 10<<10))), code: "unauthorized", says: "token: too_large", end: unauthorized},
		"sub other than userId":           {token: by(good), as: "alice", code: "forbidden", says: "userId: not the token's", end: unauthorized},
		"a claim twice":                   {token: mint(t, rs, `{"iss":"id","aud":"chat","sub":"mallory","sub":"alice","iat":1,"exp":2}`, private), code: "unauthorized", says: "token: claims", end: unauthorized},
		"claims that are no object":       {token: mint(t, rs, `["alice"]`, private), code: "unauthorized", says: "token: claims", end: unauthorized},
		"claims 1,000 levels deep":        {token: mint(t, rs, strings.Repeat(`[`, 1000)+strings.Repeat("]", 1000), private), code: "unauthorized", says: "token: claims", end: unauthorized},
		"rooms null":                      {token: mint(t, rs, strings.Replace(mustJSON(t, good), "{", `{"rooms":null,`, 1), private), code: "unauthorized", says: "token: claims", end: unauthorized},
		"as many dots as a token may be":  {token: strings.Repeat(".", 8<<10), code: "unauthorized", says: "token: malformed", end: unauthorized},
		"as many dots as a frame may be":  {token: strings.Repeat(".", 60<<10), code: "unauthorized", says: "token: too_large", end: unauthorized},
		"a megabyte of dots":              {token: strings.Repeat(".", 1<<20), end: websocket.CloseMessageTooBig},
		"a line break in it":              {token: strings.Replace(by(good), ".", ".\n", 1), code: "unauthorized", says: "token: malformed", end: unauthorized},
		"padded":                          {token: by(good) + "=", code: "unauthorized", says: "token: malformed", end: unauthorized},
		"four parts":                      {token: by(good) + ".a", code: "unauthorized", says: "token: malformed", end: unauthorized},
		"one byte of the signature wrong": {token: flipped(by(good)), code: "unauthorized", says: "token: signature", end: unauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			c := Open(t, g.WS())
			register := map[string]any{"type": "register"}
			if tc.token != nil {
				register["token"] = tc.token
			}
			if tc.as != "" {
				register["userId"] = tc.as
			}
			// Writing more than is read may fail when the gateway has closed already.
			if err := c.Write(register); err != nil && tc.end != websocket.CloseMessageTooBig {
				t.Fatal(err)
			}
			switch {
			case tc.code != "":
				f, err := c.Next("error", Deadline)
				if err != nil {
					t.Fatal(err)
				}
				if f.CodeText() != tc.code || !strings.HasPrefix(f.Message, tc.says) {
					t.Errorf("got %v, want %s %q", f, tc.code, tc.says)
				}
			case tc.end == ok:
				if _, err := c.Next("registered", Deadline); err != nil {
					t.Error(err)
				}
			}
			if tc.end != ok {
				ended, err := c.WaitEnd(Deadline)
				if err != nil || ended.Code != tc.end {
					t.Errorf("%v, %v, want %d", ended, err, tc.end)
				}
			} else if c.Ended() != nil {
				t.Errorf("%v", c.Ended())
			}
			n.wantChat(t)
		})
	}

	// What stands in an address is kept by logs and proxies, and what a browser sends by itself proves nothing of the page: only the frame counts.
	for name, tc := range map[string]struct {
		query  string
		header http.Header
	}{
		"in the address":     {query: "?token=" + by(good)},
		"as a bearer":        {header: http.Header{"Authorization": {"Bearer " + by(good)}}},
		"in a cookie":        {header: http.Header{"Cookie": {"token=" + by(good)}}},
		"as a user of a URL": {header: http.Header{"Authorization": {"Basic bWFsbG9yeTp4"}, "X-Forwarded-User": {"mallory"}, "Remote-User": {"mallory"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(g.WS()+tc.query, tc.header)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Cut()
			if err := c.Write(map[string]any{"type": "register", "userId": "mallory"}); err != nil {
				t.Fatal(err)
			}
			if ended, err := c.WaitEnd(Deadline); err != nil || ended.Code != unauthorized {
				t.Errorf("%v, %v, want %d", ended, err, unauthorized)
			}
			n.wantChat(t)
		})
	}

	t.Run("expired while connected", func(t *testing.T) {
		end := time.Now().Unix() + 3
		c := Open(t, g.WS())
		if _, err := c.Register("mallory", "token", by(good.but("exp", end))); err != nil {
			t.Fatal(err)
		}
		n.wantChat(t)
		ended, err := c.WaitEnd(2 * Deadline)
		if err != nil || ended.Code != expired || !ended.Closing.Reconnect || ended.Closing.At.Before(time.Unix(end, 0)) {
			t.Errorf("%v, %v, want %d after the token's end", ended, err, expired)
		}
		n.wantChat(t)
	})
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// flipped is a token with another first character of its signature. The last one may have bits that say nothing.
func flipped(token string) string {
	at := strings.LastIndexByte(token, '.') + 1
	other := byte('A')
	if token[at] == other {
		other = 'B'
	}
	return token[:at] + string(other) + token[at+1:]
}

// An empty secret would let everyone in: the gateway does not start, and names the file.
func TestGatewayWithAnEmptySecretDoesNotStart(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "a line break": "\n", "short": "secret\n", "spaces": strings.Repeat(" ", 31)} {
		t.Run(name, func(t *testing.T) {
			secret := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(secret, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			g := NewGateway(t, nil, Options{Flags: []string{"--auth.issuers=id", "--auth.audiences=chat", "--auth.secrets=" + secret}})
			if err := g.Launch(); err != nil {
				t.Fatal(err)
			}
			if code, err := g.ExitCode(startDeadline); err != nil || code != 2 {
				t.Errorf("exit code %d, %v, want 2", code, err)
			}
			if !strings.Contains(g.Log(), "auth.secrets: "+secret) {
				t.Errorf("it does not say what is wrong:\n%s", g.Log())
			}
		})
	}
}
