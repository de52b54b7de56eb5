package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

const (
	// minSecretBytes is what RFC 7518 section 3.2 asks of a key for HS256: a shorter one can be guessed from any token.
	minSecretBytes = 32
	// Shorter RSA keys can be broken, longer ones cost more than a stranger's token should.
	minRSABits, maxRSABits = 2048, 8192
	// maxKeys bounds a key set.
	maxKeys = 64
	// maxKeyFile bounds a file or an answer with keys.
	maxKeyFile = 256 << 10
	// maxTried bounds the keys that one token is held against.
	maxTried = 16
)

// key verifies tokens of one issuer by one algorithm.
type key struct {
	id     string // kid; "": any
	issuer string
	alg    jose.SignatureAlgorithm
	public any // []byte, *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// fits reports whether k may verify a token with this header.
func (k *key) fits(alg jose.SignatureAlgorithm, kid string) bool {
	return k.alg == alg && (k.id == "" || kid == "" || k.id == kid)
}

// same reports whether both are one key, of whichever issuer: the tenants of one provider share theirs.
func (k *key) same(other *key) bool {
	if secret, ok := k.public.([]byte); ok {
		theirs, ok := other.public.([]byte)
		return ok && bytes.Equal(secret, theirs)
	}
	public, ok := k.public.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(other.public)
}

// algorithmOf binds a kind of public key to the one algorithm it is used with here, whatever a token asks for: that is what keeps a public
// key from being taken for a shared secret. A secret is no public key, and never comes this way.
func algorithmOf(public any) (jose.SignatureAlgorithm, error) {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return "", fmt.Errorf("an RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
		}
		if k.E < 3 || k.E%2 == 0 {
			return "", errors.New("an RSA key with an exponent that proves nothing")
		}
		return jose.RS256, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", fmt.Errorf("a key on the curve %s, want P-256", k.Curve.Params().Name)
		}
		return jose.ES256, nil
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return "", errors.New("an Ed25519 key of the wrong size")
		}
		return jose.EdDSA, nil
	}
	return "", fmt.Errorf("a %T, want a public RSA, P-256 or Ed25519 key", public)
}

// loadKeys reads every file that the configuration names.
func (c *Config) loadKeys() ([]*key, error) {
	var all []*key
	var errs []error
	load := func(setting string, entries []string, parse func([]byte) ([]*key, error)) {
		for _, entry := range entries {
			issuer, path, err := c.issuerOf(entry)
			var data []byte
			if err == nil {
				data, err = readKeyFile(path)
			}
			var keys []*key
			if err == nil {
				if keys, err = parse(data); err != nil {
					err = fmt.Errorf("%s: %w", path, err)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("auth.%s: %w", setting, err))
			}
			for _, k := range keys {
				k.issuer = issuer
			}
			all = append(all, keys...)
		}
	}
	load("keys", c.Keys, parsePublicKeys)
	load("secrets", c.Secrets, func(data []byte) ([]*key, error) {
		secret, err := parseSecret(data)
		return []*key{{alg: jose.HS256, public: secret}}, err
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return all, nil
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxKeyFile)
	}
	return data, err
}

// parseSecret takes the content of a file, less the line break an editor puts at its end. A file that holds a public key in any usual
// form is refused: everyone knows that one, so everyone could sign with it.
func parseSecret(data []byte) ([]byte, error) {
	secret := []byte(strings.TrimRight(string(data), "\r\n"))
	switch {
	case len(secret) == 0:
		return nil, errors.New("the secret is empty")
	case len(secret) < minSecretBytes:
		return nil, fmt.Errorf("a secret of %d bytes, want at least %d: openssl rand -base64 48", len(secret), minSecretBytes)
	case looksPublic(secret), looksPublic(data): // the last byte of DER may look like a line break
		return nil, errors.New("this is a key or certificate, no shared secret: it belongs to auth.keys")
	}
	return secret, nil
}

