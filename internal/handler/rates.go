package handler

import (
	"time"

	"golang.org/x/time/rate"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// Limits are what one connection may do. Reload replaces them, also for connections that are open. Of each, 0 is no limit.
type Limits struct {
	// MessageRate is the messages a second one connection may send, with bursts of as many. What asks for much counts as several.
	MessageRate int
	// FrameRate is the frames a second that are read from one connection, with bursts of as many: frames of every kind, control frames and
	// those that are refused included.
	FrameRate int
	// ByteRate is the bytes a second of those frames, with bursts of as many or one largest frame.
	ByteRate int
	// NewAddresses is the users and rooms an hour to which nobody has written yet and one user may be the first to, on this gateway, with
	// bursts of as many. Each costs kilobytes of Redis for weeks.
	NewAddresses int
	// MaxRooms is how many rooms one connection may be in.
	MaxRooms int
	// OpenRooms lets a connection send to rooms it is not in.
	OpenRooms bool
	// MaxWatches is how many users one connection may watch.
	MaxWatches int
}

// Reload replaces the limits, for open connections too: what they have used up stays so, and what they have joined and watch. One goroutine
// at a time calls it.
func (h *Handler) Reload(limits Limits) {
	old := h.limits.Swap(&limits)
	switch {
	case limits.NewAddresses <= 0:
		h.newcomers.Store(nil)
	case old == nil || old.NewAddresses != limits.NewAddresses:
		h.newcomers.Store(newBuckets[protocol.UserID](limits.NewAddresses, time.Hour, defaultAddressBuckets))
	}
}

// MayBegin takes one from the addresses that a user may be the first to. It returns 0, or how long until the next one.
func (h *Handler) MayBegin(user protocol.UserID) time.Duration {
	if t := h.newcomers.Load(); t != nil {
		return t.take(user, time.Now())
	}
	return 0
}

// holdFor is how long the reader is held for one frame before the frame is refused. As long as it is held, the order of what the client
// sends survives, and TCP slows the client down.
const holdFor = time.Second

// frameHeaderBytes is the longest header of a client's frame (RFC 6455 §5.2).
const frameHeaderBytes = 14

// rates hold what comes from one connection to its limits. They belong to the reader. All are paid afterwards: a frame is let in when what
// came before it is paid for, and what it costs is owed by those that follow. So what a frame costs need not be known before it is read, and
// the wait for one that costs much falls to whoever goes on.
type rates struct {
	frames, bytes, messages *rate.Limiter // nil: no limit, or nothing to count yet
	fitted                  *Limits       // what frames and bytes were made for
	now, patience           time.Time     // of the frame at hand: when it is handled, and until when the reader may be held for it
}

// pace has a text frame counted, and holds the reader until its place has come. False: the frame was refused, or the connection is closing.
func (s *session) pace(came connection.Came, data []byte) bool {
	r := &s.rates
	r.now = time.Now()
	r.patience = r.now.Add(holdFor)
	r.fit(s.handler.limits.Load(), s.handler.cfg.MaxFrameBytes)
	wait, limit := r.due()
	if wait > holdFor {
		// Held all the same: else whoever doesn't care to be refused has his frames read as fast as he sends them.
		if s.hold(holdFor) {
			var f protocol.Frame
			_ = f.Decode(data) // for its id; what is wrong with it otherwise doesn't matter any more
			s.limited(f.ID, limit, "too much at once", wait-holdFor)
		}
		return false
	}
	r.count(came)
	return wait <= 0 || s.hold(wait)
}

// toll has counted what can't be refused, control frames and the fragments of a message without end: the reader is held for as long as they
// take, or until new limits let it go.
func (s *session) toll() {
	r := &s.rates
	r.now = time.Now()
	r.fit(s.handler.limits.Load(), s.handler.cfg.MaxFrameBytes)
	r.count(s.conn.Came())
	for {
		wait, _ := r.due()
		if wait <= 0 || !s.hold(min(wait, holdFor)) {
			return
		}
		r.fit(s.handler.limits.Load(), s.handler.cfg.MaxFrameBytes)
	}
}

// hold holds the reader; false when the connection is closing.
func (s *session) hold(wait time.Duration) bool {
	goesOn := s.conn.Hold(wait)
	s.rates.now = time.Now()
	return goesOn
}

// fit makes the limiters what the limits say.
func (r *rates) fit(limits *Limits, largest int64) {
	if r.fitted != limits {
		r.frames = fit(r.frames, limits.FrameRate, limits.FrameRate)
		r.bytes = fit(r.bytes, limits.ByteRate, max(limits.ByteRate, int(largest)+frameHeaderBytes))
		r.fitted = limits
	}
}

// due is how long it takes until all frames that came are paid for, and which limit it is that takes longest.
func (r *rates) due() (wait time.Duration, limit string) {
	wait, limit = due(r.frames, r.now), protocol.LimitFrameRate
	if w := due(r.bytes, r.now); w > wait {
		wait, limit = w, protocol.LimitByteRate
	}
	return wait, limit
}

func (r *rates) count(came connection.Came) {
	owe(r.frames, r.now, came.Frames)
	owe(r.bytes, r.now, int(came.Bytes))
}

// allow counts a frame that costs as much as n messages, and holds the reader until its place has come. False: the frame was refused, or
// the connection is closing.
func (s *session) allow(f *protocol.Frame, n int) bool {
	own := s.handler.limits.Load().MessageRate
	r, limited := s.grant().MessageRate(own)
	if limited && r == 0 && (f.Type == protocol.TypeLeave || f.Type == protocol.TypeUnwatch) {
		// Who may send nothing may still end what he has, at the rate of everybody.
		r, limited = own, own > 0
	}
	switch {
	case !limited:
		return true
	case r == 0:
		s.refuse(&protocol.ReplyError{ID: string(f.ID), Code: protocol.CodeForbidden, Message: "the token allows no messages", Limit: protocol.LimitMessageRate})
		return false
	}
	s.rates.messages = fit(s.rates.messages, r, r)
	wait := due(s.rates.messages, s.rates.now)
	if s.rates.now.Add(wait).After(s.rates.patience) {
		// At once: the frames that are refused are held to their own rate.
		s.limited(f.ID, protocol.LimitMessageRate, "too many messages", wait)
		return false
	}
	owe(s.rates.messages, s.rates.now, n)
	return wait <= 0 || s.hold(wait)
}

// limited refuses a frame that came too early.
func (s *session) limited(id []byte, limit, message string, wait time.Duration) {
	s.refuse(&protocol.ReplyError{
		ID: string(id), Code: protocol.CodeLimited, Message: message, Limit: limit, RetryAfterMs: wait.Milliseconds() + 1,
	})
}

// fit returns a limiter of that rate: l itself, which keeps what was used up, or a new one. nil: no limit.
func fit(l *rate.Limiter, perSecond, burst int) *rate.Limiter {
	switch {
	case perSecond <= 0:
		return nil
	case l == nil:
		return rate.NewLimiter(rate.Limit(perSecond), burst)
	case l.Limit() != rate.Limit(perSecond) || l.Burst() != burst:
		l.SetLimit(rate.Limit(perSecond))
		l.SetBurst(burst)
	}
	return l
}

// due is how long it takes until everything that was taken from l is paid for.
func due(l *rate.Limiter, now time.Time) time.Duration {
	if l == nil {
		return 0
	}
	return time.Duration((1 - l.TokensAt(now)) / float64(l.Limit()) * float64(time.Second))
}

// owe takes n from l, whether or not it has them.
func owe(l *rate.Limiter, now time.Time, n int) {
	if l == nil {
		return
	}
	for burst := l.Burst(); n > 0; n -= burst {
		l.ReserveN(now, min(n, burst))
	}
}
