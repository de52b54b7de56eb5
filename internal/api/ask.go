package api

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// Unheard names the gateways that an answer could not speak for, and why.
type Unheard struct {
	Missing []protocol.GatewayID                        `json:"missing" doc:"Gateways that did not answer for what they hold."`
	Reasons map[protocol.GatewayID]router.MissingReason `json:"reasons,omitempty" doc:"Why not. dead: its lease has ended; unreached: nobody listens on its channel, so it was killed a moment ago; version: it is older and does not know the question. These did nothing. silent: it was reached and did not answer in time, or has not closed what it was told to; unknown: Redis did not say whether it was reached. These may have done it." example:"{\"b-7c1d0w9e\":\"dead\"}"`
}

// missingVersion is why a gateway is missing that doesn't know what it was asked.
const missingVersion router.MissingReason = "version"

// unheard begins with those that a question didn't reach, or that said nothing.
func unheard(missing []router.Missing) Unheard {
	u := Unheard{Missing: []protocol.GatewayID{}}
	u.missAll(missing)
	return u
}

func (u *Unheard) missAll(missing []router.Missing) {
	for _, m := range missing {
		u.miss(m.Gateway, m.Reason)
	}
}

// miss adds a gateway, once.
func (u *Unheard) miss(gw protocol.GatewayID, why router.MissingReason) {
	if slices.Contains(u.Missing, gw) {
		return
	}
	if u.Reasons == nil {
		u.Reasons = make(map[protocol.GatewayID]router.MissingReason)
	}
	u.Missing, u.Reasons[gw] = append(u.Missing, gw), why
	slices.Sort(u.Missing)
}

// ask asks gateways within what is left of the call's deadline. An error says that nobody was asked: who didn't answer by then is missing,
// and may have done it.
func (a *API) ask(ctx context.Context, verb protocol.Verb, question any, to []protocol.GatewayID) (router.Replies, error) {
	if to != nil && len(to) == 0 {
		return router.Replies{}, nil
	}
	body, err := json.Marshal(question)
	if err != nil {
		return router.Replies{}, err
	}
	within := min(a.cfg.AskWait, max(remaining(ctx), time.Millisecond))
	replies, err := a.cfg.Router.Ask(ctx, router.Question{Verb: verb, Body: body, To: to, Within: within})
	if err != nil && len(replies.Answers)+len(replies.Missing) > 0 && ctx.Err() != nil {
		return replies, nil
	}
	return replies, err
}

// askOne asks a gateway without whose answer there is none to the call. The error is a *Problem, or that of ask.
func (a *API) askOne(ctx context.Context, verb protocol.Verb, question any, to protocol.GatewayID) (*protocol.Answer, error) {
	replies, err := a.ask(ctx, verb, question, []protocol.GatewayID{to})
	switch {
	case err != nil:
		return nil, err
	case len(replies.Answers) > 0:
		return &replies.Answers[0], nil
	}
	switch replies.Missing[0].Reason {
	case router.MissingDead:
		return nil, isDead(to)
	case router.MissingUnreached: // killed a moment ago, or without a subscription for one
		p := refuse(CodeUnavailable, "the gateway is not reached").after(awhile)
		p.Missing = []protocol.GatewayID{to}
		return nil, p
	}
	return nil, refuse(CodeUnknown, "the gateway did not answer in time").after(awhile)
}

// isDead is the answer about a gateway that is.
func isDead(id protocol.GatewayID) *Problem {
	p := refuse(CodeNotFound, "the gateway is dead")
	p.Missing = []protocol.GatewayID{id}
	return p
}

// told reads the body of an answer; false: there is none, since the gateway is of a version that doesn't know what it was asked.
func told[Body any](x *protocol.Answer) (body Body, ok bool) {
	ok = x.Status == protocol.AnswerDone && json.Unmarshal([]byte(x.Body), &body) == nil
	return body, ok
}

// otherVersion is the answer of a call that needs what such a gateway would have to say.
func otherVersion() *Problem {
	return refuse(CodeUnavailable, "the gateway is of a version that does not know this").after(awhile)
}
