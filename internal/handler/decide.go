package handler

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/hook"
	"chatgate/internal/protocol"
)

// What the customer's backend decides is asked on the reader's way: what the client sends meanwhile waits, so that its messages stay in
// order, and no longer than one answer may take. Nobody else waits for it.

// arrival is what the backend may know a client by.
type arrival struct {
	address string
	headers map[string]string
}

// maxArrival bounds the headers that are kept for a connection until it registers, bytes.
const maxArrival = 16 << 10

// maxInvited bounds the rooms that a backend may put a connection into when it registers: each is looked for among the others.
const maxInvited = 1000

func arrivalOf(r *http.Request, addr netip.Addr, names []string) *arrival {
	o := &arrival{headers: make(map[string]string)}
	if addr.IsValid() {
		o.address = addr.String()
	}
	size := 0
	for _, name := range names {
		between := ", "
		if strings.EqualFold(name, "Cookie") {
			between = "; "
		}
		value := strings.Join(r.Header.Values(name), between)
		if strings.EqualFold(name, "Host") {
			value = r.Host
		}
		if size += len(value); value != "" && size <= maxArrival {
			o.headers[strings.ToLower(name)] = strings.Clone(value)
		}
	}
	return o
}

// inquire is what is told with each question.
func (s *session) inquire(q hook.Question) *hook.Inquiry {
	about := &hook.Inquiry{Question: q, Gateway: s.handler.cfg.Gateway, Conn: s.conn.ID()}
	if s.registered || q != hook.AskRegister {
		about.User, about.Device, about.Class = s.entry.User, s.entry.Device, s.entry.Class
		about.Meta = []byte(s.entry.MetaNow())
	}
	if len(about.Meta) == 0 {
		about.Meta = nil
	}
	return about
}

// ask waits for a decision, and only this connection's reader does.
func (s *session) ask(about *hook.Inquiry, check func(*hook.Decision) error) (d *hook.Decision, err error) {
	s.conn.Aside(func() { d, err = s.handler.cfg.Decider.Ask(about, check) })
	return d, err
}

// askWho asks who registers and what he may. token is who that is already, if a token said so. What comes back is both; nil: nobody
// has said anything, and the client was let in as one who proves nothing. False: the frame is refused.
func (s *session) askWho(f *protocol.Frame, token *auth.Identity) (*auth.Identity, bool) {
	about := s.inquire(hook.AskRegister)
	about.Address, about.Headers = s.arrival.address, s.arrival.headers
	about.Claimed, about.Device, about.Class = protocol.UserID(f.UserID), protocol.DeviceID(f.DeviceID), protocol.ClassID(f.Class)
	if about.Meta = slices.Clone(f.Meta); len(f.Meta) == 0 {
		about.Meta = nil
	}
	if token != nil {
		about.User = token.User
		if token.Meta != "" {
			about.Meta = []byte(token.Meta)
		}
	} else {
		about.Token = string(f.Token)
	}
	var word *auth.Identity
	decision, err := s.ask(about, func(d *hook.Decision) (err error) {
		if len(d.Join) > maxInvited {
			return errors.New("join: too many rooms")
		}
		for _, room := range d.Join {
			if !protocol.ValidID([]byte(room), protocol.MaxIDBytes) {
				return errors.New("join: not a name of a room")
			}
		}
		word, err = auth.Word{User: d.User, Meta: d.Meta, Rooms: d.Rooms, Watch: d.Watch, Limits: d.Limits, ExpiresAt: d.ExpiresAt}.Identity(time.Now())
		return err
	})
	switch {
	case err != nil:
		s.refuse(undecided.ReplyError(f.ID))
		s.unproven()
		return nil, false
	case !*decision.Allow:
		e := decision.ReplyError(f.ID)
		s.refuse(e)
		if e.Code == protocol.CodeLimited || e.Code == protocol.CodeUnavailable {
			s.unproven()
		} else {
			s.conn.Close(connection.Cause{Kind: connection.KindUnauthorized})
		}
		return nil, false
	case decision.Assumed:
		s.word, s.invited = nil, nil
		return token, token != nil || s.admitAnonymous(f)
	}
	return s.believe(f, token, word, decision.Join)
}

// believe puts together what the token and the backend say, and wants them to mean one user.
func (s *session) believe(f *protocol.Frame, token, word *auth.Identity, join []string) (*auth.Identity, bool) {
	switch {
	case word.User == "" && token != nil:
		word.User = token.User
	case word.User == "":
		if !s.admitAnonymous(f) {
			return nil, false
		}
		word.User = protocol.UserID(f.UserID)
	case token != nil && token.User != word.User, f.UserID != nil && string(f.UserID) != string(word.User):
		s.forbid(f.ID, "userId: not the one the backend knows")
		s.conn.Close(connection.Cause{Kind: connection.KindUnauthorized})
		return nil, false
	}
	s.word, s.invited = word, join
	return token.Under(word), true
}

