package router

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chatgate/internal/protocol"
)

// Whoever looks for a message that seems lost has it traced: for some seconds every
// gateway tells what becomes of a user's messages, or of one. While nobody does,
// that costs the load of a pointer at each place that would tell.

// traces are what is traced on this gateway.
type traces struct {
	active atomic.Pointer[[]*trace] // nil: nobody traces

	mu sync.Mutex // held by whoever replaces active
	// calledOff are the last questions that nobody waits for any more and that were
	// not active then. guarded by mu
	calledOff []traceID
}

// traceID says which question a trace answers.
type traceID struct {
	asker    protocol.GatewayID
	question uint64
}

// trace is one of them.
type trace struct {
	// Immutable.
	traceID
	user       protocol.UserID  // whose messages and connections; empty: it is about one id
	address    protocol.Address // of the user
	quotedUser string           // as in a frame
	id         string
	quotedID   string
	events     chan protocol.TraceEvent // never closed
	over       func()                   // ends it
	// Any goroutine.
	lost atomic.Uint64
}

const (
	// traceLongest bounds a trace, tracesAtOnce how many go on on one gateway.
	traceLongest = 60 * time.Second
	tracesAtOnce = 8
	// traceQueue is how many events wait for the next part of the answer. What comes
	// then is counted and not told: nothing waits for a trace.
	traceQueue = 1024
	// tracePart is how many events are in a part, traceEvery how often one is given.
	tracePart  = 128
	traceEvery = 100 * time.Millisecond
)

// add begins a trace; false: too many go on, or nobody waits for it any more.
func (x *traces) add(t *trace) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []*trace
	if p := x.active.Load(); p != nil {
		all = *p
	}
	if len(all) == tracesAtOnce || slices.Contains(x.calledOff, t.traceID) {
		return false
	}
	all = append(slices.Clone(all), t)
	x.active.Store(&all)
	return true
}

func (x *traces) remove(t *trace) {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(*x.active.Load()), func(other *trace) bool { return other == t })
	if len(all) == 0 {
		x.active.Store(nil)
		return
	}
	x.active.Store(&all)
}

// callOff ends the trace that was asked for by a question, also one that waits for a worker yet.
func (x *traces) callOff(id traceID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.active.Load(); p != nil {
		for _, t := range *p {
			if t.traceID == id {
				t.over()
				return
			}
		}
	}
	if x.calledOff = append(x.calledOff, id); len(x.calledOff) > questionsWait {
		x.calledOff = x.calledOff[1:]
	}
}

// tell gives an event to whoever traces, and never waits.
func (t *trace) tell(e protocol.TraceEvent) {
	select {
	case t.events <- e:
	default:
		t.lost.Add(1)
	}
}

// sent tells of a message of this gateway's senders.
func (x *traces) sent(kind protocol.TraceKind, m *Message) {
	p := x.active.Load()
	if p == nil {
		return
	}
	for _, t := range *p {
		if t.user != "" && t.user != m.From && t.address != m.To || t.id != "" && t.id != string(m.ID) {
			continue
		}
		e := protocol.TraceEvent{At: time.Now().UnixMilli(), Event: kind, ID: string(m.ID), From: m.From}
		named(&e, m.To)
		if kind == protocol.TraceAnswered {
			if r := &m.Result; r.Err != nil {
				e.Outcome = string(r.Err.Code)
			} else {
				e.Outcome, e.Epoch, e.Offset, e.Connections = string(r.Status), r.Epoch, r.Offset, r.Devices
			}
		}
		t.tell(e)
	}
}

func named(e *protocol.TraceEvent, a protocol.Address) {
	if a.Kind() == 'u' {
		e.To = protocol.UserID(a.Name())
	} else {
		e.Room = protocol.RoomID(a.Name())
	}
}

