package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }

const (
	issuer   = "https://id.example.com"
	audience = "chat"
	patience = 20 * time.Second
)

// keyring has a key of each kind. Making an RSA key takes its time, so the tests share them.
var keyring = sync.OnceValue(func() (k struct {
	rsa    *rsa.PrivateKey
	ec     *ecdsa.PrivateKey
	ed     ed25519.PrivateKey
	secret []byte
},
) {
	k.rsa = must(rsa.GenerateKey(rand.Reader, 2048))
	k.ec = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, k.ed, _ = ed25519.GenerateKey(rand.Reader)
	k.secret = []byte("0123456789abcdef0123456789abcdef")
	return k
})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// now is when all tests of claims play.
var now = time.Unix(1_800_000_000, 0)

type object = map[string]any

// good are claims that nothing is wrong with.
func good() object {
	return object{"iss": issuer, "aud": audience, "sub": "alice", "iat": now.Unix() - 10, "exp": now.Unix() + 600}
}

// but is good claims less those that are nil, and with the others.
func but(changes object) object {
	c := good()
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// mint makes a token by hand: these tests share no code with what they test. payload is claims, or the text as it stands. The signature
// is of the key's own kind, whatever header says; nil leaves it empty.
func mint(header, payload any, key any) string {
	text := func(v any) []byte {
		if s, ok := v.(string); ok {
			return []byte(s)
		}
		return must(json.Marshal(v))
	}
	signed := b64(text(header)) + "." + b64(text(payload))
	return signed + "." + b64(sign(key, []byte(signed)))
}

func sign(key any, data []byte) []byte {
	digest := sha256.Sum256(data)
	switch k := key.(type) {
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write(data)
		return mac.Sum(nil)
	case *rsa.PrivateKey:
		return must(rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:]))
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, digest[:])
		if err != nil {
			panic(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		return ed25519.Sign(k, data)
	}
	return nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func publicPEM(public any) []byte {
	return pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(public)))
}

func file(t testing.TB, content []byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "key")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(f.Name())
}

// settings are those of a gateway that knows a key of each kind.
func settings(t testing.TB) Config {
	k := keyring()
	return Config{
		Issuers: []string{issuer}, Audiences: []string{audience, "chat2"},
		Keys:    []string{file(t, publicPEM(k.rsa.Public())), file(t, publicPEM(k.ec.Public())), file(t, publicPEM(k.ed.Public()))},
		Secrets: []string{file(t, k.secret)},
		Leeway:  30 * time.Second, MaxLifetime: 24 * time.Hour,
		KeySetRefresh: time.Hour, KeySetMinInterval: time.Hour, KeySetTimeout: patience,
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
	}
}

func newVerifier(t testing.TB, cfg Config) *Verifier {
	t.Helper()
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wantRefused(t testing.TB, err error, want Reason) {
	t.Helper()
	if refusal, ok := errors.AsType[*Refusal](err); !ok || refusal.Reason != want {
		t.Errorf("error %v, want a refusal for %s", err, want)
	}
}

func rewrite(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
