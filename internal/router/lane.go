package router

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// lane carries the stored messages of one group: one call in flight, so that
// nothing is reordered, and what arrives meanwhile is the next batch. There is
// no timer: an idle lane sends at once.
type lane struct {
	// Immutable after New.
	router *Router
	group  keyspace.Group

	// inFlight is when the attempt under way began, in ns since the router was
	// made; 0 when there is none.
	inFlight atomic.Int64

	mu      sync.Mutex
	pending []*Message    // guarded by mu
	bytes   int           // guarded by mu; of pending
	trip    time.Duration // guarded by mu; smoothed length of a call
	busy    bool          // guarded by mu; a worker runs
	down    bool          // guarded by mu; Redis did not answer: refuse at once
	closed  bool          // guarded by mu; Run is about to return

	heard  string    // guarded by mu; the history line of the last pulse
	alive  time.Time // guarded by mu; when Redis last told the history that is known
	stale  bool      // guarded by mu; a pulse told another history, and nothing was sent since
	nudged bool      // guarded by mu; send a batch although it is empty

	// Owned by the worker.
	batch  []*Message
	again  []*Message // of it: what goes once more, and before everything else
	call   call
	out    connection.Batch
	line   string // the history under which recent was acknowledged
	recent recent
}

// put takes a message, or refuses it by setting its Result.
func (l *lane) put(m *Message) bool {
	cfg := &l.router.cfg
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		m.fail(protocol.CodeUnavailable, "gateway is stopping", time.Second)
		return false
	case l.down || l.suspect():
		l.router.counts.refusedUnavailable.Add(1)
		m.fail(protocol.CodeUnavailable, "redis does not answer", 2*cfg.Probe)
		return false
	case l.bytes+m.size() > cfg.LaneBytes || l.wait() > cfg.LaneWait:
		l.router.counts.refusedOverloaded.Add(1)
		m.fail(protocol.CodeOverloaded, "too many messages wait", cfg.LaneWait)
		return false
	}
	m.next, m.begins = time.Now(), false
	l.pending = append(l.pending, m)
	l.bytes += m.size()
	if !l.busy {
		l.busy = true
		l.router.running.Add(1)
		go l.work()
	}
	return true
}

// suspect reports whether the call in flight has been out for too long.
func (l *lane) suspect() bool {
	at := l.inFlight.Load()
	return at != 0 && l.router.clock()-at > int64(l.router.cfg.Suspect)
}

// wait estimates for how long a further message would be in the lane. mu is held.
func (l *lane) wait() time.Duration {
	if len(l.pending) == 0 {
		return 0
	}
	messages, _ := l.bounds()
	byAge := time.Since(l.pending[0].next)
	byCalls := time.Duration(len(l.pending)/messages) * l.trip
	return max(byAge, byCalls)
}

// bounds is what one call may carry now, messages and bytes. mu is held.
func (l *lane) bounds() (messages, bytes int) {
	cfg := &l.router.cfg
	if l.trip > cfg.SlowTrip {
		return 4 * cfg.BatchMessages, 2 * cfg.BatchBytes
	}
	return cfg.BatchMessages, cfg.BatchBytes
}

// full reports whether the lane would refuse a message as overloaded.
func (l *lane) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed && !l.down && (l.bytes > l.router.cfg.LaneBytes/2 || l.wait() > l.router.cfg.LaneWait/2)
}

// take moves the next batch out of pending; false when there is none, and then
// the worker must end.
func (l *lane) take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	messages, bytes := l.bounds()
	n, total := 0, 0
	for n < len(l.pending) && n < messages && (n == 0 || total+l.pending[n].carried() <= bytes) {
		total += l.pending[n].carried()
		l.bytes -= l.pending[n].size()
		n++
	}
	if n == 0 && !l.nudged {
		l.busy = false
		return false
	}
	l.nudged = false
	l.batch = append(l.batch[:0], l.pending[:n]...)
	rest := copy(l.pending, l.pending[n:])
	clear(l.pending[rest:])
	l.pending = l.pending[:rest]
	return true
}

// refuse answers everything that waits: it was never sent, so it is certainly
// not stored.
func (l *lane) refuse(out *connection.Batch) {
	l.mu.Lock()
	waiting := l.pending
	l.pending, l.bytes = nil, 0
	l.mu.Unlock()
	for _, m := range waiting {
		l.router.counts.refusedUnavailable.Add(1)
		m.fail(protocol.CodeUnavailable, "redis does not answer", 2*l.router.cfg.Probe)
		l.router.done(out, m)
	}
	out.Flush()
}

// work sends batches until there is nothing to send. When Redis doesn't answer
// it stays, to probe.
func (l *lane) work() {
	defer l.router.running.Done()
	for l.take() {
		l.inFlight.Store(l.router.clock())
		err := l.send()
		if err != nil {
			l.setDown(true) // before anybody hears of it
		}
		l.inFlight.Store(0)
		for _, m := range l.batch {
			l.router.done(&l.out, m)
		}
		l.out.Flush()
		clear(l.batch)
		l.putBack()
		if err != nil {
			l.probe()
		}
	}
}

// beginLogs decides about messages that would be the first to their address: those
// that may go again, the others are refused. To which addresses somebody has written
// only the script knows, and whether a sender may be the first only his gateway; so
// the first message to an address costs a second call, and all others nothing.
func (l *lane) beginLogs() {
	kept := l.batch[:0]
	for _, m := range l.batch {
		begun := func(before *Message) bool { return before.To == m.To }
		if m.lacks && (slices.ContainsFunc(l.again, begun) || l.mayBegin(m)) {
			l.again = append(l.again, m)
		} else {
			kept = append(kept, m)
		}
	}
	clear(l.batch[len(kept):])
	l.batch = kept
}

