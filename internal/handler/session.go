package handler

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"chatgate/internal/connection"
	"chatgate/internal/history"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// session is what one connection is doing. Its fields belong to its reader.
type session struct {
	handler *Handler
	conn    *connection.Connection

	entry      *presence.Entry // nil before the first register
	registered bool
	refreshed  time.Time     // when presence was last refreshed
	limiter    *rate.Limiter // made with the first message
	bad        int           // bad frames in a row
	made       uint64        // message ids made so far
	out        connection.Batch
}

// frames are shared by all readers: a session at rest keeps none.
var frames = sync.Pool{New: func() any { return new(protocol.Frame) }}

// handle answers one text frame. The frame is valid until it returns.
func (s *session) handle(data []byte) {
	f := frames.Get().(*protocol.Frame)
	defer frames.Put(f)
	s.handler.counts.frames.Add(1)
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

func (s *session) register(f *protocol.Frame) {
	h := s.handler
	switch {
	case s.registered:
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeAlreadyRegistered, Message: "registered already"})
		return
	case !h.cfg.Anonymous || f.UserID == nil:
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeUnauthorized, Message: "anonymous users are not let in here"})
		s.conn.Close(connection.Cause{Kind: connection.KindUnauthorized})
		return
	case s.entry == nil:
		s.entry = &presence.Entry{
			Conn: s.conn.ID(), User: protocol.UserID(f.UserID), Device: protocol.DeviceID(f.DeviceID),
			Meta: string(f.Meta), Since: s.conn.Since().UnixMilli(),
		}
		h.router.Attach(protocol.UserAddress(s.entry.User), s.conn)
	case string(s.entry.User) != string(f.UserID):
		// The registry may hold an entry of the first attempt.
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeForbidden, Message: "userId: differs from the first register"})
		return
	}

	if !h.registry.Answers(s.entry.User) {
		s.unavailable(f, presence.ErrUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.RegisterWait)
	defer cancel()
	reg, err := h.registry.Register(ctx, s.entry)
	switch {
	case errors.Is(err, presence.ErrReplaced):
		s.conn.Close(connection.Cause{Kind: connection.KindReplaced})
		return
	case err != nil:
		s.unavailable(f, err)
		return
	}
	open, err := s.start(ctx, f, reg)
	if err != nil {
		s.unavailable(f, err)
		return
	}
	s.registered, s.refreshed = true, time.Now()
	s.conn.Identify(connection.Identity{
		User: s.entry.User, Device: s.entry.Device, Meta: append([]byte(nil), f.Meta...), Entry: s.entry,
	})
	h.manager.Identify(s.conn)
	frames := [][]byte{protocol.AppendRegistered(nil, &protocol.Registered{
		UserID: s.entry.User, ConnID: s.conn.ID(), GatewayID: h.cfg.Gateway,
		Epoch: open.at.Epoch, Offset: open.at.Offset, First: open.first, Top: open.top, Recovered: len(open.gaps) == 0,
		HeartbeatIntervalMs: h.cfg.HeartbeatInterval.Milliseconds(), PresenceTTLMs: h.cfg.PresenceTTL.Milliseconds(),
		MaxFrameBytes: h.cfg.MaxFrameBytes, ServerTime: s.refreshed.UnixMilli(),
	})}
	for i := range open.gaps {
		frames = append(frames, protocol.AppendGap(nil, &open.gaps[i]))
	}
	h.router.Follow(protocol.UserAddress(s.entry.User), s.conn, open.at, open.top, frames...)
}

// unavailable refuses a register that Redis did not answer: its time starts anew.
func (s *session) unavailable(f *protocol.Frame, err error) {
	s.handler.cfg.Log.Warn("register failed", "conn", s.conn, "user", string(s.entry.User), "err", err)
	s.conn.ResetRegisterTimeout()
	s.refuse(&protocol.ReplyError{
		ID: string(f.ID), Code: protocol.CodeUnavailable, Message: "redis does not answer", RetryAfterMs: 1000,
	})
}

// opening is where a client goes on in a log.
type opening struct {
	at         protocol.Position
	first, top uint64
	gaps       []protocol.Gap
}

