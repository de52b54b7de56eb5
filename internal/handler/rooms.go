package handler

import (
	"context"

	"chatgate/internal/history"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// Rooms belong to a connection and end with it. A client that comes back names them again, with the positions it has: in the
// rooms of its register, or by join.

// join enters a room. Who is in it already leaves it and comes again, at the position he asks for.
func (s *session) join(f *protocol.Frame) {
	if s.allow(f, 1) {
		s.enter(f.ID, []protocol.RoomResume{{Room: f.Room, Resume: f.Resume}})
	}
}

// enter joins rooms that the client asked for, and answers for each. The id is of the join; a register has none. A room that can't be
// entered now is answered unavailable, and who was in it before still is.
func (s *session) enter(id []byte, rooms []protocol.RoomResume) {
	rooms = s.withinLimit(id, s.permitted(id, rooms))
	if len(rooms) > 0 {
		rooms = s.welcome(id, rooms)
	}
	held, err := s.goIn(id, rooms)
	if len(held) == len(rooms) {
		return
	}
	var lost []protocol.RoomResume
	for i, next := 0, held; i < len(rooms); i++ {
		if len(next) > 0 && next[0] == i {
			next = next[1:]
		} else {
			lost = append(lost, rooms[i])
		}
	}
	s.turnAway(id, lost, err)
}

// goIn joins rooms, all with a handful of calls to Redis, and tells the client where it goes on in each. It returns those that it is in
// now, as indexes, and for the others why not.
func (s *session) goIn(id []byte, rooms []protocol.RoomResume) (held []int, failed error) {
	if len(rooms) == 0 {
		return nil, nil
	}
	h := s.handler
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.RegisterWait)
	defer cancel()
	addresses := make([]protocol.Address, len(rooms))
	for i := range rooms {
		addresses[i] = protocol.RoomAddress(protocol.RoomID(rooms[i].Room))
	}
	if !h.registry.Answers(addresses...) { // nobody should wait to hear it
		return nil, presence.ErrUnavailable
	}
	// Collecting begins before the room is held, so that nothing published to this gateway is missed.
	stays := make([]*router.Stay, len(rooms))
	for i, a := range addresses {
		stays[i] = h.router.Attach(a, s.conn)
	}
	standings := h.registry.Enter(ctx, s.entry.User, addresses...)
	var entrances []*entrance
	for i, at := range standings {
		if at.Err != nil {
			failed = at.Err
			h.router.Detach(stays[i], nil)
			continue
		}
		held = append(held, i)
		entrances = append(entrances, &entrance{
			address: addresses[i], asked: rooms[i].Resume, log: history.Log{Epoch: at.Epoch, First: at.First, Top: at.Top},
		})
	}
	if err := s.open(ctx, entrances); err != nil {
		for _, i := range held {
			h.router.Detach(stays[i], nil)
			h.registry.Exit(s.entry.User, addresses[i])
		}
		return nil, err
	}
	for j, i := range held {
		s.follow(id, protocol.RoomID(rooms[i].Room), stays[i], &entrances[j].opening)
	}
	return held, failed
}

// withinLimit returns the rooms that a connection may still enter, and refuses what is beyond.
func (s *session) withinLimit(id []byte, rooms []protocol.RoomResume) []protocol.RoomResume {
	most, limited := s.grant().MaxRooms(s.handler.limits.Load().MaxRooms)
	n := len(s.rooms)
	for i := range rooms {
		if s.rooms[protocol.RoomID(rooms[i].Room)] != nil {
			continue
		}
		if n++; limited && n > most {
			s.refuse(&protocol.ReplyError{
				ID: string(id), Code: protocol.CodeLimited, Message: "too many rooms", Limit: protocol.LimitRoomsPerConnection, Rooms: namesOf(rooms[i:]),
			})
			return rooms[:i]
		}
	}
	return rooms
}

// turnAway refuses rooms that Redis did not answer for.
func (s *session) turnAway(id []byte, rooms []protocol.RoomResume, err error) {
	s.handler.cfg.Log.Warn("join failed", "conn", s.conn, "rooms", len(rooms), "err", err)
	s.refuse(&protocol.ReplyError{
		ID: string(id), Code: protocol.CodeUnavailable, Message: "room: redis does not answer", RetryAfterMs: 1000, Rooms: namesOf(rooms),
	})
}

// namesOf lists rooms for an error. All that are refused for one reason are in one: a register may name thousands.
func namesOf(rooms []protocol.RoomResume) []protocol.RoomID {
	names := make([]protocol.RoomID, len(rooms))
	for i := range rooms {
		names[i] = protocol.RoomID(rooms[i].Room)
	}
	return names
}

// follow tells the client where it goes on in a room, and gives it what is there.
func (s *session) follow(id []byte, room protocol.RoomID, stay *router.Stay, open *opening) {
	_, placed := s.placed[room]
	s.exit(room, nil)
	if placed {
		s.placed[room] = struct{}{}
	}
	if s.rooms == nil {
		s.rooms = make(map[protocol.RoomID]*router.Stay)
	}
	s.rooms[room] = stay
	s.handler.router.TraceConnection(protocol.TraceJoined, s.entry.User, s.conn.ID(), room, "")
	frames := [][]byte{protocol.AppendJoined(nil, &protocol.Joined{
		ID: id, Room: room, Epoch: open.at.Epoch, Offset: open.at.Offset, First: open.first, Top: open.top, Recovered: len(open.gaps) == 0,
	})}
	for i := range open.gaps {
		open.gaps[i].Room = room
		frames = append(frames, protocol.AppendGap(nil, &open.gaps[i]))
	}
	s.handler.router.Follow(stay, open.at, open.top, frames...)
}

// leave ends this connection's part in a room.
func (s *session) leave(f *protocol.Frame) {
	if !s.allow(f, 1) {
		return
	}
	if _, ok := s.addressed(f); ok {
		room := protocol.RoomID(f.Room)
		s.exit(room, protocol.AppendLeft(nil, f.ID, room))
	}
}

// exit takes the connection out of a room, if it is in it, and has the frame come behind what was delivered.
func (s *session) exit(room protocol.RoomID, frame []byte) {
	if stay := s.rooms[room]; stay != nil {
		s.handler.router.Detach(stay, frame)
		s.handler.registry.Exit(s.entry.User, stay.Address())
		delete(s.rooms, room)
		delete(s.placed, room)
		s.handler.router.TraceConnection(protocol.TraceLeft, s.entry.User, s.conn.ID(), room, "")
	}
}