// guests adds the rooms to which the backend invites to those a register names.
func (s *session) guests(rooms []protocol.RoomResume) []protocol.RoomResume {
	for _, name := range s.invited {
		if !slices.ContainsFunc(rooms, func(r protocol.RoomResume) bool { return string(r.Room) == name }) {
			rooms = append(rooms, protocol.RoomResume{Room: []byte(name)})
		}
	}
	return rooms
}

// welcome returns the rooms the backend lets this connection join, and refuses each of the others.
func (s *session) welcome(id []byte, rooms []protocol.RoomResume) []protocol.RoomResume {
	if !s.handler.cfg.Decider.Asks(hook.AskJoin) {
		return rooms
	}
	invited := func(r protocol.RoomResume) bool { return slices.Contains(s.invited, string(r.Room)) }
	about := s.inquire(hook.AskJoin)
	for _, r := range rooms {
		if !invited(r) {
			about.Rooms = append(about.Rooms, string(r.Room))
		}
	}
	if len(about.Rooms) == 0 {
		return rooms
	}
	decision, err := s.ask(about, checkMeta)
	let := make([]protocol.RoomResume, 0, len(rooms))
	if err == nil && *decision.Allow {
		if e := s.bindSaid(decision); e != nil {
			// Not let in as if nothing was said: what the client bound must not be a way around what the backend binds.
			for _, name := range about.Rooms {
				e.Rooms = append(e.Rooms, protocol.RoomID(name))
			}
			e.ID = string(id)
			s.refuse(e)
			return slices.DeleteFunc(append(let, rooms...), func(r protocol.RoomResume) bool { return !invited(r) })
		}
	}
	refused := make(map[hook.Denial][]protocol.RoomID)
	for _, r := range rooms {
		denial, denied := hook.Denial{}, false
		switch {
		case invited(r):
		case err != nil:
			denial, denied = undecided, true
		case !*decision.Allow:
			denial, denied = decision.Denial, true
		default:
			denial, denied = decision.Deny[string(r.Room)]
		}
		if denied {
			refused[denial] = append(refused[denial], protocol.RoomID(r.Room))
		} else {
			let = append(let, r)
		}
	}
	for denial, names := range refused {
		e := denial.ReplyError(id)
		e.Rooms = names
		s.refuse(e)
	}
	return let
}

// passed returns what the backend has sent instead of a message's content, which may be the same. False: it is refused.
func (s *session) passed(f *protocol.Frame) ([]byte, bool) {
	if !s.handler.cfg.Decider.Asks(hook.AskMessage) {
		return f.Content, true
	}
	if protocol.Twins(f.Content) {
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeBadRequest, Message: "content: a name is there twice"})
		return nil, false
	}
	about := s.inquire(hook.AskMessage)
	about.ID, about.To, about.Room, about.Content, about.Ephemeral = string(f.ID), string(f.To), string(f.Room), f.Content, f.Ephemeral
	decision, err := s.ask(about, checkMeta)
	var e *protocol.ReplyError
	switch {
	case err != nil:
		e = undecided.ReplyError(f.ID)
	case !*decision.Allow:
		e = decision.ReplyError(f.ID)
	case !s.holds(decision):
		// Not sent as it came: that it leaves no room for a change must not be a way around it.
		e = &protocol.ReplyError{Code: protocol.CodeTooLarge, Message: "content: too large or too deep with what the backend makes of it", Limit: protocol.LimitFrameBytes}
	default:
		e = s.bindSaid(decision)
	}
	if e != nil {
		e.ID = string(f.ID)
		s.refuse(e)
		return nil, false
	}
	if decision.Changes() {
		return decision.Content, true
	}
	return f.Content, true
}

// holds reports whether a frame holds what a decision makes of a message: how large that is, and how deep, is the client's doing too. What else a content
// may be was seen when it was read.
func (s *session) holds(d *hook.Decision) bool {
	return !d.Changes() || !protocol.Deep(d.Content) &&
		int64(len(`{"type":"message","to":"x","content":}`)+len(d.Content)) <= s.handler.cfg.MaxFrameBytes
}

// undecided is what a client is told whose backend does not answer.
var undecided = hook.Denial{Code: protocol.CodeUnavailable, Reason: "the backend does not decide now", RetryAfterMs: 1000}
