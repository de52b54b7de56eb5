package api

import (
	"context"
	"encoding/json"
	"errors"

	"chatgate/internal/protocol"
)

// MetaRequest says what is to be merged into the meta of a connection.
type MetaRequest struct {
	ID   protocol.ConnID `path:"id" doc:"Its id, from registered or an event." example:"01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90"`
	Meta json.RawMessage `json:"meta" required:"" type:"object" doc:"A JSON merge patch (RFC 7396): a name with a value is set, one with null is taken away, the others stay." example:"{\"contestId\":8,\"seat\":null}"`
}

// MetaAnswer is a connection and what is bound to it now.
type MetaAnswer struct {
	ID      protocol.ConnID    `json:"id" doc:"Of the connection." example:"01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90"`
	User    protocol.UserID    `json:"user" doc:"Whose it is." example:"alice"`
	Gateway protocol.GatewayID `json:"gateway" doc:"Which gateway holds it." example:"a-k3v9x2mq"`
	Meta    json.RawMessage    `json:"meta" type:"object" doc:"All that is bound to it now." example:"{\"contestId\":8}"`
}

var setMeta = on(operation{
	Name: "setMeta", Method: "PATCH", Path: "/connections/{id}", Scope: ScopeControl,
	Summary: "Set the meta of a connection",
	Description: "Merged into what was bound to it before, whoever bound that: its client, a token, or a backend. It counts from the answer on: in events, in what hooks are asked, and on messages where they are stamped with it. " +
		"What was told before stays as it was. All of it has 1,024 bytes at most. 200: its gateway has it, and the registry, so that the event of its end has it even when that gateway is killed. " +
		"Two calls at once are merged one after the other. The same twice is the same as once. 404 when no living gateway holds the connection: it has ended, was told to go, or its gateway is dead.",
	Codes: []Code{CodeNotFound, CodeTooLarge, CodeUnavailable, CodeUnknown},
}, (*API).setMeta)

func (a *API) setMeta(ctx context.Context, q *MetaRequest) (*MetaAnswer, error) {
	// Whatever is there now, what comes of it has all that this has: so what is wrong already is wrong, and nobody is asked.
	if _, err := protocol.MergeMeta("", q.Meta); err != nil {
		return nil, unmerged(err)
	}
	c, err := a.find(ctx, q.ID)
	if err != nil {
		return nil, err
	}
	x, err := a.askOne(ctx, protocol.VerbMeta, &protocol.MetaQuestion{Conn: q.ID, Patch: string(q.Meta)}, c.Gateway)
	if err != nil {
		return nil, err
	}
	o, ok := told[protocol.MetaOutcome](x)
	if !ok {
		return nil, otherVersion()
	}
	switch o.Result {
	case protocol.MetaSet:
		return &MetaAnswer{ID: c.ID, User: c.User, Gateway: c.Gateway, Meta: json.RawMessage(o.Meta)}, nil
	case protocol.MetaRefused:
		return nil, unmerged(&protocol.ReplyError{Code: o.Code, Message: o.Message})
	case protocol.MetaGone:
		return nil, refuse(CodeNotFound, "the connection has just ended, or was told to go")
	case protocol.MetaBusy:
		return nil, refuse(CodeOverloaded, "the connection is busy").after(awhile)
	}
	return nil, refuse(CodeUnknown, "its gateway has it, and redis did not say that it is kept").after(awhile)
}

// unmerged is the answer where a meta can't be.
func unmerged(err error) *Problem {
	e, ok := errors.AsType[*protocol.ReplyError](err)
	if !ok {
		return refuse(CodeInternal, ourMistake)
	}
	return refuse(codeOf(e), e.Message)
}
