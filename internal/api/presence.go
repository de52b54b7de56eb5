package api

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// PresenceRequest asks who is online.
type PresenceRequest struct {
	Users []protocol.UserID `json:"users" required:"" max:"1000" doc:"Whom to ask about." example:"[\"alice\",\"bob\"]"`
}

// PresenceAnswer says who is.
type PresenceAnswer struct {
	Users map[protocol.UserID]UserPresence `json:"users" doc:"By name, each that was asked about."`
	Missing
}

// UserPresence is what is known of one user.
type UserPresence struct {
	State    protocol.PresenceState `json:"state" doc:"online, offline, or unknown: Redis was away, may have forgotten the user, and is told again within seconds." example:"online"`
	Version  string                 `json:"version,omitempty" doc:"Changes with every change of the state; absent while one is under way."`
	Devices  int                    `json:"devices,omitempty" doc:"Connections that count; while Redis is told again what it forgot there may be more."`
	LastSeen int64                  `json:"lastSeen,omitempty" doc:"When the user went offline, ms since 1970."`
}

// Missing names the gateways that an answer could not speak for.
type Missing struct {
	Missing []protocol.GatewayID `json:"missing" doc:"Gateways that are dead and not cleaned up after yet: what they held counts no more, and those who were there may be back elsewhere in a moment."`
}

func (a *API) missing() Missing { return Missing{listed(a.cfg.Registry.Dead())} }

var getPresence = on(operation{
	Name: "getPresence", Method: "POST", Path: "/presence", Scope: ScopePresence,
	Summary:     "Ask who is online",
	Description: "Of up to 1,000 users at a time. It changes nothing: POST because of the list.",
	Codes:       []Code{CodeTooLarge, CodeUnavailable},
}, (*API).getPresence)

func (a *API) getPresence(ctx context.Context, q *PresenceRequest) (*PresenceAnswer, error) {
	if len(q.Users) == 0 {
		return nil, bad("users", "empty")
	}
	found, err := a.locate(ctx, q.Users...)
	if err != nil {
		return nil, err
	}
	answer := &PresenceAnswer{Users: make(map[protocol.UserID]UserPresence, len(found)), Missing: a.missing()}
	for i := range found {
		w := &found[i]
		p := UserPresence{State: protocol.StateOffline, Version: w.Version, LastSeen: w.LastSeen}
		if n := len(w.Locations); n > 0 {
			p.State, p.Devices = protocol.StateOnline, n
		} else if w.Unsure {
			p.State = protocol.StateUnknown
		}
		answer.Users[w.User] = p
	}
	return answer, nil
}

// locate finds users, unless it is known that Redis would not answer: then nobody should wait to hear it.
func (a *API) locate(ctx context.Context, users ...protocol.UserID) ([]presence.Whereabouts, error) {
	addresses := make([]protocol.Address, len(users))
	for i, u := range users {
		addresses[i] = protocol.UserAddress(u)
	}
	if !a.cfg.Registry.Answers(addresses...) {
		return nil, unavailable()
	}
	return a.cfg.Registry.Locate(ctx, users...)
}

// Connection is one connection of a user.
type Connection struct {
	ID      protocol.ConnID    `json:"id" doc:"As in registered." example:"01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90"`
	User    protocol.UserID    `json:"user" doc:"Whose it is." example:"alice"`
	Gateway protocol.GatewayID `json:"gateway" doc:"Which gateway holds it." example:"a-k3v9x2mq"`
	Device  protocol.DeviceID  `json:"device,omitempty" doc:"deviceId of its register."`
	Class   protocol.ClassID   `json:"class,omitempty" doc:"deviceClass of its register."`
	Meta    json.RawMessage    `json:"meta,omitempty" type:"object" doc:"What was bound to it at register, or set since."`
	Since   int64              `json:"since" doc:"When it registered, ms since 1970." example:"1795305600000"`
	Expiry  int64              `json:"expiry" doc:"Until when it counts without another sign of life, ms since 1970 by the clock of Redis." example:"1795305690000"`
}

