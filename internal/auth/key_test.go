package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

func TestKeyFilesAreReadOrRefused(t *testing.T) {
	k := keyring()
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	endless := &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 16384), big.NewInt(1)), E: 65537}
	trivial := &rsa.PublicKey{N: k.rsa.N, E: 1}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "id"}}
	certificate := must(x509.CreateCertificate(rand.Reader, template, template, k.ec.Public(), k.ec))
	private := must(x509.MarshalPKCS8PrivateKey(k.ed))
	rsaPEM, rsaDER := publicPEM(k.rsa.Public()), must(x509.MarshalPKIXPublicKey(k.rsa.Public()))
	cases := map[string]struct {
		parse   func([]byte) ([]*key, error)
		content []byte
		algs    []string // of the keys in it
		want    string   // or the error
	}{
		"RSA":                    {parsePublicKeys, rsaPEM, []string{"RS256"}, ""},
		"RSA, PKCS #1":           {parsePublicKeys, pemOf("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&k.rsa.PublicKey)), []string{"RS256"}, ""},
		"P-256":                  {parsePublicKeys, publicPEM(k.ec.Public()), []string{"ES256"}, ""},
		"Ed25519":                {parsePublicKeys, publicPEM(k.ed.Public()), []string{"EdDSA"}, ""},
		"certificate":            {parsePublicKeys, pemOf("CERTIFICATE", certificate), []string{"ES256"}, ""},
		"two, with text around":  {parsePublicKeys, slices.Concat([]byte("first\n"), rsaPEM, []byte("second\n"), publicPEM(k.ed.Public()), []byte("\n")), []string{"RS256", "EdDSA"}, ""},
		"key set":                {parsePublicKeys, []byte(` {"keys":[` + webKey("k1", k.ec.Public()) + `]}`), []string{"ES256"}, ""},
		"empty":                  {parsePublicKeys, nil, nil, "neither PEM"},
		"a secret":               {parsePublicKeys, k.secret, nil, "neither PEM"},
		"DER":                    {parsePublicKeys, rsaDER, nil, "neither PEM"},
		"cut off":                {parsePublicKeys, rsaPEM[:len(rsaPEM)/2], nil, "cut off"},
		"the second one cut off": {parsePublicKeys, slices.Concat(rsaPEM, rsaPEM[:len(rsaPEM)/2]), nil, "cut off"},
		"damaged":                {parsePublicKeys, pemOf("PUBLIC KEY", rsaDER[:40]), nil, "asn1"},
		"private":                {parsePublicKeys, pemOf("PRIVATE KEY", private), nil, "a private key"},
		"public and private":     {parsePublicKeys, slices.Concat(rsaPEM, pemOf("PRIVATE KEY", private)), nil, "a private key"},
		"a request":              {parsePublicKeys, pemOf("CERTIFICATE REQUEST", private), nil, "want PUBLIC KEY"},
		"P-384":                  {parsePublicKeys, publicPEM(p384.Public()), nil, "P-384, want P-256"},
		"1,024 bits":             {parsePublicKeys, publicPEM(small.Public()), nil, "of 1024 bits"},
		"16,384 bits":            {parsePublicKeys, publicPEM(endless), nil, "of 16384 bits"},
		"exponent 1":             {parsePublicKeys, []byte(`{"keys":[` + webKey("k1", trivial) + `]}`), nil, "a key set without a key"},
		"key set, one unusable":  {parsePublicKeys, []byte(`{"keys":[` + webKey("k1", k.ec.Public()) + `,{"kty":"oct","k":"AA"}]}`), nil, "key 2: a shared secret"},
		"key set of nothing":     {parsePublicKeys, []byte(`{"keys":[]}`), nil, "without a key"},
		"no key set":             {parsePublicKeys, []byte(`{"key":1}`), nil, "without a key"},

		"secret":                          {secretKeys, k.secret, []string{"HS256"}, ""},
		"secret and a line break":         {secretKeys, append(slices.Clone(k.secret), '\r', '\n'), []string{"HS256"}, ""},
		"random bytes as base64":          {secretKeys, []byte(base64.StdEncoding.EncodeToString(k.secret)), []string{"HS256"}, ""},
		"empty secret":                    {secretKeys, nil, nil, "is empty"},
		"secret of line breaks":           {secretKeys, []byte("\n\n"), nil, "is empty"},
		"short secret":                    {secretKeys, k.secret[:31], nil, "31 bytes, want at least 32"},
		"secret is a PEM":                 {secretKeys, rsaPEM, nil, "no shared secret"},
		"secret is a PEM behind text":     {secretKeys, append([]byte("the key of id.example.com:\n"), rsaPEM...), nil, "no shared secret"},
		"secret is DER":                   {secretKeys, rsaDER, nil, "no shared secret"},
		"secret is PKCS #1 DER":           {secretKeys, x509.MarshalPKCS1PublicKey(&k.rsa.PublicKey), nil, "no shared secret"},
		"secret is a certificate":         {secretKeys, certificate, nil, "no shared secret"},
		"secret is DER that ends in 0x0A": {secretKeys, endingIn('\n', template), nil, "no shared secret"},
		"secret is DER as base64":         {secretKeys, []byte(base64.StdEncoding.EncodeToString(rsaDER)), nil, "no shared secret"},
		"secret is DER as base64, folded": {secretKeys, fold(base64.StdEncoding.EncodeToString(rsaDER)), nil, "no shared secret"},
		"secret is a web key":             {secretKeys, []byte(webKey("k1", k.rsa.Public())), nil, "no shared secret"},
		"secret is of ssh":                {secretKeys, []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== a@b"), nil, "no shared secret"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			keys, err := c.parse(c.content)
			var algs []string
			for _, k := range keys {
				algs = append(algs, string(k.alg))
			}
			switch {
			case c.want == "" && (err != nil || !slices.Equal(algs, c.algs)):
				t.Errorf("keys %v, error %v, want %v", algs, err, c.algs)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("keys %v, error %v, want %q", algs, err, c.want)
			}
		})
	}
}