// arrived tells of a message for the members of a feed.
func (x *traces) arrived(kind protocol.TraceKind, outcome string, a protocol.Address, f *feed, epoch string, offset uint64, frame string, to int) {
	p := x.active.Load()
	if p == nil {
		return
	}
	id, from := protocol.MessageNames(frame)
	for _, t := range *p {
		if t.id != "" && t.quotedID != id || t.user != "" && t.address != a && t.quotedUser != from && !f.has(t.user) {
			continue
		}
		e := protocol.TraceEvent{
			At: time.Now().UnixMilli(), Event: kind, Outcome: outcome, ID: protocol.Unquoted(id), From: protocol.UserID(protocol.Unquoted(from)),
			Epoch: epoch, Offset: offset, Connections: to,
		}
		named(&e, a)
		t.tell(e)
	}
}

// has reports whether a user is among the members.
func (f *feed) has(u protocol.UserID) bool {
	return f != nil && slices.ContainsFunc(f.members, func(m member) bool { return m.conn.User() == u })
}

// TraceConnection tells whoever traces the user what happened to a connection.
func (r *Router) TraceConnection(kind protocol.TraceKind, u protocol.UserID, conn protocol.ConnID, room protocol.RoomID, outcome string) {
	p := r.traces.active.Load()
	if p == nil {
		return
	}
	for _, t := range *p {
		if t.user != "" && t.user == u {
			t.tell(protocol.TraceEvent{At: time.Now().UnixMilli(), Event: kind, Outcome: outcome, Room: room, User: u, Conn: conn})
		}
	}
}

// answerTrace answers a question about what happens from now on. It takes as long as the question says, so it isn't a worker's.
func (r *Router) answerTrace(a *Asked) {
	var q protocol.TraceQuestion
	if err := json.Unmarshal([]byte(a.Body), &q); err != nil || (q.User == "") == (q.ID == "") || q.Ms <= 0 {
		_ = a.Answer(r.ctx, protocol.AnswerRefused, []byte("not the body of "+string(a.Verb)))
		return
	}
	ctx, over := context.WithCancel(r.ctx)
	t := &trace{user: q.User, id: string(q.ID), events: make(chan protocol.TraceEvent, traceQueue), traceID: traceID{a.Asker, a.ID}, over: over}
	if q.User != "" {
		t.address, t.quotedUser = protocol.UserAddress(q.User), protocol.Quoted(string(q.User))
	} else {
		t.quotedID = protocol.Quoted(t.id)
	}
	if !r.traces.add(t) {
		over()
		_ = a.Answer(r.ctx, protocol.AnswerRefused, []byte("too many traces go on"))
		return
	}
	if !r.spawn(func() {
		defer r.traces.remove(t)
		defer over()
		t.run(ctx, a, min(time.Duration(q.Ms)*time.Millisecond, traceLongest))
	}) {
		r.traces.remove(t)
		over()
	}
}

// run gives the parts of the answer, the first at once: then the asker knows that this gateway tells.
func (t *trace) run(ctx context.Context, a *Asked, d time.Duration) {
	tick := time.NewTicker(traceEvery)
	defer tick.Stop()
	end := time.NewTimer(d)
	defer end.Stop()
	_ = a.Part(ctx, []byte("{}"))
	for {
		select {
		case <-tick.C:
			if own := a.router.cfg.Gateway; a.Asker != own && a.router.registry.IsDead(a.Asker) {
				return // nobody reads it any more
			}
			for len(t.events) > 0 || t.lost.Load() > 0 {
				if a.Part(ctx, t.part()) != nil {
					break // its number tells the asker
				}
			}
		case <-end.C:
			_ = a.Answer(ctx, protocol.AnswerDone, t.part())
			return
		case <-ctx.Done():
			_ = a.Answer(ctx, protocol.AnswerDone, t.part())
			return
		}
	}
}

// part is what waits, as much as a part may hold.
func (t *trace) part() []byte {
	p := protocol.TracePart{Lost: t.lost.Swap(0)}
	for len(p.Events) < tracePart {
		select {
		case e := <-t.events:
			p.Events = append(p.Events, e)
			continue
		default:
		}
		break
	}
	body, err := json.Marshal(p)
	if err != nil {
		return []byte("{}") // there is nothing in it that can't be written
	}
	return body
}
