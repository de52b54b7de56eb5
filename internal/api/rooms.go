package api

import (
	"cmp"
	"context"
	"slices"

	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// RoomsRequest names rooms that a user's connections are to be put into, or out of.
type RoomsRequest struct {
	User       protocol.UserID   `path:"user" doc:"The user, percent-encoded." example:"alice"`
	Rooms      []protocol.RoomID `json:"rooms" required:"" max:"100" doc:"The rooms." example:"[\"lobby\"]"`
	Connection protocol.ConnID   `json:"connection,omitempty" doc:"Only this connection of the user. Absent: all that there are now."`
}

// RoomsAnswer says what became of it.
type RoomsAnswer struct {
	User        protocol.UserID `json:"user" doc:"Whose connections they are." example:"alice"`
	Connections []InRooms       `json:"connections" doc:"The connections of the user, on all gateways that answered."`
	Unheard
}

// InRooms is what became of the rooms of one connection.
type InRooms struct {
	ID      protocol.ConnID                          `json:"id" doc:"Of the connection." example:"01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90"`
	Gateway protocol.GatewayID                       `json:"gateway" doc:"Which holds it." example:"a-k3v9x2mq"`
	Rooms   map[protocol.RoomID]protocol.RoomOutcome `json:"rooms" doc:"By name. joined, left; already: it was so before, and the client is told nothing; limited: it is in as many rooms as it may be; unavailable: Redis did not answer its gateway; busy: something else was done with the connection; gone: it ended." example:"{\"lobby\":\"joined\"}"`
}

// httpStatus is 207 when it is not so everywhere.
func (a *RoomsAnswer) httpStatus() int {
	if len(a.Missing) > 0 {
		return 207
	}
	for i := range a.Connections {
		for _, x := range a.Connections[i].Rooms {
			switch x {
			case protocol.RoomJoined, protocol.RoomLeft, protocol.RoomAlready, protocol.RoomGone:
			default:
				return 207
			}
		}
	}
	return 200
}

const roomsText = " Each gateway that holds the user does it for its connections, and each client is told by a frame without an id. " +
	"It is about the connections of now: one that comes later names its rooms itself. " +
	"200: it is so on all of them. 207: not on all, or a gateway did not answer. The same twice is the same as once."

var joinRooms = on(operation{
	Name: "joinRooms", Method: "POST", Path: "/users/{user}/join", Scope: ScopeControl,
	Summary: "Put a user's connections into rooms",
	Description: "They are in them as if they had joined, from now on: they get what is said there, and are in the list of who is in it. " +
		"A token that allows its user fewer rooms does not matter; the limit of rooms for a connection does." + roomsText,
	Codes: []Code{CodeTooLarge, CodeUnavailable},
}, func(a *API, ctx context.Context, q *RoomsRequest) (*RoomsAnswer, error) {
	return a.place(ctx, q, protocol.VerbJoin)
})

var leaveRooms = on(operation{
	Name: "leaveRooms", Method: "POST", Path: "/users/{user}/leave", Scope: ScopeControl,
	Summary:     "Take a user's connections out of rooms",
	Description: "Also out of those that they joined by themselves. Nothing keeps them from joining again but a token that does not allow it. The list of who is in a room follows a moment later." + roomsText,
	Codes:       []Code{CodeTooLarge, CodeUnavailable},
}, func(a *API, ctx context.Context, q *RoomsRequest) (*RoomsAnswer, error) {
	return a.place(ctx, q, protocol.VerbLeave)
})

func (a *API) place(ctx context.Context, q *RoomsRequest, verb protocol.Verb) (*RoomsAnswer, error) {
	if len(q.Rooms) == 0 {
		return nil, bad("rooms", "empty")
	}
	if !a.cfg.Registry.Answers(protocol.UserAddress(q.User)) {
		return nil, unavailable()
	}
	living, dead, err := a.cfg.Registry.HeldBy(ctx, q.User)
	if err != nil {
		return nil, err
	}
	replies, err := a.ask(ctx, verb, &protocol.RoomsQuestion{User: q.User, Conn: q.Connection, Rooms: q.Rooms}, listed(living))
	if err != nil {
		return nil, err
	}
	answer := &RoomsAnswer{User: q.User, Connections: []InRooms{}, Unheard: unheard(replies.Missing)}
	for _, gw := range dead {
		answer.miss(gw, router.MissingDead)
	}
	for i := range replies.Answers {
		x := &replies.Answers[i]
		o, ok := told[protocol.RoomsOutcome](x)
		if !ok {
			answer.miss(x.Gateway, missingVersion)
			continue
		}
		for _, c := range o.Connections {
			in := InRooms{ID: c.Conn, Gateway: x.Gateway, Rooms: make(map[protocol.RoomID]protocol.RoomOutcome)}
			for i, room := range q.Rooms {
				if _, twice := in.Rooms[room]; !twice && i < len(c.Outcomes) {
					in.Rooms[room] = c.Outcomes[i]
				}
			}
			answer.Connections = append(answer.Connections, in)
		}
	}
	slices.SortFunc(answer.Connections, func(a, b InRooms) int { return cmp.Compare(a.ID, b.ID) })
	return answer, nil
}
