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
	if !s.allow(f, 1) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.handler.cfg.RegisterWait)
	defer cancel()
	s.enter(ctx, f.ID, []protocol.RoomResume{{Room: f.Room, Resume: f.Resume}})
}

// enter joins rooms, all in as few calls as their groups allow, and answers for each. The id is of the join; a register has none.
func (s *session) enter(ctx context.Context, id []byte, rooms []protocol.RoomResume) {
	h := s.handler
	stays := make([]*router.Stay, 0, len(rooms))
	addresses := make([]protocol.Address, 0, len(rooms))
	for i := range rooms {
		room := protocol.RoomID(rooms[i].Room)
		if s.rooms[room] == nil && h.cfg.MaxRooms > 0 && len(s.rooms) >= h.cfg.MaxRooms {
			s.refuse(&protocol.ReplyError{ID: string(id), Code: protocol.CodeLimited, Message: "too many rooms", Limit: "rooms-per-connection"})
			rooms = rooms[:i] // the others would be too many as well
			break
		}
		s.exit(room, nil)
		a := protocol.RoomAddress(room)
		stay := h.router.Attach(a, s.conn)
		if s.rooms == nil {
			s.rooms = make(map[protocol.RoomID]*router.Stay)
		}
		s.rooms[room] = stay
		stays, addresses = append(stays, stay), append(addresses, a)
	}
	for i, at := range s.hold(ctx, addresses) {
		if at.Err == nil {
			log := history.Log{Epoch: at.Epoch, First: at.First, Top: at.Top}
			if at.Err = s.follow(ctx, id, stays[i], rooms[i].Resume, log); at.Err != nil {
				h.registry.Release(addresses[i])
			}
		}
		if at.Err != nil {
			h.router.Detach(stays[i], nil)
			delete(s.rooms, protocol.RoomID(rooms[i].Room))
			h.cfg.Log.Warn("join failed", "conn", s.conn, "room", string(rooms[i].Room), "err", at.Err)
			s.refuse(&protocol.ReplyError{
				ID: string(id), Code: protocol.CodeUnavailable, Message: "room: redis does not answer", RetryAfterMs: 1000,
			})
		}
	}
}

// hold has the rooms held. With a Redis that is known not to answer, nobody waits to hear it.
func (s *session) hold(ctx context.Context, rooms []protocol.Address) []presence.Standing {
	if s.handler.registry.Answers(rooms...) {
		return s.handler.registry.Hold(ctx, rooms...)
	}
	out := make([]presence.Standing, len(rooms))
	for i := range out {
		out[i].Err = presence.ErrUnavailable
	}
	return out
}

// follow tells the client where it goes on in a room, and gives it what is there.
func (s *session) follow(ctx context.Context, id []byte, stay *router.Stay, asked protocol.Resume, log history.Log) error {
	open, err := s.open(ctx, stay.Address(), asked, log)
	if err != nil {
		return err
	}
	room := protocol.RoomID(stay.Address().Name())
	frames := [][]byte{protocol.AppendJoined(nil, &protocol.Joined{
		ID: id, Room: room, Epoch: open.at.Epoch, Offset: open.at.Offset, First: open.first, Top: open.top, Recovered: len(open.gaps) == 0,
	})}
	for i := range open.gaps {
		open.gaps[i].Room = room
		frames = append(frames, protocol.AppendGap(nil, &open.gaps[i]))
	}
	s.handler.router.Follow(stay, open.at, open.top, frames...)
	return nil
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
		s.handler.registry.Release(stay.Address())
		delete(s.rooms, room)
	}
}