func connectionOf(u protocol.UserID, l *presence.Location) Connection {
	c := Connection{ID: l.Conn, User: u, Gateway: l.Gateway, Device: l.Device, Class: l.Class, Since: l.Since, Expiry: l.Expiry}
	if meta := json.RawMessage(l.Meta); json.Valid(meta) {
		c.Meta = meta
	}
	return c
}

// UserRequest names a user.
type UserRequest struct {
	User protocol.UserID `path:"user" doc:"The user, percent-encoded." example:"alice"`
}

// ConnectionsAnswer lists the connections of a user.
type ConnectionsAnswer struct {
	User        protocol.UserID `json:"user" doc:"Who was asked about." example:"alice"`
	Connections []Connection    `json:"connections" doc:"Those that count, the oldest first."`
	Missing
}

var getUserConnections = on(operation{
	Name: "getUserConnections", Method: "GET", Path: "/users/{user}/connections", Scope: ScopeConnections,
	Summary:     "List a user's connections",
	Description: "Those that count for presence, on whichever gateways they are. Nobody is asked but Redis. A user never seen has none.",
	Codes:       []Code{CodeUnavailable},
}, (*API).getUserConnections)

func (a *API) getUserConnections(ctx context.Context, q *UserRequest) (*ConnectionsAnswer, error) {
	found, err := a.locate(ctx, q.User)
	if err != nil {
		return nil, err
	}
	if found[0].Partial {
		return nil, presence.ErrUnsure
	}
	answer := &ConnectionsAnswer{User: q.User, Connections: []Connection{}, Missing: a.missing()}
	for i := range found[0].Locations {
		answer.Connections = append(answer.Connections, connectionOf(q.User, &found[0].Locations[i]))
	}
	slices.SortFunc(answer.Connections, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.ID, b.ID))
	})
	return answer, nil
}

// ConnectionRequest names a connection.
type ConnectionRequest struct {
	ID protocol.ConnID `path:"id" doc:"Its id, from registered or an event." example:"01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90"`
}

// MembersRequest asks for a page of a room.
type MembersRequest struct {
	Room  protocol.RoomID `path:"room" doc:"The room, percent-encoded." example:"lobby"`
	After protocol.UserID `query:"after" doc:"The next of the page before. Absent: the first page."`
	Limit int             `query:"limit" min:"1" max:"1000" default:"200" doc:"Users on a page, at most."`
}

// MembersAnswer is some of who is in a room.
type MembersAnswer struct {
	Room  protocol.RoomID   `json:"room" doc:"The room." example:"lobby"`
	Count int               `json:"count" doc:"Users in the room in all." example:"2"`
	Users []protocol.UserID `json:"users" doc:"Ascending by their bytes, each once." example:"[\"alice\",\"bob\"]"`
	Next  protocol.UserID   `json:"next,omitempty" doc:"Where the next page begins. Absent: this was the last. A page may be shorter than its limit and not be the last."`
	Missing
}

var getRoomMembers = on(operation{
	Name: "getRoomMembers", Method: "GET", Path: "/rooms/{room}/members", Scope: ScopeRooms,
	Summary:     "List who is in a room",
	Description: "A page at a time. Whoever is in the room from the first page to the last is on exactly one of them.",
	Codes:       []Code{CodeUnavailable},
}, (*API).getRoomMembers)

func (a *API) getRoomMembers(ctx context.Context, q *MembersRequest) (*MembersAnswer, error) {
	room := protocol.RoomAddress(q.Room)
	if !a.cfg.Registry.Answers(room) {
		return nil, unavailable()
	}
	page, err := a.cfg.Registry.Members(ctx, room, q.After, q.Limit)
	if err != nil {
		return nil, err
	}
	if page.Unsure {
		return nil, presence.ErrUnsure
	}
	return &MembersAnswer{Room: q.Room, Count: page.Count, Users: listed(page.Users), Next: page.Next, Missing: a.missing()}, nil
}
