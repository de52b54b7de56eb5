package auth

import (
	"bytes"
	stdjson "encoding/json"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"

	"chatgate/internal/protocol"
)

// Identity is who showed a token, and what it allows.
type Identity struct {
	User    protocol.UserID
	TokenID string // jti; may be empty
	// IssuedAt and Expires are whole seconds since 1970, as in the token; Expires is 0 where only a backend has spoken, and said none.
	IssuedAt, Expires int64
	Meta              string // a JSON object without spaces; "": the token has none
	Grant             Grant
}

// ExpiresAt is the first moment at which the token is no longer good; the zero time: it is good for ever.
func (i *Identity) ExpiresAt() time.Time {
	if i.Expires == 0 {
		return time.Time{}
	}
	return time.Unix(i.Expires, 0)
}

// ExpiresAtMs is the same in ms since 1970; 0: it is good for ever.
func (i *Identity) ExpiresAtMs() int64 { return i.Expires * 1000 }

// claims are those that are looked at. Names are matched in exact case, and one that is there twice makes the token malformed: two
// parsers that choose differently are how a token comes to mean two things.
type claims struct {
	jwt.Claims
	// Raw, because null must not be the same as absent: it is how some encoders write an empty list, which allows nothing.
	Meta   json.RawMessage `json:"meta"`
	Rooms  json.RawMessage `json:"rooms"`
	Watch  json.RawMessage `json:"watch"`
	Limits json.RawMessage `json:"limits"`
}

// latest bounds exp: beyond the year 9999 milliseconds and dates go wrong somewhere.
const latest = 253402300799

// identify reads what a token says, whose signature holds under a key of these issuers.
func (c *Config) identify(payload []byte, issuers []string) (*Identity, error) {
	var t claims
	if !utf8.Valid(payload) || len(payload) == 0 || payload[0] != '{' {
		return nil, refuse(ReasonClaims, "not an object in UTF-8")
	}
	if err := json.Unmarshal(payload, &t); err != nil {
		return nil, refuse(ReasonClaims, "a claim is of the wrong kind, or there twice")
	}
	if err := c.check(&t, issuers); err != nil {
		return nil, err
	}
	// What replaces a lone surrogate would let two subjects be one user.
	if !protocol.ValidID([]byte(t.Subject), protocol.MaxIDBytes) || strings.ContainsRune(t.Subject, utf8.RuneError) {
		return nil, refuse(ReasonSubject, "sub: not an id")
	}
	if len(t.ID) > protocol.MaxIDBytes || t.ID != "" && !protocol.ValidID([]byte(t.ID), protocol.MaxIDBytes) {
		return nil, refuse(ReasonClaims, "jti: not an id")
	}
	id := &Identity{
		User: protocol.UserID(t.Subject), TokenID: t.ID,
		IssuedAt: int64(*t.IssuedAt), Expires: int64(*t.Expiry),
	}
	var err error
	if id.Meta, err = metaOf(t.Meta); err != nil {
		return nil, err
	}
	id.Grant, err = grantOf(&t)
	return id, err
}

// check holds the registered claims against the configuration.
func (c *Config) check(t *claims, issuers []string) error {
	now := c.now()
	ahead := now.Add(c.Leeway).Unix()
	switch {
	case t.Issuer == "":
		return refuse(ReasonIssuer, "iss: missing")
	case !slices.Contains(issuers, t.Issuer):
		return refuse(ReasonIssuer, "iss: not the one whose key signed it")
	case len(t.Audience) == 0:
		return refuse(ReasonAudience, "aud: missing")
	case !slices.ContainsFunc(t.Audience, func(a string) bool { return slices.Contains(c.Audiences, a) }):
		return refuse(ReasonAudience, "aud: somebody else")
	case t.Expiry == nil:
		return refuse(ReasonClaims, "exp: missing")
	case t.IssuedAt == nil:
		return refuse(ReasonClaims, "iat: missing, and without it nothing says what was issued before")
	case int64(*t.Expiry) > latest || int64(*t.IssuedAt) < 0:
		return refuse(ReasonClaims, "exp or iat: not a time of this age")
	case now.Unix() >= int64(*t.Expiry): // RFC 7519 section 4.1.4: on or after
		return refuse(ReasonExpired, "")
	case t.NotBefore != nil && ahead < int64(*t.NotBefore):
		return refuse(ReasonNotYet, "nbf: ahead")
	case ahead < int64(*t.IssuedAt):
		return refuse(ReasonNotYet, "iat: ahead")
	case int64(*t.Expiry)-int64(*t.IssuedAt) > int64(c.MaxLifetime/time.Second):
		return refuse(ReasonLifetime, "exp: longer after iat than auth.max-lifetime")
	}
	return nil
}

// metaOf checks the meta claim as meta of a register is checked, and takes the spaces out.
func metaOf(raw json.RawMessage) (string, error) {
	if raw == nil {
		return "", nil
	}
	var compact bytes.Buffer
	var twice map[string]any // go-jose's decoder finds names that are there twice, at any depth
	if err := stdjson.Compact(&compact, raw); err != nil || raw[0] != '{' || json.Unmarshal(raw, &twice) != nil {
		return "", refuse(ReasonClaims, "meta: not an object, or a name is there twice")
	}
	if compact.Len() > protocol.MaxMetaBytes {
		return "", refuse(ReasonClaims, "meta: over %d bytes", protocol.MaxMetaBytes)
	}
	return compact.String(), nil
}
