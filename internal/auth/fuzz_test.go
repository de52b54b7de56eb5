package auth

import (
	"context"
	"errors"
	"testing"

	"chatgate/internal/protocol"
)

// Whatever is shown for a token is good or refused, never both, never a panic. What is good names a user, and was signed here.
func FuzzVerify(f *testing.F) {
	k := keyring()
	v := newVerifier(f, settings(f))
	made := map[string]bool{}
	for alg, key := range map[string]any{"HS256": k.secret, "ES256": k.ec, "EdDSA": k.ed, "none": nil} {
		for _, claims := range []any{good(), but(object{"rooms": []string{"a*"}, "limits": object{"rooms": 1}, "meta": object{"a": 1}}), "x"} {
			token := mint(object{"alg": alg, "kid": "k"}, claims, key)
			made[token] = alg != "none"
			f.Add([]byte(token))
		}
	}
	f.Add([]byte(mint(`{"alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AA"}}`, good(), k.ed)))
	f.Fuzz(func(t *testing.T, token []byte) {
		id, err := v.Verify(context.Background(), token)
		if (id == nil) == (err == nil) {
			t.Fatalf("%+v and %v", id, err)
		}
		if err == nil && !made[string(token)] {
			t.Fatalf("%q is good, and nobody made it", token)
		}
		if _, ok := errors.AsType[*Refusal](err); err != nil && !ok {
			t.Fatalf("error %v", err)
		}
	})
}

// The claims behind a good signature come from an issuer, who may be wrong in any way. Whatever they are, an identity fits the rules.
func FuzzClaims(f *testing.F) {
	for _, claims := range []object{
		good(), but(object{"aud": []string{"a", audience}, "nbf": 1.5, "jti": "x"}),
		but(object{"rooms": []string{"a*", "b"}, "watch": []string{}, "limits": object{"messageRate": 1}, "meta": object{"a": object{"b": nil}}}),
	} {
		parts := mint(object{}, claims, nil)
		payload, err := encoding.DecodeString(parts[4 : len(parts)-1]) // behind "e30."
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	cfg := settings(f)
	f.Fuzz(func(t *testing.T, payload []byte) {
		id, err := cfg.identify(payload, []string{issuer})
		if err != nil {
			return
		}
		life := id.Expires - id.IssuedAt
		if !protocol.ValidID([]byte(id.User), protocol.MaxIDBytes) || id.Expires <= now.Unix() || life > 86400 || len(id.Meta) > protocol.MaxMetaBytes {
			t.Errorf("identity %+v", id)
		}
	})
}

// A key set comes from an endpoint that may be anybody's one day.
func FuzzKeySet(f *testing.F) {
	k := keyring()
	f.Add([]byte(set(webKey("r", k.rsa.Public()), webKey("e", k.ec.Public()))))
	f.Add([]byte(set(`{"kty":"OKP","crv":"Ed25519","x":"` + b64(k.ed[32:]) + `"}`)))
	f.Add([]byte(set(`{"kty":"oct","k":"AA"}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, _, err := parseKeySet(data)
		if (len(keys) == 0) == (err == nil) {
			t.Fatalf("%d keys and %v", len(keys), err)
		}
		for _, k := range keys {
			if alg, err := algorithmOf(k.public); err != nil || alg != k.alg || alg == "HS256" {
				t.Errorf("a key for %s, %v", k.alg, err)
			}
		}
	})
}
