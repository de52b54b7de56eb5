package handler

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// What a backend asks of connections that another gateway than the one it speaks to
// holds comes here as a question (router.Ask), and is answered from what this
// gateway has in memory.

// Asked answers a question about this gateway's connections; false: it is about
// something else.
func (h *Handler) Asked(ctx context.Context, a *router.Asked) bool {
	switch a.Verb {
	case protocol.VerbConnection:
		var q protocol.ConnectionQuestion
		answer(ctx, a, &q, func() any { return h.details(ctx, q.Conn) })
	case protocol.VerbJoin:
		var q protocol.RoomsQuestion
		answer(ctx, a, &q, func() any { return h.place(ctx, &q, (*session).putIn) })
	case protocol.VerbLeave:
		var q protocol.RoomsQuestion
		answer(ctx, a, &q, func() any { return h.place(ctx, &q, (*session).takeOut) })
	case protocol.VerbMeta:
		var q protocol.MetaQuestion
		answer(ctx, a, &q, func() any { return h.setMeta(ctx, &q) })
	default:
		return false
	}
	return true
}

// answer reads the body of a question and answers with what do returns.
func answer(ctx context.Context, a *router.Asked, question any, do func() any) {
	if err := json.Unmarshal([]byte(a.Body), question); err != nil {
		_ = a.Answer(ctx, protocol.AnswerRefused, []byte("not the body of "+string(a.Verb)))
		return
	}
	body, err := json.Marshal(do())
	if err != nil {
		_ = a.Answer(ctx, protocol.AnswerRefused, []byte(err.Error()))
		return
	}
	_ = a.Answer(ctx, protocol.AnswerDone, body)
}

// details tells of one connection.
func (h *Handler) details(ctx context.Context, id protocol.ConnID) protocol.ConnectionDetails {
	c := h.manager.ByConn(id)
	if c == nil {
		return protocol.ConnectionDetails{}
	}
	v := c.Vitals()
	d := protocol.ConnectionDetails{
		Held: true, Remote: c.RemoteAddr(), Waiting: v.Waiting, InFlight: v.InFlight,
		SilentMs: v.Silent.Milliseconds(), IdleMs: v.Idle.Milliseconds(),
	}
	if id, ok := c.Identity(); ok {
		if token, ok := id.Token.(*auth.Identity); ok {
			d.TokenID, d.ExpiresAt = token.TokenID, token.ExpiresAtMs()
		}
	}
	var rooms []protocol.RoomID
	var watches int
	switch h.inTurn(ctx, c, func(s *session) {
		rooms, watches = slices.Sorted(maps.Keys(s.rooms)), len(s.watches)
	}) {
	case turnDone:
		d.Rooms, d.Watches = rooms, watches
	case turnLate:
		d.Busy = true
	case turnGone:
		return protocol.ConnectionDetails{}
	}
	return d
}

// place puts a user's connections here, or one of them, into rooms, or out.
func (h *Handler) place(ctx context.Context, q *protocol.RoomsQuestion, do func(*session, []protocol.RoomID) []protocol.RoomOutcome) protocol.RoomsOutcome {
	out := protocol.RoomsOutcome{Connections: []protocol.RoomsOfConnection{}}
	conns := h.arriving.of(q.User) // first: one that has arrived in between is found by its user then
	for _, c := range h.manager.ByUser(q.User) {
		if !slices.Contains(conns, c) {
			conns = append(conns, c)
		}
	}
	if q.Conn != "" {
		conns = slices.DeleteFunc(conns, func(c *connection.Connection) bool { return c.ID() != q.Conn })
	}
	for _, c := range conns {
		out.Connections = append(out.Connections, protocol.RoomsOfConnection{Conn: c.ID()})
	}
	// Beside each other: one that is busy with its client holds up no other, and Redis hears of all of them in one call.
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			var outcomes []protocol.RoomOutcome
			switch h.inTurn(ctx, c, func(s *session) { outcomes = do(s, q.Rooms) }) {
			case turnGone:
				if c.User() == "" {
					return // it did not become a connection of the user
				}
				outcomes = slices.Repeat([]protocol.RoomOutcome{protocol.RoomGone}, len(q.Rooms))
			case turnLate:
				outcomes = slices.Repeat([]protocol.RoomOutcome{protocol.RoomBusy}, len(q.Rooms))
			}
			out.Connections[i].Outcomes = outcomes
		})
	}
	all.Wait()
	out.Connections = slices.DeleteFunc(out.Connections, func(c protocol.RoomsOfConnection) bool { return c.Outcomes == nil })
	return out
}

