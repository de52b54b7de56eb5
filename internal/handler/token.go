package handler

import (
	"context"
	"errors"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/hook"
	"chatgate/internal/protocol"
)

const (
	// showEvery is how often a connection may show a token: to look at one costs far more than a message.
	showEvery = time.Second
	// unprovenFor is how long a connection lives on tokens that can't be judged yet. A stranger can always name a key that is not there.
	unprovenFor = time.Minute
)

// admit finds out who registers, or refuses the frame. What is refused for good ends the connection.
func (s *session) admit(f *protocol.Frame) bool {
	h := s.handler
	shows, asks := f.Token != nil && h.cfg.Tokens != nil, h.cfg.Decider.Asks(hook.AskRegister)
	if !shows && !asks {
		s.token = nil
		return s.admitAnonymous(f)
	}
	if !s.mayShow(f) {
		return false
	}
	var id *auth.Identity
	if shows {
		if id = s.verified(f); id == nil {
			return false
		}
	}
	if asks {
		var ok bool
		if id, ok = s.askWho(f, id); !ok {
			return false
		}
	}
	if s.entry != nil && id != nil && id.Meta != "" && id.Meta != s.entry.Meta {
		// The registry may hold an entry of the first attempt, with what was said then. On another connection it is as good as any.
		s.forbid(f.ID, "token: another meta than at the first register")
		s.conn.Close(connection.Cause{Kind: connection.KindSuperseded})
		return false
	}
	s.token = id
	return true
}

// admitAnonymous lets in who proves nothing, where that is allowed.
func (s *session) admitAnonymous(f *protocol.Frame) bool {
	switch {
	case f.UserID == nil && f.Token == nil:
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeBadRequest, Message: "userId: missing"})
		return false
	case s.anonymous && f.UserID != nil:
		return true
	}
	s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeUnauthorized, Message: "anonymous users are not let in here"})
	s.conn.Close(connection.Cause{Kind: connection.KindUnauthorized})
	return false
}

// verified is whose the frame's token is, or nil: then the frame is refused.
func (s *session) verified(f *protocol.Frame) *auth.Identity {
	id, err := s.judge(f)
	refusal, refused := errors.AsType[*auth.Refusal](err)
	switch {
	case refused:
		kind := connection.KindUnauthorized
		switch refusal.Reason {
		case auth.ReasonExpired: // who comes back with a new one is let in
			kind = connection.KindTokenExpired
		case auth.ReasonRevoked:
			kind = connection.KindRevoked
		}
		s.conn.Close(connection.Cause{Kind: kind})
		return nil
	case err != nil:
		s.unproven()
		return nil
	case f.UserID != nil && string(f.UserID) != string(id.User):
		s.forbid(f.ID, "userId: not the token's")
		s.conn.Close(connection.Cause{Kind: connection.KindUnauthorized})
		return nil
	}
	return id
}

// unproven gives a client time to try again, who could not be judged for no fault of his own.
func (s *session) unproven() {
	if time.Since(s.conn.Since()) < unprovenFor {
		s.conn.ResetRegisterTimeout()
	}
}

// mayShow reports whether a token may be looked at now, or refuses the frame. Who could not be judged shows it again, and a stranger would
// as often as he can.
func (s *session) mayShow(f *protocol.Frame) bool {
	if wait := showEvery - time.Since(s.shown); wait > 0 {
		s.limited(f.ID, protocol.LimitRefreshRate, "too many tokens", wait)
		return false
	}
	s.shown = time.Now()
	return true
}

// judge verifies the frame's token and holds it against the revocations. What is wrong with it the client is told here.
func (s *session) judge(f *protocol.Frame) (*auth.Identity, error) {
	h := s.handler
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.RegisterWait)
	defer cancel()
	id, err := h.cfg.Tokens.Verify(ctx, f.Token)
	if err == nil {
		if err = h.cfg.Revocations.Check(id); err != nil && !errors.Is(err, auth.ErrUnavailable) {
			h.cfg.Tokens.CountRevoked()
		}
	}
	refusal, refused := errors.AsType[*auth.Refusal](err)
	switch {
	case err == nil:
		return id, nil
	case refused:
		h.cfg.Log.Debug("token refused", "conn", s.conn, "err", err)
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeUnauthorized, Message: "token: " + string(refusal.Reason)})
	default:
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeUnavailable, Message: "token: can't be judged now", RetryAfterMs: auth.RetryAfter(err).Milliseconds(),
		})
	}
	return nil, err
}

