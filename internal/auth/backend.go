package auth

import (
	"errors"
	"time"

	"github.com/go-jose/go-jose/v4/json"

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
		if !protocol.ValidID([]byte(*w.User), protocol.MaxIDBytes) {
			return nil, errors.New("userId: not an id")
		}
		id.User = protocol.UserID(*w.User)
	}
	if w.ExpiresAt != 0 && id.Expires <= now.Unix() {
		return nil, errors.New("expiresAt: is over, or not in milliseconds")
	}
	var err error
	if id.Meta, err = metaOf(given(w.Meta)); err != nil {
		return nil, err
	}
	id.Grant, err = grantOf(&claims{Rooms: given(w.Rooms), Watch: given(w.Watch), Limits: given(w.Limits)})
	return id, err
}

// given takes null for absent: a backend that has nothing to say writes it so. In a token, where it stands for an empty list, it is refused.
func given(raw []byte) json.RawMessage {
	if string(raw) == "null" {
		return nil
	}
	return raw
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