// newDeviceBacklog is how much of what is kept a device gets that was never seen.
const newDeviceBacklog = 200

// start finds out what the client gets: what it asks to resume from, else what
// its device has not confirmed, else what comes from now on.
func (s *session) start(ctx context.Context, f *protocol.Frame, reg presence.Registration) (opening, error) {
	now := opening{at: protocol.Position{Epoch: reg.Epoch, Offset: reg.Top}, first: reg.First, top: reg.Top}
	if !f.Resume.Set && s.entry.Device == "" {
		return now, nil
	}
	var at protocol.Position
	known := f.Resume.Set
	if known {
		at = protocol.Position{Epoch: string(f.Resume.Epoch), Offset: f.Resume.Offset}
	} else {
		var err error
		if at, known, err = s.handler.history.Kept(ctx, s.entry.User, s.entry.Device); err != nil {
			return now, err
		}
	}
	logs, err := s.handler.history.Heads(ctx, protocol.UserAddress(s.entry.User))
	if err != nil {
		return now, err
	}
	log := &logs[0]
	out := opening{first: log.First, top: log.Top}
	if !known {
		out.at = protocol.Position{Epoch: log.Epoch, Offset: max(log.First-1, log.Top-min(log.Top, newDeviceBacklog))}
		return out, nil
	}
	r := log.Resume(at)
	out.at, out.gaps = protocol.Position{Epoch: log.Epoch, Offset: r.Start}, r.Gaps
	return out, nil
}

// received notes how far this device has kept what it got.
func (s *session) received(f *protocol.Frame) {
	if f.Room != nil || s.entry.Device == "" {
		return // rooms have no cursors; a client without a device resumes by position
	}
	s.handler.cursors.note(history.Cursor{
		User: s.entry.User, Device: s.entry.Device, At: protocol.Position{Epoch: string(f.Epoch), Offset: f.Offset},
	})
}

// history answers with a page of the own inbox.
func (s *session) history(f *protocol.Frame) {
	if f.Room != nil {
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeNotJoined, Message: "room: not joined"})
		return
	}
	if !s.allow(f, 1) {
		return
	}
	page, err := s.page(f)
	if err != nil {
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeUnavailable, Message: "redis does not answer", RetryAfterMs: 1000,
		})
		return
	}
	out := protocol.AppendHistoryHead(nil, &protocol.HistoryHead{
		ID: f.ID, Epoch: page.Epoch, First: page.First, Top: page.Top, More: page.More,
	})
	for i := range page.Messages {
		if i > 0 {
			out = append(out, ',')
		}
		m := &page.Messages[i]
		out = protocol.AppendMessageTail(append(out, m.Frame...), page.Epoch, m.Offset)
	}
	s.conn.Send(protocol.AppendHistoryTail(out))
}

func (s *session) page(f *protocol.Frame) (history.Page, error) {
	ctx, a, h := context.Background(), protocol.UserAddress(s.entry.User), s.handler.history
	switch {
	case f.HasBefore:
		return h.Before(ctx, a, f.Before, f.Limit)
	case !f.HasAfter:
		return h.Before(ctx, a, history.Newest, f.Limit)
	}
	page, err := h.After(ctx, a, f.After, f.Limit)
	if err != nil || f.Epoch == nil {
		return page, err
	}
	// An offset means something in its own epoch only.
	if r := page.Resume(protocol.Position{Epoch: string(f.Epoch), Offset: f.After}); r.Start < f.After {
		return h.After(ctx, a, r.Start, f.Limit)
	}
	return page, nil
}

