package auth

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"chatgate/internal/protocol"
)

// Word is what the customer's backend says of somebody who registers, in the forms that a token has.
type Word struct {
	User                       *string // nil: who it is, others must prove
	Meta, Rooms, Watch, Limits []byte  // JSON
	ExpiresAt                  int64   // ms since 1970; 0: not said
}

// Identity reads the word. It counts like a token that was issued now. What can't be understood is an error, as in a token.
func (w Word) Identity(now time.Time) (*Identity, error) {
	id := &Identity{IssuedAt: now.Unix(), Expires: w.ExpiresAt / 1000}
	if w.User != nil {
		// What replaces a broken character would let two names be one user.
		if !protocol.ValidID([]byte(*w.User), protocol.MaxIDBytes) || strings.ContainsRune(*w.User, utf8.RuneError) {
			return nil, errors.New("userId: not an id")
		}
		id.User = protocol.UserID(*w.User)
	}
	if w.ExpiresAt != 0 && id.Expires <= now.Unix() {
		return nil, errors.New("expiresAt: is over, or not in milliseconds")
	}
	var err error
	if string(w.Meta) != "null" { // so a backend writes that it has none
		if id.Meta, err = metaOf(w.Meta); err != nil {
			return nil, inAWord(err)
		}
	}
	// null is refused in these as it is in a token: it must not come to mean all when it was an empty list.
	id.Grant, err = grantOf(&claims{Rooms: w.Rooms, Watch: w.Watch, Limits: w.Limits})
	return id, inAWord(err)
}

// inAWord says what is wrong with a field, and no more: there is no token that was refused.
func inAWord(err error) error {
	if r, ok := errors.AsType[*Refusal](err); ok && r.Detail != "" {
		return errors.New(r.Detail)
	}
	return err
}

// Under is the token's identity with what the backend said besides: both must allow, the earlier end counts, and the backend's meta
// is the one. nil stands for nothing said, and so does the result.
func (i *Identity) Under(word *Identity) *Identity {
	switch {
	case word == nil:
		return i
	case i == nil:
		return word
	}
	both := *i
	both.Grant.also = &word.Grant
	if word.Meta != "" {
		both.Meta = word.Meta
	}
	if word.Expires != 0 && (both.Expires == 0 || word.Expires < both.Expires) {
		both.Expires = word.Expires
	}
	return &both
}
