package handler

import (
	"maps"
	"slices"
	"sync"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// session is what one connection is doing.
type session struct {
	// Immutable.
	handler   *Handler
	conn      *connection.Connection
	anonymous bool // may register without a token

	// Any goroutine.
	turns turns

	// Owned by the reader.
	rates rates

	// Owned by whoever has the turn: the reader with a frame, or a command of the cluster.

	arrival    *arrival        // what the backend is told at register; nil again then
	word       *auth.Identity  // what it said then; nil: it was not asked, or did not answer
	invited    []string        // rooms it named; only while the connection registers
	token      *auth.Identity  // with the word; nil: nobody has proven anything
	shown      time.Time       // when the last one was looked at; zero again with register
	entry      *presence.Entry // nil before the first register
	stay       *router.Stay    // in the user's own address; nil before the first register
	rooms      map[protocol.RoomID]*router.Stay
	placed     map[protocol.RoomID]struct{} // those of them that a backend put it into: no token takes them away
	watches    map[protocol.UserID]*router.Watch
	registered bool
	refreshed  time.Time // when presence was last refreshed
	bad        int       // bad frames in a row
	made       uint64    // message ids made so far
	ended      bool
	out        connection.Batch
}

// frames are shared by all readers: a session at rest keeps none.
var frames = sync.Pool{New: func() any { return new(protocol.Frame) }}

// handle answers one text frame. The frame is valid until it returns.
func (s *session) handle(data []byte) {
	s.handler.counts.frames.Add(1)
	if !s.pace(s.conn.Came(), data) {
		return
	}
	f := frames.Get().(*protocol.Frame)
	defer frames.Put(f)
	s.turns.take()
	defer s.turns.give()
	if err := f.Decode(data); err != nil {
		s.refuse(err)
		return
	}
	if !s.registered && f.Type != protocol.TypeRegister {
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeNotRegistered, Message: "register first"})
		return
	}
	bad := s.bad
	switch f.Type {
	case protocol.TypeRegister:
		s.register(f)
	case protocol.TypeHeartbeat:
		s.heartbeat()
	case protocol.TypeMessage:
		s.message(f)
	case protocol.TypePresence:
		s.presence(f)
	case protocol.TypeReceived:
		s.received(f)
	case protocol.TypeHistory:
		s.history(f)
	case protocol.TypeJoin:
		s.join(f)
	case protocol.TypeLeave:
		s.leave(f)
	case protocol.TypeMembers:
		s.members(f)
	case protocol.TypeWatch:
		s.watch(f)
	case protocol.TypeUnwatch:
		s.unwatch(f)
	case protocol.TypeRefresh:
		s.renew(f)
	default:
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeUnknownType, Message: f.Type.String() + ": not served by this gateway",
		})
	}
	if s.bad == bad {
		s.bad = 0 // this one was good
	}
	s.refresh(false)
}

// refuse answers a frame with an error. A client that sends one bad frame after
// the other is not talking to us.
func (s *session) refuse(e *protocol.ReplyError) {
	s.handler.counts.refused(e.Code)
	s.conn.Send(protocol.AppendError(nil, e))
	switch e.Code {
	case protocol.CodeBadRequest, protocol.CodeUnknownType, protocol.CodeNotRegistered, protocol.CodeAlreadyRegistered:
		if s.bad++; s.handler.cfg.MaxBadFrames > 0 && s.bad >= s.handler.cfg.MaxBadFrames {
			s.conn.Close(connection.Cause{Kind: connection.KindTooManyErrors})
		}
	}
}

// heartbeat is answered from memory; presence hears of it within moments.
func (s *session) heartbeat() {
	h := s.handler
	degraded := h.router.Degraded() || !h.registry.Reachable() || !h.registry.Answers(s.stay.Address())
	s.conn.Send(protocol.AppendHeartbeat(nil, time.Now().UnixMilli(), degraded))
	s.refresh(true)
}

// refresh pushes out the presence entry: at each heartbeat, and with other
// frames when that was long ago.
func (s *session) refresh(now bool) {
	if !s.registered || !now && time.Since(s.refreshed) < s.handler.cfg.HeartbeatInterval {
		return
	}
	s.refreshed = time.Now()
	s.handler.registry.Refresh(s.entry)
}

// awaitRoom waits until the client has taken enough of what was sent to it; false
// when the connection ends.
func (s *session) awaitRoom(size int) bool {
	for !s.conn.Roomy(size) {
		if _, ended := s.conn.Cause(); ended {
			return false
		}
		time.Sleep(roomPause)
	}
	return true
}

// roomPause is how often a full outbox is looked at again.
const roomPause = 5 * time.Millisecond

// end undoes what the session did elsewhere. The manager is last out.
func (s *session) end(cause connection.Cause) {
	s.turns.end()
	defer s.turns.give() // what waits finds that it is too late
	s.ended = true
	for _, stay := range s.rooms {
		s.handler.router.Detach(stay, nil)
		s.handler.registry.Exit(s.entry.User, stay.Address())
	}
	s.endWatches(slices.Collect(maps.Values(s.watches))...)
	if s.entry != nil {
		s.handler.router.Detach(s.stay, nil)
		s.handler.registry.Remove(s.entry, EndOf(cause))
		s.handler.router.TraceConnection(protocol.TraceClosed, s.entry.User, s.conn.ID(), "", cause.Kind.String())
	}
	s.handler.cfg.Log.Debug("connection ended", "conn", s.conn, "cause", cause.Kind.String(), "code", int(cause.Code))
}
