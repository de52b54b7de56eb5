package auth

import (
	"errors"
	"fmt"
	"time"

	"chatgate/internal/protocol"
)

// Revocation makes tokens bad before their time. Exactly one of User, TokenID and All is set.
type Revocation struct {
	User    protocol.UserID // the tokens of this user
	TokenID string          // the token with this jti
	All     bool            // everybody's
	// Before is the second up to which a token must have been issued to be hit, itself
	// included; zero: now, by the clock of Redis. A token is hit by its jti whenever it
	// was issued.
	Before time.Time
}

// ErrFull says that there are as many revocations as are kept. To revoke everything that was issued up to now always works.
var ErrFull = errors.New("auth: too many revocations: revoke all that was issued before now instead")

// Validate says what is wrong with it, if anything is. Revoke asks it too.
func (r *Revocation) Validate() error {
	_, err1 := r.name()
	_, err2 := r.before(time.Now())
	return errors.Join(err1, err2)
}

// name is the revocation's in Redis and in the copy here.
func (r *Revocation) name() (string, error) {
	switch {
	case r.User != "" && r.TokenID == "" && !r.All:
		if !protocol.ValidID([]byte(r.User), protocol.MaxIDBytes) {
			return "", errors.New("auth: the user is no id")
		}
		return userPrefix + string(r.User), nil
	case r.TokenID != "" && r.User == "" && !r.All:
		if !protocol.ValidID([]byte(r.TokenID), protocol.MaxIDBytes) {
			return "", errors.New("auth: the token id is no id")
		}
		return tokenPrefix + r.TokenID, nil
	case r.All && r.User == "" && r.TokenID == "":
		return everybody, nil
	}
	return "", errors.New("auth: a revocation is of a user, of a token id, or of all")
}

const (
	userPrefix  = "u:"
	tokenPrefix = "t:"
	everybody   = "a:"
)

// before is the argument of the script.
func (r *Revocation) before(now time.Time) (any, error) {
	switch {
	case r.Before.IsZero():
		return "", nil
	case r.Before.Unix() < 0 || r.Before.Sub(now) > aheadOfNow:
		// It would shut out tokens that don't exist yet, for as long as it is kept.
		return nil, fmt.Errorf("auth: before is not in the past")
	}
	return r.Before.Unix(), nil
}

// aheadOfNow is how far clocks may differ.
const aheadOfNow = time.Minute

// hit is what is known of one name.
type hit struct {
	before int64 // s
	till   int64 // ms; the end of the revocation
}
