package auth

import (
	"errors"
	"fmt"
	"time"
)

// Reason is why a token was refused: metric label and log field, and what the client is told.
type Reason string

// The reasons, in the order a token is looked at. Up to ReasonSignature nothing that it says was believed.
const (
	ReasonTooLarge  Reason = "too_large"   // over MaxTokenBytes
	ReasonMalformed Reason = "malformed"   // not three parts of base64url, or no header of a JWT
	ReasonAlgorithm Reason = "algorithm"   // none of HS256, RS256, ES256 and EdDSA
	ReasonKey       Reason = "unknown_key" // no key of that id for that algorithm
	ReasonSignature Reason = "signature"   // not signed by that key
	ReasonClaims    Reason = "claims"      // a claim is missing, or of the wrong kind
	ReasonIssuer    Reason = "issuer"      // not the issuer whose key signed it
	ReasonAudience  Reason = "audience"    // meant for somebody else
	ReasonExpired   Reason = "expired"     // exp is over
	ReasonNotYet    Reason = "not_yet"     // nbf or iat is ahead
	ReasonLifetime  Reason = "lifetime"    // good for longer than MaxLifetime
	ReasonSubject   Reason = "subject"     // sub is no user id
	ReasonRevoked   Reason = "revoked"     // the user, the token, or all of its time
)

// Reasons lists them all, for the labels of metrics.
func Reasons() []Reason {
	return []Reason{
		ReasonTooLarge, ReasonMalformed, ReasonAlgorithm, ReasonKey, ReasonSignature, ReasonClaims, ReasonIssuer, ReasonAudience,
		ReasonExpired, ReasonNotYet, ReasonLifetime, ReasonSubject, ReasonRevoked,
	}
}

// Refusal is the error for a token that is not good, and won't be by waiting.
type Refusal struct {
	Reason Reason
	Detail string // for the log: the name of a field and a constant, never what the token holds
}

func (r *Refusal) Error() string {
	if r.Detail == "" {
		return "token refused: " + string(r.Reason)
	}
	return "token refused: " + string(r.Reason) + ": " + r.Detail
}

func refuse(reason Reason, format string, args ...any) error {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// ErrUnavailable says that a token could not be judged now. The same token may be good a moment later.
var ErrUnavailable = errors.New("auth: can't judge tokens now")

// unavailable is ErrUnavailable with the time after which asking again is worth it.
type unavailable struct {
	after time.Duration
	why   string
}

func (u *unavailable) Error() string        { return ErrUnavailable.Error() + ": " + u.why }
func (u *unavailable) Is(target error) bool { return target == ErrUnavailable }

// RetryAfter is when a token that met ErrUnavailable may be shown again.
func RetryAfter(err error) time.Duration {
	if u, ok := errors.AsType[*unavailable](err); ok {
		return max(u.after, minRetryAfter)
	}
	return minRetryAfter
}

const minRetryAfter = time.Second
