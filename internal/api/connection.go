package api

import (
	"context"

	"chatgate/internal/protocol"
)

// ConnectionAnswer is what is known of one connection.
type ConnectionAnswer struct {
	Connection
	Live *Live `json:"live,omitempty" doc:"What its gateway says. Absent when that did not answer, and then it is named in missing."`
	Unheard
}

// Live is what only the gateway of a connection knows.
type Live struct {
	Remote       string            `json:"remote" doc:"The client's address." example:"192.0.2.7"`
	Rooms        []protocol.RoomID `json:"rooms" doc:"Rooms it is in, ascending." example:"[\"lobby\"]"`
	Watches      int               `json:"watches" doc:"Users it watches."`
	Busy         bool              `json:"busy,omitempty" doc:"It was busy with its client all the time: rooms and watches are not known."`
	WaitingBytes int               `json:"waitingBytes" doc:"What was sent to it and it has not taken yet."`
	InFlight     int               `json:"inFlight" doc:"Messages it has sent that are not answered yet."`
	SilentMs     int64             `json:"silentMs" doc:"Since the last byte came from it." example:"1200"`
	IdleMs       int64             `json:"idleMs" doc:"Since its last frame, a heartbeat if nothing else." example:"1200"`
	TokenID      string            `json:"tokenId,omitempty" doc:"The id (jti) of the token it showed."`
	ExpiresAt    int64             `json:"expiresAt,omitempty" doc:"When that runs out, ms since 1970."`
}

var getConnection = on(operation{
	Name: "getConnection", Method: "GET", Path: "/connections/{id}", Scope: ScopeConnections,
	Summary: "Look at a connection",
	Description: "Whose it is and where, from the registry, and how it is, from the gateway that holds it. " +
		"404 when no living gateway does: it has ended, was told to go, or its gateway is dead.",
	Codes: []Code{CodeNotFound, CodeUnavailable},
}, (*API).getConnection)

func (a *API) getConnection(ctx context.Context, q *ConnectionRequest) (*ConnectionAnswer, error) {
	c, err := a.find(ctx, q.ID)
	if err != nil {
		return nil, err
	}
	replies, err := a.ask(ctx, protocol.VerbConnection, &protocol.ConnectionQuestion{Conn: q.ID}, []protocol.GatewayID{c.Gateway})
	if err != nil {
		return nil, err
	}
	answer := &ConnectionAnswer{Connection: *c, Unheard: unheard(replies.Missing)}
	for i := range replies.Answers {
		x := &replies.Answers[i]
		d, ok := told[protocol.ConnectionDetails](x)
		switch {
		case !ok:
			answer.miss(x.Gateway, missingVersion)
		case !d.Held:
			return nil, refuse(CodeNotFound, "the connection has just ended")
		default:
			answer.Live = &Live{
				Remote: d.Remote, Rooms: listed(d.Rooms), Watches: d.Watches, Busy: d.Busy, WaitingBytes: d.Waiting, InFlight: d.InFlight,
				SilentMs: d.SilentMs, IdleMs: d.IdleMs, TokenID: d.TokenID, ExpiresAt: d.ExpiresAt,
			}
		}
	}
	return answer, nil
}

// find looks for a connection in the registry. The error is a *Problem where there is none.
func (a *API) find(ctx context.Context, id protocol.ConnID) (*Connection, error) {
	if !a.cfg.Registry.AnswersAll() {
		return nil, unavailable()
	}
	u, l, ok, err := a.cfg.Registry.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, a.lost()
	}
	c := connectionOf(u, &l)
	return &c, nil
}

// lost is the answer where a connection isn't found.
func (a *API) lost() *Problem {
	p := refuse(CodeNotFound, "no living gateway holds this connection")
	p.Missing = a.cfg.Registry.Dead()
	return p
}