func looksPublic(secret []byte) bool {
	text := strings.TrimSpace(string(secret))
	if strings.Contains(text, "-----BEGIN") || strings.HasPrefix(text, "{") || strings.HasPrefix(text, "ssh-") {
		return true
	}
	if isDER(secret) {
		return true
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	return err == nil && isDER(der)
}

func isDER(data []byte) bool {
	_, err1 := x509.ParsePKIXPublicKey(data)
	_, err2 := x509.ParsePKCS1PublicKey(data)
	_, err3 := x509.ParseCertificate(data)
	return err1 == nil || err2 == nil || err3 == nil
}

// parsePublicKeys reads PEM, or a key set.
func parsePublicKeys(data []byte) ([]*key, error) {
	if text := strings.TrimSpace(string(data)); strings.HasPrefix(text, "{") {
		keys, skipped, err := parseKeySet(data)
		if err == nil && len(skipped) > 0 {
			err = fmt.Errorf("a key that can't be used: %w", errors.Join(skipped...))
		}
		return keys, err
	}
	var keys []*key
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if strings.Contains(string(rest), "-----BEGIN") {
				return nil, errors.New("a PEM block that is cut off or damaged")
			}
			break
		}
		public, err := publicOf(block)
		if err != nil {
			return nil, err
		}
		alg, err := algorithmOf(public)
		if err != nil {
			return nil, err
		}
		keys = append(keys, &key{alg: alg, public: public})
	}
	if len(keys) == 0 {
		return nil, errors.New("neither PEM nor a JSON Web Key Set; a shared secret belongs to auth.secrets")
	}
	return keys, nil
}

func publicOf(block *pem.Block) (any, error) {
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return c.PublicKey, nil
	}
	if strings.HasSuffix(block.Type, "PRIVATE KEY") {
		return nil, errors.New("a private key, which a gateway needs not and should not have: openssl pkey -pubout")
	}
	return nil, fmt.Errorf("a PEM block %q, want PUBLIC KEY or CERTIFICATE", block.Type)
}

// parseKeySet reads a JSON Web Key Set (RFC 7517). Keys that are of no use here are skipped, as its section 5 asks, and each is told
// why: sets hold keys of other purposes. No key at all is an error.
func parseKeySet(data []byte) (keys []*key, skipped []error, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, nil, errors.New("not a JSON Web Key Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, nil, fmt.Errorf("a key set of %d keys, want at most %d", len(set.Keys), maxKeys)
	}
	for i, raw := range set.Keys {
		k, err := parseWebKey(raw)
		if err != nil {
			skipped = append(skipped, fmt.Errorf("key %d: %w", i+1, err))
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, skipped, errors.Join(append([]error{errors.New("a key set without a key that can be used")}, skipped...)...)
	}
	return keys, skipped, nil
}

func parseWebKey(raw []byte) (*key, error) {
	var w jose.JSONWebKey
	var more struct {
		Kty string   `json:"kty"`
		Ops []string `json:"key_ops"`
	}
	if err := json.Unmarshal(raw, &more); err != nil {
		return nil, errors.New("not an object as RFC 7517 has it")
	}
	if more.Kty == "oct" {
		return nil, errors.New("a shared secret, which a key set must not show")
	}
	if err := w.UnmarshalJSON(raw); err != nil {
		return nil, errors.New("not a key of a known kind, or damaged")
	}
	alg, err := algorithmOf(w.Key)
	switch {
	case err != nil:
		return nil, err
	case w.Algorithm != "" && w.Algorithm != string(alg):
		return nil, fmt.Errorf("its alg is not %s, the only one for its kind", alg)
	case w.Use != "" && w.Use != "sig", more.Ops != nil && !slices.Contains(more.Ops, "verify"):
		return nil, errors.New("not meant for signatures")
	case len(w.KeyID) > maxKeyIDBytes:
		return nil, fmt.Errorf("its kid is longer than %d bytes", maxKeyIDBytes)
	}
	return &key{id: w.KeyID, alg: alg, public: w.Key}, nil
}
