package auth

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// Signer makes tokens. A gateway has none: it is for `gateway token gen`, and for tests.
type Signer struct {
	alg    jose.SignatureAlgorithm
	signer jose.Signer
}

// LoadSigner reads a private key in PEM, or a shared secret when the file is none. The algorithm is the one of its kind. kid may be empty.
func LoadSigner(path, kid string) (*Signer, error) {
	data, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	s, err := newSigner(data, kid)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func newSigner(data []byte, kid string) (*Signer, error) {
	alg, private, err := signingKey(data)
	if err != nil {
		return nil, err
	}
	options := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		options = options.WithHeader("kid", kid)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: private}, options)
	if err != nil {
		return nil, err
	}
	return &Signer{alg: alg, signer: signer}, nil
}

func signingKey(data []byte) (jose.SignatureAlgorithm, any, error) {
	if !strings.Contains(string(data), "-----BEGIN") {
		secret, err := parseSecret(data)
		return jose.HS256, secret, err
	}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return "", nil, errors.New("no private key in it; a public one can't sign")
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue // "EC PARAMETERS" stands before a key that openssl made
		}
		private, err := parsePrivate(block)
		if err != nil {
			return "", nil, err
		}
		alg, err := algorithmOf(private.Public())
		return alg, private, err
	}
}

func parsePrivate(block *pem.Block) (crypto.Signer, error) {
	var private any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		private, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("a PEM block %q: keys with a passphrase are not read", block.Type)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T can't sign", private)
	}
	return signer, nil
}

// Algorithm is the alg of the tokens.
func (s *Signer) Algorithm() string { return string(s.alg) }

// Sign returns the token that says payload.
func (s *Signer) Sign(payload []byte) (string, error) {
	signed, err := s.signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