// heartbeat is answered from memory; presence hears of it within moments.
func (s *session) heartbeat() {
	h := s.handler
	degraded := h.router.Degraded() || !h.registry.Reachable() || !h.registry.Answers(s.entry.User)
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

// allow counts a frame that costs as much as n messages against the connection's
// rate, or refuses it. A frame is let in when one message would be, and what it
// costs beyond the burst is owed by those that follow.
func (s *session) allow(f *protocol.Frame, n int) bool {
	r := s.handler.cfg.MessageRate
	if r <= 0 {
		return true
	}
	if s.limiter == nil {
		s.limiter = rate.NewLimiter(rate.Limit(r), r)
	}
	now := time.Now()
	v := s.limiter.ReserveN(now, 1)
	if wait := v.DelayFrom(now); wait > 0 {
		v.CancelAt(now)
		s.refuse(&protocol.ReplyError{
			ID: string(f.ID), Code: protocol.CodeLimited, Message: "too many messages", Limit: "message-rate",
			RetryAfterMs: wait.Milliseconds() + 1,
		})
		return false
	}
	for n--; n > 0; n -= r {
		s.limiter.ReserveN(now, min(n, r))
	}
	return true
}

// messages are reused: their buffers are the cost of a message.
var messages = sync.Pool{New: func() any { return new(router.Message) }}

func (s *session) message(f *protocol.Frame) {
	h := s.handler
	if !s.allow(f, 1) {
		return
	}
	if f.Room != nil {
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeNotJoined, Message: "room: not joined"})
		return
	}
	if !s.conn.Acquire() {
		return
	}
	m := messages.Get().(*router.Message)
	m.To, m.From = protocol.UserAddress(protocol.UserID(f.To)), s.entry.User
	m.Ephemeral, m.HasID, m.Ts = f.Ephemeral, f.HasID, time.Now().UnixMilli()
	if m.ID = append(m.ID[:0], f.ID...); !f.HasID {
		m.ID = s.makeID(m.ID)
	}
	m.Content = append(m.Content[:0], f.Content...)
	head := protocol.MessageHead{ID: m.ID, From: m.From, To: f.To, Content: f.Content, Ts: m.Ts, Ephemeral: f.Ephemeral}
	if own := protocol.UserAddress(m.From); f.Copy && m.To != own {
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
	m.Sender, m.Done = s.conn, h.answer
	if !m.Ephemeral {
		h.router.Hold(m.To)
	}
	h.router.Send(&s.out, m)
	s.out.Flush()
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
			Devices: r.Devices, HasDevices: r.Status == protocol.StatusRouted, Ts: r.Ts,
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
	m.Copy, m.Sender, m.Done, m.Ephemeral, m.Result = nil, nil, nil, false, router.Result{}
	if cap(m.Frame) > 16<<10 { // a rare large message must not stay in the pool
		m.Frame, m.Content = nil, nil
	}
	messages.Put(m)
}

const (
	// presenceChunk is how many users one answer holds; a longer list is answered
	// in several frames, so that no client is closed for an answer it asked for.
	presenceChunk = 1000
	// usersPerMessage is how many looked up users cost Redis as much as a message.
	usersPerMessage = 10
)

// presence answers with what is known of users now.
func (s *session) presence(f *protocol.Frame) {
	if !s.allow(f, 1+len(f.Users)/usersPerMessage) {
		return
	}
	for rest := f.Users; len(rest) > 0; {
		n := min(len(rest), presenceChunk)
		answer := s.presenceOf(f.ID, rest[:n])
		if !s.awaitRoom(len(answer)) || !s.conn.Send(answer) {
			return
		}
		rest = rest[n:]
	}
}

func (s *session) presenceOf(id []byte, names [][]byte) []byte {
	users := make([]protocol.UserID, len(names))
	for i, u := range names {
		users[i] = protocol.UserID(u)
	}
	var found []presence.Whereabouts
	err := presence.ErrUnavailable
	if s.handler.registry.Answers(users...) { // otherwise nobody should wait to hear it
		found, err = s.handler.registry.Locate(context.Background(), users...)
	}
	states := make([]protocol.UserPresence, len(users))
	for i, u := range users {
		states[i] = protocol.UserPresence{User: u, State: protocol.StateUnknown}
		if err != nil {
			continue
		}
		w := found[i]
		states[i].State, states[i].Version, states[i].LastSeen = protocol.StateOffline, w.Version, w.LastSeen
		if n := len(w.Locations); n > 0 {
			states[i].State, states[i].Devices = protocol.StateOnline, n
		}
	}
	return protocol.AppendPresence(nil, id, states)
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
	if s.entry == nil {
		return
	}
	s.handler.router.Detach(protocol.UserAddress(s.entry.User), s.conn)
	s.handler.registry.Remove(s.entry, cause.Kind.String())
}
