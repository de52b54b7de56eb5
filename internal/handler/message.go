package handler

import (
	"strconv"
	"sync"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// messages are reused: their buffers are the cost of a message.
var messages = sync.Pool{New: func() any { return new(router.Message) }}

func (s *session) message(f *protocol.Frame) {
	h := s.handler
	if !s.allow(f, 1) {
		return
	}
	to := protocol.UserAddress(protocol.UserID(f.To))
	if f.Room != nil {
		var ok bool
		if to, ok = s.roomToTell(f); !ok {
			return
		}
	}
	content, ok := s.passed(f)
	if !ok || !s.conn.Acquire() {
		return
	}
	m := messages.Get().(*router.Message)
	m.To, m.From = to, s.entry.User
	m.Ephemeral, m.HasID, m.Ts = f.Ephemeral, f.HasID, time.Now().UnixMilli()
	if m.ID = append(m.ID[:0], f.ID...); !f.HasID {
		m.ID = s.makeID(m.ID)
	}
	m.Content = append(m.Content[:0], f.Content...) // the sender's: what a repetition is known by
	head := protocol.MessageHead{ID: m.ID, From: m.From, To: f.To, Room: f.Room, Content: content, Ts: m.Ts, Ephemeral: f.Ephemeral}
	if h.cfg.StampMeta {
		head.Meta = s.entry.MetaNow()
	}
	if own := s.stay.Address(); f.Copy && m.To != own {
		c := messages.Get().(*router.Message)
		c.To, c.From, c.Ts = own, m.From, m.Ts
		c.ID, c.Content = append(c.ID[:0], m.ID...), append(c.Content[:0], f.Content...)
		head.Own = true
		c.Frame = protocol.AppendMessageHead(c.Frame[:0], &head)
		m.Copy = c
		h.router.Hold(own)
	}
	// What somebody writes to himself is in his log already: it is its own copy.
	head.Own = f.Copy && m.Copy == nil
	m.Frame = protocol.AppendMessageHead(m.Frame[:0], &head)
	if h.cfg.MessageEvents && !m.Ephemeral {
		m.Origin = protocol.AppendMessageOrigin(m.Origin[:0], &protocol.MessageOrigin{
			ID: m.ID, From: m.From, To: f.To, Room: f.Room,
			Gateway: h.cfg.Gateway, Conn: s.entry.Conn, Device: s.entry.Device, Meta: s.entry.MetaNow(),
		})
	}
	m.Sender, m.Done = s.conn, h.answer
	m.Newcomer = h.newcomers.Load() != nil
	if !m.Ephemeral {
		h.router.Hold(m.To)
	}
	h.router.Send(&s.out, m)
	s.out.Flush()
}

// roomToTell is the room a message is for: one this connection is in, or any where
// the operator says so.
func (s *session) roomToTell(f *protocol.Frame) (protocol.Address, bool) {
	if s.handler.limits.Load().OpenRooms && s.rooms[protocol.RoomID(f.Room)] == nil {
		if !s.grant().AllowsRoom(protocol.RoomID(f.Room)) {
			s.forbid(f.ID, "room: the token does not allow it")
			return "", false
		}
		return protocol.RoomAddress(protocol.RoomID(f.Room)), true
	}
	return s.addressed(f)
}

// makeID names a message that came without an id: unique, since the connection's
// id is.
func (s *session) makeID(dst []byte) []byte {
	s.made++
	dst = append(append(dst, s.conn.ID()...), '-')
	return strconv.AppendUint(dst, s.made, 10)
}

// answer tells the sender what became of a message. It runs on a goroutine of
// the router, or on the reader's for a refusal.
func (h *Handler) answer(out *connection.Batch, m *router.Message) {
	c := m.Sender
	r := &m.Result
	switch {
	case r.Err != nil:
		h.counts.refused(r.Err.Code)
		if !m.HasID {
			r.Err.ID = ""
		}
		m.Frame = protocol.AppendError(m.Frame[:0], r.Err)
		out.Append(c, m.Frame)
	case m.Ephemeral && !m.HasID:
		// Wanted no answer.
	default:
		m.Frame = protocol.AppendAck(m.Frame[:0], &protocol.Ack{
			ID: m.ID, Status: r.Status, Epoch: r.Epoch, Offset: r.Offset,
			Devices: r.Devices, HasDevices: r.Status == protocol.StatusRouted && m.To.Kind() == 'u', Ts: r.Ts,
		})
		out.Append(c, m.Frame)
	}
	c.Release()
	reuse(m)
}

// reuse gives a message back, and its copy.
func reuse(m *router.Message) {
	if m.Copy != nil {
		reuse(m.Copy)
	}
	m.Copy, m.Sender, m.Done, m.Ephemeral, m.Newcomer, m.Result = nil, nil, nil, false, false, router.Result{}
	m.Origin = m.Origin[:0]
	if cap(m.Frame) > 16<<10 { // a rare large message must not stay in the pool
		m.Frame, m.Content = nil, nil
	}
	messages.Put(m)
}