// renew takes a new token for this connection. One that is not good changes nothing: the connection lives as long as the one before.
func (s *session) renew(f *protocol.Frame) {
	h := s.handler
	if h.cfg.Tokens == nil {
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeUnknownType, Message: "refresh: not served by this gateway"})
		return
	}
	if !s.mayShow(f) {
		return
	}
	id, err := s.judge(f)
	switch {
	case err != nil:
		return
	case id.User != s.entry.User:
		s.forbid(f.ID, "token: another user's")
		return
	}
	s.token = id.Under(s.word)
	s.identify()
	s.endIfRevoked()
	s.obey()
	s.conn.Send(protocol.AppendRefreshed(nil, f.ID, s.expiresAt()))
}

// identify tells the connection who it belongs to, and until when.
func (s *session) identify() {
	identity := connection.Identity{User: s.entry.User, Device: s.entry.Device, Entry: s}
	if meta := s.entry.MetaNow(); meta != "" {
		identity.Meta = []byte(meta)
	}
	if s.token != nil {
		identity.Token = s.token
		if at := s.token.ExpiresAt(); !at.IsZero() {
			s.conn.ExpireAt(at)
		}
	}
	s.conn.Identify(identity)
}

// endIfRevoked looks once more, now that Revoked would find this connection: the word may have come in between.
func (s *session) endIfRevoked() {
	if r := s.handler.cfg.Revocations; s.token != nil && r != nil && r.Hits(s.token) {
		s.handler.cfg.Tokens.CountRevoked()
		s.conn.Close(connection.Cause{Kind: connection.KindRevoked})
	}
}

// obey ends what a new token does not allow any more. Numbers bind what comes from now on.
func (s *session) obey() {
	for room := range s.rooms {
		if _, placed := s.placed[room]; !placed && !s.grant().AllowsRoom(room) {
			s.exit(room, protocol.AppendLeft(nil, nil, room))
		}
	}
	for user, w := range s.watches {
		if !s.allowsWatch(user) {
			s.endWatches(w)
		}
	}
}

// grant is what this connection's token allows.
func (s *session) grant() *auth.Grant {
	if s.token == nil {
		return &everything
	}
	return &s.token.Grant
}

var everything auth.Grant

// expiresAt is when the token runs out, ms since 1970; 0: there is none.
func (s *session) expiresAt() int64 {
	if s.token == nil {
		return 0
	}
	return s.token.ExpiresAtMs()
}

func (s *session) forbid(id []byte, message string) {
	s.refuse(&protocol.ReplyError{ID: string(id), Code: protocol.CodeForbidden, Message: message})
}

// permitted returns the rooms that the token allows, and refuses the others.
func (s *session) permitted(id []byte, rooms []protocol.RoomResume) []protocol.RoomResume {
	if s.token == nil {
		return rooms
	}
	allowed := make([]protocol.RoomResume, 0, len(rooms))
	var others []protocol.RoomResume
	for i := range rooms {
		if s.grant().AllowsRoom(protocol.RoomID(rooms[i].Room)) {
			allowed = append(allowed, rooms[i])
		} else {
			others = append(others, rooms[i])
		}
	}
	if len(others) > 0 {
		s.refuse(&protocol.ReplyError{
			ID: string(id), Code: protocol.CodeForbidden, Message: "room: the token does not allow it", Rooms: namesOf(others),
		})
	}
	return allowed
}

// mayWatch reports whether the token lets this connection know of all the users in the frame, or refuses it. An answer for some of them
// could not say for which.
func (s *session) mayWatch(f *protocol.Frame) bool {
	if s.token == nil {
		return true
	}
	for _, name := range f.Users {
		if !s.allowsWatch(protocol.UserID(name)) {
			s.forbid(f.ID, "users: the token does not allow one of them")
			return false
		}
	}
	return true
}

// allowsWatch: everybody may know of himself.
func (s *session) allowsWatch(u protocol.UserID) bool {
	return u == s.entry.User || s.grant().AllowsWatch(u)
}

// Revoked closes every local connection whose token is revoked. A connection that registers meanwhile looks for itself, behind the moment
// from which it is found here.
func Revoked(m *connection.Manager, r *auth.Revocations) {
	m.ForEach(func(c *connection.Connection) bool {
		if identity, ok := c.Identity(); ok {
			if id, ok := identity.Token.(*auth.Identity); ok && r.Hits(id) {
				c.Close(connection.Cause{Kind: connection.KindRevoked})
			}
		}
		return true
	})
}