// turn is what became of something that had to wait for its turn.
type turn int

const (
	turnDone turn = iota
	turnGone      // the connection has ended
	turnLate      // its turn did not come in time: nothing was done, and nothing will be
)

// inTurn has f done with a connection's session while nothing else touches it, and
// waits for it until ctx ends, and for the end of its register before. What has begun by then is waited for.
func (h *Handler) inTurn(ctx context.Context, c *connection.Connection, f func(*session)) turn {
	if !h.arriving.await(ctx, c) {
		return turnLate
	}
	s := sessionOf(c)
	if s == nil {
		return turnGone
	}
	var claimed atomic.Bool // by whoever does it, or by the end of waiting for it
	result := make(chan turn, 1)
	if !s.turns.do(func() {
		switch {
		case !claimed.CompareAndSwap(false, true):
			return
		case s.ended:
			result <- turnGone
			return
		}
		f(s)
		result <- turnDone
	}) {
		if _, ended := c.Cause(); ended {
			return turnGone
		}
		return turnLate
	}
	select {
	case t := <-result:
		return t
	case <-ctx.Done():
		if claimed.CompareAndSwap(false, true) {
			return turnLate
		}
		return <-result
	}
}

// putIn puts the connection into rooms, and the client is told by `joined`, as for a join of its own that it gave no id. A backend is above
// what a token says of rooms, but not above how many a connection may be in. Where it is already nothing changes, and nothing is told.
func (s *session) putIn(rooms []protocol.RoomID) []protocol.RoomOutcome {
	out := make([]protocol.RoomOutcome, len(rooms))
	most, limited := s.grant().MaxRooms(s.handler.limits.Load().MaxRooms)
	var fresh []protocol.RoomResume
	var at []int
	asked := make(map[protocol.RoomID]bool, len(rooms))
	for i, room := range rooms {
		switch {
		case s.rooms[room] != nil || asked[room]:
			out[i] = protocol.RoomAlready
		case limited && len(s.rooms)+len(fresh) >= most:
			out[i] = protocol.RoomLimited
		default:
			out[i], asked[room] = protocol.RoomUnavailable, true
			fresh, at = append(fresh, protocol.RoomResume{Room: []byte(room)}), append(at, i)
		}
	}
	held, err := s.goIn(nil, fresh)
	if err != nil {
		s.handler.cfg.Log.Warn("join by a backend failed", "conn", s.conn, "rooms", len(fresh)-len(held), "err", err)
	}
	for _, i := range held {
		out[at[i]] = protocol.RoomJoined
	}
	if s.placed == nil {
		s.placed = make(map[protocol.RoomID]struct{})
	}
	for i, room := range rooms {
		if s.rooms[room] != nil && out[i] != protocol.RoomLimited {
			s.placed[room] = struct{}{}
		}
	}
	return out
}

// takeOut takes the connection out of rooms, and the client is told by `left` without id.
func (s *session) takeOut(rooms []protocol.RoomID) []protocol.RoomOutcome {
	out := make([]protocol.RoomOutcome, len(rooms))
	for i, room := range rooms {
		if out[i] = protocol.RoomAlready; s.rooms[room] != nil {
			out[i] = protocol.RoomLeft
			s.exit(room, protocol.AppendLeft(nil, nil, room))
		}
	}
	return out
}
