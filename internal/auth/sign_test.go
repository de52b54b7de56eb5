package auth

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// What Sign makes is what Verify takes, with a key of each kind as openssl writes it.
func TestWhatIsSignedVerifies(t *testing.T) {
	k := keyring()
	v := newVerifier(t, settings(t))
	parameters := pemOf("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7})
	for name, c := range map[string]struct {
		key []byte
		alg string
	}{
		"secret":     {append(slices.Clone(k.secret), '\n'), "HS256"},
		"RSA":        {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k.rsa))), "RS256"},
		"old RSA":    {pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k.rsa)), "RS256"},
		"P-256":      {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k.ec))), "ES256"},
		"old P-256":  {slices.Concat(parameters, pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(k.ec)))), "ES256"},
		"Ed25519":    {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k.ed))), "EdDSA"},
		"two of one": {slices.Concat(publicPEM(k.ed.Public()), pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k.ed)))), "EdDSA"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := LoadSigner(file(t, c.key), "k-1")
			if err != nil {
				t.Fatal(err)
			}
			token, err := s.Sign(must(json.Marshal(good())))
			if err != nil || s.Algorithm() != c.alg {
				t.Fatalf("by %s: %v", s.Algorithm(), err)
			}
			if id, err := v.Verify(context.Background(), []byte(token)); err != nil || id.User != "alice" {
				t.Errorf("%+v, %v", id, err)
			}
			h, err := parseHeader(token)
			if err != nil || h.KeyID != "k-1" || h.Algorithm != c.alg || h.Type != "JWT" {
				t.Errorf("header %+v, %v", h, err)
			}
		})
	}
}

func TestAKeyThatCannotSignIsRefused(t *testing.T) {
	k := keyring()
	for name, content := range map[string][]byte{
		"public":     publicPEM(k.rsa.Public()),
		"empty":      nil,
		"short":      []byte("short"),
		"encrypted":  pemOf("ENCRYPTED PRIVATE KEY", []byte{1}),
		"damaged":    pemOf("PRIVATE KEY", []byte{1}),
		"cut off":    publicPEM(k.rsa.Public())[:40],
		"a web key":  []byte(webKey("x", k.rsa.Public())),
		"DER public": must(x509.MarshalPKIXPublicKey(k.rsa.Public())),
	} {
		if s, err := LoadSigner(file(t, content), ""); err == nil || strings.Contains(err.Error(), "panic") {
			t.Errorf("%s: signs by %s", name, s.Algorithm())
		}
	}
}
