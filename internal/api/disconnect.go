package api

import (
	"context"
	"slices"
	"strings"
	"time"

	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// Ending says how connections are to be closed.
type Ending struct {
	Code   int    `json:"code,omitempty" min:"0" max:"4999" doc:"The close code. Absent: 4503, kicked. Also 4005, rebalance, and 4006, token_expired, with which clients come back; 4400 to 4499, which are yours and with which they come back; and 4900 to 4999, yours, with which they stay away." example:"4503"`
	Reason string `json:"reason,omitempty" max:"123" doc:"For people: the client is told it in closing and in the close frame. Absent: the name of the code. Control characters become spaces." example:"spam"`
}

// DisconnectUserRequest names a user whose connections are to be closed.
type DisconnectUserRequest struct {
	User protocol.UserID `path:"user" doc:"The user, percent-encoded." example:"alice"`
	By   string          `caller:""`
	Ending
	Before int64 `json:"before,omitempty" min:"0" doc:"Only connections that registered up to this moment, ms since 1970 by the clock of Redis: the same call again doesn't close those that came since. Absent: all that there are."`
}

// DisconnectConnectionRequest names a connection that is to be closed.
type DisconnectConnectionRequest struct {
	ID protocol.ConnID `path:"id" doc:"Its id, from registered or an event." example:"01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90"`
	By string          `caller:""`
	Ending
}

// DisconnectAnswer says what is known of it.
type DisconnectAnswer struct {
	User        protocol.UserID `json:"user" doc:"Whose connections they are." example:"alice"`
	Marked      int             `json:"marked" doc:"Connections that this call told to go." example:"2"`
	Gone        int             `json:"gone" doc:"Connections that were told to go, by this call or one before, and have left the registry by now: their sockets are closed." example:"2"`
	Connections []Leaving       `json:"connections" doc:"Those that were told to go, and are gone or not."`
	Unheard
}

// Leaving is a connection that was told to go.
type Leaving struct {
	ID      protocol.ConnID    `json:"id" doc:"Of the connection." example:"01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90"`
	Gateway protocol.GatewayID `json:"gateway,omitempty" doc:"Which holds it; absent when it is gone, or Redis didn't say."`
	Gone    bool               `json:"gone" doc:"It has left the registry. false: it is marked and counts no more; its gateway closes it with the next word it hears, or refresh." example:"true"`
}

// httpStatus is 207 when some are marked and not gone.
func (a *DisconnectAnswer) httpStatus() int {
	if a.Gone < len(a.Connections) {
		return 207
	}
	return 200
}

const disconnectText = " They are marked in the registry in one step, so from that moment they count no more, and a word that is lost is made up for at the next refresh. " +
	"The answer waits, for two seconds at most, until they have left. 200: all have. 207: some are told to go and still there. " +
	"A client may come back with the codes that say so; to keep a user away revoke the tokens. What was told to go keeps its first reason."

var disconnectUser = on(operation{
	Name: "disconnectUser", Method: "POST", Path: "/users/{user}/disconnect", Scope: ScopeControl,
	Summary:     "Close a user's connections",
	Description: "All of them, on whichever gateways they are." + disconnectText + " The same call later closes those that came since, too; before prevents that.",
	Codes:       []Code{CodeUnavailable, CodeUnknown},
}, func(a *API, ctx context.Context, q *DisconnectUserRequest) (*DisconnectAnswer, error) {
	return a.disconnect(ctx, q.User, presence.Order{By: q.By, Before: q.Before}, q.Ending)
})

var disconnectConnection = on(operation{
	Name: "disconnectConnection", Method: "POST", Path: "/connections/{id}/disconnect", Scope: ScopeControl,
	Summary:     "Close a connection",
	Description: "One, on whichever gateway it is; 404 when it has ended or was told to go." + disconnectText,
	Codes:       []Code{CodeNotFound, CodeUnavailable, CodeUnknown},
}, (*API).disconnectConnection)

func (a *API) disconnectConnection(ctx context.Context, q *DisconnectConnectionRequest) (*DisconnectAnswer, error) {
	if p := q.Ending.check(); p != nil { // before anybody is asked
		return nil, p
	}
	found, err := a.find(ctx, q.ID)
	if err != nil {
		return nil, err
	}
	return a.disconnect(ctx, found.User, presence.Order{Conn: q.ID, By: q.By}, q.Ending)
}

// check completes an ending, or says why it is none.
func (e *Ending) check() *Problem {
	switch {
	case e.Code == 0:
		e.Code = int(protocol.CloseKicked)
	case !allowedCode(protocol.CloseCode(e.Code)):
		return bad("code", "must be 4503, 4005, 4006, 4400 to 4499, or 4900 to 4999")
	}
	if e.Reason = strings.TrimSpace(e.Reason); e.Reason == "" {
		e.Reason = protocol.CloseCode(e.Code).Name()
	}
	return nil
}

// allowedCode says which codes a backend may close with. The others say what a
// gateway has seen, and events and clients act on it: from a backend they would be a
// lie.
func allowedCode(c protocol.CloseCode) bool {
	switch c {
	case protocol.CloseKicked, protocol.CloseRebalance, protocol.CloseTokenExpired:
		return true
	}
	return 4400 <= c && c <= 4499 || 4900 <= c && c <= 4999
}

const (
	// goneWithin is how long a disconnect waits for connections to be gone: a client
	// has a second to answer the close frame.
	goneWithin = 2 * time.Second
	goneLook   = 25 * time.Millisecond // how often it looks, first; then ever slower
)

func (a *API) disconnect(ctx context.Context, u protocol.UserID, o presence.Order, how Ending) (*DisconnectAnswer, error) {
	if p := how.check(); p != nil {
		return nil, p
	}
	if !a.cfg.Registry.Answers(protocol.UserAddress(u)) {
		return nil, unavailable()
	}
	o.Code, o.Reason = protocol.CloseCode(how.Code), how.Reason
	kicked, err := a.cfg.Registry.Kick(ctx, u, o)
	switch {
	case err != nil:
		return nil, uncertain(err)
	case kicked.Unsure && o.Conn == "":
		return nil, refuse(CodeUnknown, "redis was away and may have forgotten some of them; those it knows are told to go").after(awhile)
	}
	answer := &DisconnectAnswer{User: u, Marked: kicked.Marked, Connections: []Leaving{}, Unheard: unheard(nil)}
	left := a.awaitGone(ctx, u, kicked.Conns)
	slices.Sort(kicked.Conns)
	for _, c := range kicked.Conns {
		gw, there := left[c]
		l := Leaving{ID: c, Gateway: gw, Gone: !there}
		switch {
		case l.Gone:
			answer.Gone++
		case gw == "": // Redis didn't say
		case a.cfg.Registry.IsDead(gw):
			answer.miss(gw, router.MissingDead)
		default:
			// A client has less time to go than this has waited, so it is its gateway that doesn't do it.
			answer.miss(gw, router.MissingSilent)
		}
		answer.Connections = append(answer.Connections, l)
	}
	return answer, nil
}

// awaitGone waits until connections have left the registry, and returns those that
// have not, with their gateways. One whose gateway is dead isn't waited for: its entry
// stays until it is reaped. When Redis doesn't say, nothing is gone.
func (a *API) awaitGone(ctx context.Context, u protocol.UserID, conns []protocol.ConnID) map[protocol.ConnID]protocol.GatewayID {
	ctx, cancel := context.WithTimeout(ctx, min(goneWithin, remaining(ctx)))
	defer cancel()
	left := make(map[protocol.ConnID]protocol.GatewayID)
	for _, c := range conns {
		left[c] = "" // Redis has not said yet where it is
	}
	for wait := goneLook; len(conns) > 0 && ctx.Err() == nil; wait = min(2*wait, 8*goneLook) {
		seen, err := a.cfg.Registry.Left(ctx, u, conns)
		if err != nil {
			break
		}
		left = seen
		alive := false
		for _, gw := range left {
			alive = alive || !a.cfg.Registry.IsDead(gw)
		}
		if !alive {
			break
		}
		pause(ctx, wait)
	}
	return left
}
