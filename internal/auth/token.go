package auth

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

const (
	// MaxTokenBytes is the longest token that is looked at.
	MaxTokenBytes = 8 << 10
	// maxHeaderBytes is the longest header, still encoded: it is read before anything is proved.
	maxHeaderBytes = 1 << 10
	maxKeyIDBytes  = 256
)

// header is what is read of a token before its signature holds: which key to try, and nothing else. The decoder is go-jose's, which
// wants exact case and refuses a name that is there twice.
type header struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
	Type      string `json:"typ"`

	// A token must not bring its own key, nor say where one is, nor ask for rules that are not known here.
	Key      json.RawMessage `json:"jwk"`
	KeyURL   json.RawMessage `json:"jku"`
	Chain    json.RawMessage `json:"x5c"`
	ChainURL json.RawMessage `json:"x5u"`
	Critical json.RawMessage `json:"crit"`
	Base64   json.RawMessage `json:"b64"`
	Zip      json.RawMessage `json:"zip"`
}

// encoding refuses what the usual decoder overlooks: bits behind the last byte, so that a token has one spelling.
var encoding = base64.RawURLEncoding.Strict()

// parseHeader looks at a token's form and header.
func parseHeader(token string) (header, error) {
	var h header
	if len(token) > MaxTokenBytes {
		return h, refuse(ReasonTooLarge, "over %d bytes", MaxTokenBytes)
	}
	// The decoders of encoding/base64 skip line breaks, so the characters are checked first.
	if strings.ContainsFunc(token, notBase64url) {
		return h, refuse(ReasonMalformed, "a character that is not base64url")
	}
	parts := strings.SplitN(token, ".", 4)
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" {
		return h, refuse(ReasonMalformed, "not three parts")
	}
	if len(parts[0]) > maxHeaderBytes {
		return h, refuse(ReasonTooLarge, "header: over %d bytes", maxHeaderBytes)
	}
	raw, err := encoding.DecodeString(parts[0])
	if err != nil {
		return h, refuse(ReasonMalformed, "header: not base64url")
	}
	for _, part := range parts[1:] {
		if _, err := encoding.DecodeString(part); err != nil {
			return h, refuse(ReasonMalformed, "not base64url")
		}
	}
	if len(raw) == 0 || raw[0] != '{' || json.Unmarshal(raw, &h) != nil {
		return h, refuse(ReasonMalformed, "header: not an object with alg, kid and typ as texts, each once")
	}
	for _, member := range []json.RawMessage{h.Key, h.KeyURL, h.Chain, h.ChainURL, h.Critical, h.Base64, h.Zip} {
		if member != nil {
			return h, refuse(ReasonMalformed, "header: one of jwk, jku, x5c, x5u, crit, b64, zip")
		}
	}
	if len(h.KeyID) > maxKeyIDBytes {
		return h, refuse(ReasonMalformed, "header: kid is longer than %d bytes", maxKeyIDBytes)
	}
	// RFC 8725 section 3.11: a token made for another purpose, a logout say, is no proof of who somebody is.
	if t := strings.TrimPrefix(strings.ToLower(h.Type), "application/"); t != "" && t != "jwt" && t != "at+jwt" {
		return h, refuse(ReasonMalformed, "header: typ is not JWT")
	}
	return h, nil
}

const base64url = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

func notBase64url(r rune) bool { return !strings.ContainsRune(base64url, r) }

// algorithms are all there are. Each is bound to one kind of key, see algorithmOf, so which of them are in use is decided by the keys.
var algorithms = []jose.SignatureAlgorithm{jose.HS256, jose.RS256, jose.ES256, jose.EdDSA}

// payloadOf returns what the token says, once its signature holds under one of the keys, and the issuers that have this key.
func payloadOf(token string, alg jose.SignatureAlgorithm, keys []*key) (payload []byte, issuers []string, err error) {
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return nil, nil, refuse(ReasonMalformed, "header")
	}
	if len(keys) == 0 {
		return nil, nil, refuse(ReasonKey, "")
	}
	tried := make([]*key, 0, min(len(keys), maxTried))
	for _, k := range keys {
		if slices.ContainsFunc(tried, k.same) {
			continue
		}
		if len(tried) == maxTried {
			break
		}
		tried = append(tried, k)
		if payload, err := signed.Verify(k.public); err == nil {
			for _, other := range keys {
				if other.same(k) {
					issuers = append(issuers, other.issuer)
				}
			}
			return payload, issuers, nil
		}
	}
	return nil, nil, refuse(ReasonSignature, "")
}