// endingIn makes certificates until the last byte, which is the signature's, is c.
func endingIn(c byte, template *x509.Certificate) []byte {
	for {
		der := must(x509.CreateCertificate(rand.Reader, template, template, keyring().ec.Public(), keyring().ec))
		if der[len(der)-1] == c {
			return der
		}
	}
}

func secretKeys(data []byte) ([]*key, error) {
	secret, err := parseSecret(data)
	if err != nil {
		return nil, err
	}
	return []*key{{alg: "HS256", public: secret}}, nil
}

func fold(s string) []byte { return []byte(s[:64] + "\n" + s[64:128] + "\r\n" + s[128:] + "\n") }

// webKey writes a JSON Web Key by hand; more are further members.
func webKey(kid string, public any, more ...string) string {
	var members string
	switch k := public.(type) {
	case *rsa.PublicKey:
		members = fmt.Sprintf(`"kty":"RSA","n":"%s","e":"%s"`, b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes()))
	case *ecdsa.PublicKey:
		point := must(k.Bytes())
		members = fmt.Sprintf(`"kty":"EC","crv":"P-256","x":"%s","y":"%s"`, b64(point[1:33]), b64(point[33:]))
	}
	if kid != "" {
		members += fmt.Sprintf(`,"kid":%q`, kid)
	}
	return "{" + strings.Join(append([]string{members}, more...), ",") + "}"
}

// Where a gateway serves two issuers, a key proves only what its own says.
func TestAKeySpeaksForItsIssuerAlone(t *testing.T) {
	k := keyring()
	cfg := settings(t)
	const second = issuer + "=2" // an awkward one
	cfg.Issuers = []string{issuer, second}
	cfg.Keys = []string{issuer + "=" + file(t, publicPEM(k.ec.Public())), second + "=" + file(t, publicPEM(k.ed.Public()))}
	cfg.Secrets = nil
	v := newVerifier(t, cfg)
	verify := func(iss, alg string, key any) error {
		_, err := v.Verify(context.Background(), []byte(mint(object{"alg": alg}, but(object{"iss": iss}), key)))
		return err
	}
	if err := verify(issuer, "ES256", k.ec); err != nil {
		t.Error(err)
	}
	if err := verify(second, "EdDSA", k.ed); err != nil {
		t.Error(err)
	}
	wantRefused(t, verify(second, "ES256", k.ec), ReasonIssuer)
	wantRefused(t, verify(issuer, "EdDSA", k.ed), ReasonIssuer)
	wantRefused(t, verify(issuer, "RS256", k.rsa), ReasonKey)
}

func TestReloadTakesNewKeysOrKeepsTheOld(t *testing.T) {
	k := keyring()
	cfg := settings(t)
	cfg.Keys, cfg.Secrets = []string{file(t, publicPEM(k.ec.Public()))}, nil
	v := newVerifier(t, cfg)
	verify := func(alg string, key any) error {
		_, err := v.Verify(context.Background(), []byte(mint(object{"alg": alg}, good(), key)))
		return err
	}
	rewrite(t, cfg.Keys[0], []byte("nothing"))
	if _, err := v.Reload(cfg.Keys, nil); err == nil {
		t.Error("nothing was loaded")
	}
	if err := verify("ES256", k.ec); err != nil {
		t.Errorf("after a failed reload: %v", err)
	}
	rewrite(t, cfg.Keys[0], publicPEM(k.ed.Public()))
	apply, err := v.Reload(cfg.Keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify("ES256", k.ec); err != nil {
		t.Errorf("before it was applied: %v", err)
	}
	apply()
	if err := verify("EdDSA", k.ed); err != nil {
		t.Error(err)
	}
	wantRefused(t, verify("ES256", k.ec), ReasonKey)
	if apply, err = v.Reload([]string{file(t, publicPEM(k.ec.Public())), cfg.Keys[0]}, nil); err != nil {
		t.Fatal(err)
	}
	apply()
	for alg, key := range map[string]any{"EdDSA": k.ed, "ES256": k.ec} {
		if err := verify(alg, key); err != nil {
			t.Errorf("with another file beside it: %v", err)
		}
	}
}