func (l *lane) mayBegin(m *Message) bool {
	var wait time.Duration
	if ask := l.router.cfg.MayBegin; ask != nil {
		wait = ask(m.From)
	}
	if wait > 0 {
		m.fail(protocol.CodeLimited, "too many new addresses", wait)
		m.Result.Err.Limit = protocol.LimitNewAddresses
	}
	m.begins = wait <= 0
	return m.begins
}

// putBack puts what goes again before everything that waits, so that the messages to
// an address stay in order: those behind it were sent back too, or come later.
func (l *lane) putBack() {
	if len(l.again) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.again {
		l.bytes += m.size()
	}
	l.pending = slices.Insert(l.pending, 0, l.again...)
	clear(l.again)
	l.again = l.again[:0]
}

// send carries the batch to Redis: the identical call, in order, at most
// Attempts times; when Redis tells another history, what it may have lost goes
// before. It returns nil when Redis answered.
func (l *lane) send() error {
	cfg := &l.router.cfg
	began := time.Now()
	var err error
	ambiguous := false // an attempt may have been executed
	tried := began
	for tries := 0; tries < cfg.Attempts; tries++ {
		l.pause(time.Duration(tries)*cfg.Attempt/10 - time.Since(tried))
		tried = time.Now()
		var line string
		line, err = l.attempt(l.batch, l.line, cfg.Attempt, cfg.WaitReplicas > 0)
		if errors.Is(err, errAnotherLine) {
			if err = l.heal(line); err == nil {
				tries--
				continue
			}
		}
		if err == nil {
			l.line = line
			l.beginLogs()
			l.settle()
			return nil
		}
		if !notExecuted(err) && !errors.Is(err, errAnotherLine) {
			ambiguous = true
		}
		if l.router.ctx.Err() != nil || time.Since(began) > time.Duration(cfg.Attempts)*cfg.Attempt {
			break
		}
		if ambiguous || transient(err) {
			continue
		}
		break // refused for good: asking again at once changes nothing
	}
	l.router.counts.failedCalls.Add(1)
	l.router.cfg.Log.Warn("send failed", "group", string(l.group), "messages", len(l.batch), "ambiguous", ambiguous, "err", err)
	for _, m := range l.batch {
		if ambiguous {
			m.fail(protocol.CodeUnknown, "outcome not known, repeat with the same id", 2*cfg.Probe)
		} else {
			m.fail(protocol.CodeUnavailable, "redis does not answer", 2*cfg.Probe)
		}
	}
	return err
}

// pause lets a moment pass before a repeat: a slot that moves, or a connection
// that is made anew, takes one.
func (l *lane) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.router.ctx.Done():
	}
}

// attempt makes one call for a batch and sets its results; when it waits for
// replicas that don't confirm, to unknown.
func (l *lane) attempt(batch []*Message, line string, within time.Duration, wait bool) (string, error) {
	ctx, cancel := context.WithTimeout(l.router.ctx, within)
	defer cancel()
	began := time.Now()
	l.call.build(l, batch, line)
	var reply any
	var err error
	confirmed := true
	if wait {
		reply, confirmed, err = l.call.runAndWait(ctx, l.router, l.group)
	} else {
		reply, err = l.call.run(ctx, l.router)
	}
	l.router.counts.calls.Add(1)
	if err != nil {
		return "", err
	}
	l.measure(time.Since(began))
	line, err = l.call.read(batch, line, reply)
	if err == nil && !confirmed {
		l.doubt(batch)
	}
	return line, err
}

// settle counts what became of the batch, and keeps what was acknowledged for as
// long as Redis might lose it.
func (l *lane) settle() {
	now := time.Now()
	for _, m := range l.batch {
		if err := m.Result.Err; err != nil {
			if err.Code == protocol.CodeConflict {
				l.router.counts.conflicts.Add(1)
			}
			continue
		}
		switch {
		case m.Result.Status == protocol.StatusRouted:
			l.router.counts.routed.Add(1)
		default:
			l.router.counts.stored.Add(1)
		}
		if l.router.cfg.HealFor > 0 {
			l.recent.add(m, now)
		}
	}
	l.mu.Lock()
	l.alive, l.stale = now, false
	l.mu.Unlock()
	early := l.recent.trim(now.Add(-l.router.cfg.HealFor), l.router.cfg.HealBytes)
	l.router.counts.unhealable.Add(uint64(early))
}

// measure smooths the length of a call over about eight of them.
func (l *lane) measure(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trip += (d - l.trip) / 8
}

// probe refuses everything until Redis executes an empty batch of this lane.
func (l *lane) probe() {
	cfg := &l.router.cfg
	l.setDown(true)
	defer l.setDown(false)
	tick := time.NewTicker(cfg.Probe)
	defer tick.Stop()
	for within := cfg.Attempt; ; within = min(2*within, cfg.ProbeWait) {
		l.refuse(&l.out)
		select {
		case <-l.router.ctx.Done():
			return
		case <-tick.C:
		}
		l.batch = l.batch[:0]
		if _, err := l.attempt(nil, "", within, false); err == nil {
			return
		}
	}
}

// lose takes an idle lane down: the first message should not have to find out
// that Redis is away. A busy one finds out by itself.
func (l *lane) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy || l.closed {
		return
	}
	l.busy, l.down = true, true
	l.router.running.Add(1)
	go func() {
		l.probe()
		l.work()
	}()
}

// nudge has an idle lane send an empty batch.
func (l *lane) nudge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy || l.closed {
		return
	}
	l.nudged, l.busy = true, true
	l.router.running.Add(1)
	go l.work()
}

func (l *lane) setDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}
