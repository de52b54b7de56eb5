package api

import (
	"context"
	"errors"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/protocol"
)

// RevokeRequest says which tokens are to be bad from now on: exactly one of user, tokenId and all.
type RevokeRequest struct {
	User    protocol.UserID `json:"user,omitempty" doc:"The tokens of this user issued so far." example:"alice"`
	TokenID string          `json:"tokenId,omitempty" max:"128" doc:"The token with this id (jti)."`
	All     bool            `json:"all,omitempty" doc:"Everybody's tokens issued so far."`
	Before  int64           `json:"before,omitempty" min:"0" doc:"Only those issued up to this moment, ms since 1970; a minute ahead at most. Absent: now."`
}

// RevokeAnswer says that it is done.
type RevokeAnswer struct {
	Revoked bool `json:"revoked" doc:"true: Redis has it, and every gateway closes the connections it hits within half a second or so." example:"true"`
}

var revokeTokens = on(operation{
	Name: "revokeTokens", Method: "POST", Path: "/revocations", Scope: ScopeRevoke,
	Summary:     "Revoke tokens",
	Description: "Of a user, one by its id, or all, before their time. Their connections are closed with 4504. The same twice is the same as once.",
	Codes:       []Code{CodeDisabled, CodeOverloaded, CodeUnavailable, CodeUnknown},
}, (*API).revokeTokens)

func (a *API) revokeTokens(ctx context.Context, q *RevokeRequest) (*RevokeAnswer, error) {
	if a.cfg.Revocations == nil {
		return nil, refuse(CodeDisabled, "this gateway takes no tokens: set auth.issuers and their keys")
	}
	what := auth.Revocation{User: q.User, TokenID: q.TokenID, All: q.All}
	if q.Before > 0 {
		what.Before = time.UnixMilli(q.Before)
	}
	if err := what.Validate(); err != nil {
		return nil, bad("body", "one of user, tokenId and all, and a time that is past")
	}
	if !a.cfg.Registry.AnswersOfGateways() { // they are where the leases are
		return nil, unavailable()
	}
	switch err := a.cfg.Revocations.Revoke(ctx, what); {
	case errors.Is(err, auth.ErrFull):
		return nil, refuse(CodeOverloaded, "there are as many revocations as are kept: revoke all that was issued before now instead").after(time.Hour)
	case err != nil:
		return nil, uncertain(err)
	}
	return &RevokeAnswer{Revoked: true}, nil
}
