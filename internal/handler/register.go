package handler

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/history"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

func (s *session) register(f *protocol.Frame) {
	h := s.handler
	switch {
	case s.registered:
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeAlreadyRegistered, Message: "registered already"})
		return
	case !s.admit(f):
		return
	case len(h.cfg.Classes) > 0 && !slices.Contains(h.cfg.Classes, string(f.Class)):
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeBadRequest, Message: "deviceClass: must be one of " + strings.Join(h.cfg.Classes, ", "),
		})
		return
	}
	user, meta := protocol.UserID(f.UserID), string(f.Meta)
	if s.token != nil {
		if user = s.token.User; s.token.Meta != "" {
			meta = s.token.Meta
		}
	}
	switch {
	case s.entry == nil:
		s.entry = &presence.Entry{
			Conn: s.conn.ID(), User: user, Device: protocol.DeviceID(f.DeviceID), Class: protocol.ClassID(f.Class),
			Meta: meta, Since: s.conn.Since().UnixMilli(),
		}
		s.stay = h.router.Attach(protocol.UserAddress(s.entry.User), s.conn)
	case s.entry.User != user:
		// The registry may hold an entry of the first attempt.
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeForbidden, Message: "userId: differs from the first register"})
		return
	}

	if !h.registry.Answers(s.stay.Address()) {
		s.unavailable(f, presence.ErrUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.RegisterWait)
	defer cancel()
	h.arriving.begin(s.conn, user)
	defer h.arriving.end(s.conn)
	reg, err := h.registry.Register(ctx, s.entry)
	var no *presence.Refusal
	switch {
	case errors.As(err, &no):
		if errors.Is(err, presence.ErrTaken) {
			s.refuse(&protocol.ReplyError{
				ID: string(f.ID), Code: protocol.CodeConflict, Message: "deviceClass: another connection has its place", Limit: protocol.LimitDeviceClasses,
			})
		}
		s.conn.Close(connection.Cause{Kind: connection.KindReplaced, By: string(no.By), At: no.At})
		return
	case err != nil:
		s.unavailable(f, err)
		return
	}
	own := entrance{address: s.stay.Address(), asked: f.Resume, log: history.Log{Epoch: reg.Epoch, First: reg.First, Top: reg.Top}}
	if err := s.open(ctx, []*entrance{&own}); err != nil {
		s.unavailable(f, err)
		return
	}
	open := &own.opening
	s.registered, s.refreshed, s.shown = true, time.Now(), time.Time{}
	// First of all that it is sent: a message for everyone finds the connection from here on.
	s.conn.Append(protocol.AppendRegistered(make([]byte, 0, registeredBytes), &protocol.Registered{
		UserID: s.entry.User, ConnID: s.conn.ID(), GatewayID: h.cfg.Gateway,
		Epoch: open.at.Epoch, Offset: open.at.Offset, First: open.first, Top: open.top, Recovered: len(open.gaps) == 0,
		HeartbeatIntervalMs: h.cfg.HeartbeatInterval.Milliseconds(), PresenceTTLMs: h.cfg.PresenceTTL.Milliseconds(),
		MaxFrameBytes: h.cfg.MaxFrameBytes, ServerTime: s.refreshed.UnixMilli(), ExpiresAt: s.expiresAt(),
	}))
	s.identify()
	h.manager.Identify(s.conn)
	h.arriving.end(s.conn) // what is asked of it comes after this frame
	h.router.TraceConnection(protocol.TraceRegistered, s.entry.User, s.conn.ID(), "", "")
	s.endIfRevoked()
	var frames [][]byte
	for i := range open.gaps {
		frames = append(frames, protocol.AppendGap(nil, &open.gaps[i]))
	}
	h.router.Follow(s.stay, open.at, open.top, frames...)
	s.enter(nil, s.guests(f.Rooms))
	s.arrival, s.invited = nil, nil
}

// registeredBytes holds a registered frame whose user has a name of usual length.
const registeredBytes = 448

// unavailable refuses a register that Redis did not answer: its time starts anew.
func (s *session) unavailable(f *protocol.Frame, err error) {
	s.handler.cfg.Log.Warn("register failed", "conn", s.conn, "user", string(s.entry.User), "err", err)
	s.conn.ResetRegisterTimeout()
	s.refuse(&protocol.ReplyError{
		ID: string(f.ID), Code: protocol.CodeUnavailable, Message: "redis does not answer", RetryAfterMs: 1000,
	})
}
