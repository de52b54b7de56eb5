package router

import (
	"strings"
	"sync/atomic"

	"chatgate/internal/connection"
	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

// feed is one address on this gateway: its local connections and the last
// position that was given to them. It belongs to its group's deliverer.
type feed struct {
	// epoch and offset are the position all live members have; epoch is empty
	// before the first went live.
	epoch   string
	offset  uint64
	members []member
	// repairing is not nil while the log is read for the live members: what
	// arrives meanwhile waits here.
	repairing *waiting
}

// member is one connection of a feed. While it catches up (waiting is not nil)
// live messages are kept for it, until what it read from the log reaches them.
type member struct {
	conn    *connection.Connection // of stay: fan-out looks no further
	stay    *Stay
	waiting *waiting
	// after is the offset this member started behind, when the feed was not there
	// yet: what is not above it was stored before the member came. 0: passed.
	after uint64
}

// Stay is one connection's part in an address, from Attach to Detach. A connection
// that leaves a room and joins it again stays twice, and what still reads the log
// for the first knows that it is over.
type Stay struct {
	// Immutable after Attach.
	address protocol.Address
	conn    *connection.Connection

	// Any goroutine.
	ended    atomic.Bool
	followed atomic.Bool // the client was told that it is there

	// Owned by the deliverer.
	at int // the place among the feed's members
}

// Address is what the connection has a part in.
func (s *Stay) Address() protocol.Address { return s.address }

// append queues a frame while the stay and its connection last.
func (s *Stay) append(ws []byte) bool { return !s.ended.Load() && s.conn.AppendFrame(ws) }

// over reports whether nothing more can be delivered.
func (s *Stay) over() bool {
	_, closing := s.conn.Cause()
	return closing || s.ended.Load()
}

// waiting holds messages that arrive while the log is read, within bounds. What
// is over them is dropped: it is in the log, and reading goes on.
type waiting struct {
	bytes    int
	overflow bool
	messages []waitingMessage
}

type waitingMessage struct {
	epoch  string
	offset uint64
	frame  string
}

// keep stores a message, unless it is ephemeral: those are for who is live.
func (w *waiting) keep(rec *protocol.Record, limit int) {
	if rec.Epoch == "" || w.overflow {
		return
	}
	if w.bytes += len(rec.Frame); w.bytes > limit {
		w.drop()
		return
	}
	// The record aliases a whole envelope; what waits must not keep it alive.
	w.messages = append(w.messages, waitingMessage{
		epoch: strings.Clone(rec.Epoch), offset: rec.Offset, frame: strings.Clone(rec.Frame),
	})
}

// drop forgets what waits: reading goes on until it has it.
func (w *waiting) drop() { w.overflow, w.messages = true, nil }

// joins reports whether what waits goes on from a position without a hole, and
// returns what of it is above.
func (w *waiting) joins(at protocol.Position) ([]waitingMessage, bool) {
	if w.overflow {
		return nil, false
	}
	rest := w.messages
	for len(rest) > 0 && rest[0].epoch == at.Epoch && rest[0].offset <= at.Offset {
		rest = rest[1:]
	}
	next := at.Offset + 1
	for i := range rest {
		if rest[i].epoch != at.Epoch || rest[i].offset != next {
			return nil, false
		}
		next++
	}
	return rest, true
}

// wireBytes bounds what messages take in an outbox.
func wireBytes(messages []waitingMessage) (n int) {
	for i := range messages {
		n += len(messages[i].frame) + wireOverhead
	}
	return n
}

// find returns the member of a stay; nil: it has left.
func (f *feed) find(s *Stay) *member {
	if s.at < len(f.members) && f.members[s.at].stay == s {
		return &f.members[s.at]
	}
	return nil
}

// add makes a stay a member that waits.
func (f *feed) add(s *Stay) {
	s.at = len(f.members)
	f.members = append(f.members, member{conn: s.conn, stay: s, waiting: &waiting{}})
}

// remove takes a stay out. The order of members means nothing.
func (f *feed) remove(s *Stay) {
	if f.find(s) == nil {
		return
	}
	last := len(f.members) - 1
	f.members[s.at] = f.members[last]
	f.members[s.at].stay.at = s.at
	f.members[last] = member{}
	f.members = f.members[:last]
}

// lives reports whether the feed has a live member.
func (f *feed) lives() bool {
	for i := range f.members {
		if f.members[i].waiting == nil {
			return true
		}
	}
	return false
}

// distrust has all who wait read their log again before they go live.
func (f *feed) distrust() {
	for i := range f.members {
		if w := f.members[i].waiting; w != nil {
			w.drop()
		}
	}
}

func (f *feed) position() protocol.Position {
	return protocol.Position{Epoch: f.epoch, Offset: f.offset}
}

// Attach begins to keep messages of an address for a connection. It must come
// before this gateway is entered in the registry as its holder, so that nothing
// published to it is missed. Nothing is delivered before Follow. It is owed a Detach.
func (r *Router) Attach(a protocol.Address, c *connection.Connection) *Stay {
	s := &Stay{address: a, conn: c}
	r.command(a, command{kind: commandAttach, address: a, stay: s})
	return s
}

// Follow gives an attached connection its messages: first the frames (its
// `registered`, say), then everything above the position, then each as it arrives.
// Up to top, which the log had when this gateway was entered in the registry,
// everything comes from the log; above, from the log where it must. Follow returns
// when the frames are in the outbox, so answers to later frames come behind them.
func (r *Router) Follow(s *Stay, at protocol.Position, top uint64, frames ...[]byte) {
	for _, f := range frames {
		s.conn.Append(f)
	}
	s.followed.Store(true)
	if at.Offset < top || !r.live(s, at) {
		r.catchUp(s, at)
	}
	s.conn.Flush()
}

// live makes a member live at a position; false: there is more between it and
// what arrives. It is true also for one that has left.
func (r *Router) live(s *Stay, at protocol.Position) bool {
	return r.ask(s.address, command{kind: commandLive, address: s.address, stay: s, at: at})
}

// Detach ends a connection's part in an address. The frame, if there is one, comes
// behind everything that was delivered live.
func (r *Router) Detach(s *Stay, frame []byte) {
	s.ended.Store(true)
	r.command(s.address, command{kind: commandDetach, address: s.address, stay: s, frame: frame})
}

// Pulsed tells what Redis answered to a pulse of a group: the channel's number,
// its history line, and how many subscribers heard the pulse; -1: it doesn't say.
func (r *Router) Pulsed(group int, number uint64, line string, heard int) {
	r.lanes.all[group].hear(line)
	d := r.deliverers[group]
	select {
	case d.commands <- command{kind: commandPulse, number: number, line: line, heard: heard}:
	case <-d.stopped:
	}
}

// Stands tells where the log of an address stood a moment ago: a feed that is
// behind reads it. Of a watch it tells that changes may have gone to nobody.
func (r *Router) Stands(a protocol.Address, at protocol.Position) {
	r.command(a, command{kind: commandStands, address: a, at: at})
}

// Silent tells that Redis did not answer a pulse of a group: its lane refuses at
// once, and probes until Redis is back. On Cluster other groups may be away with
// it, so the idle lanes find out now rather than with the first message.
func (r *Router) Silent(group int) {
	r.lanes.all[group].lose()
	now, last := r.clock(), r.nudged.Load()
	if last != 0 && now-last < int64(r.cfg.Suspect) || !r.nudged.CompareAndSwap(last, now) {
		return
	}
	for _, l := range r.lanes.all {
		l.nudge()
	}
}

func (r *Router) deliverer(a protocol.Address) *deliverer {
	return r.deliverers[r.cfg.Layout.GroupIndex(a)]
}

func (r *Router) command(a protocol.Address, cmd command) {
	d := r.deliverer(a)
	select {
	case d.commands <- cmd:
	case <-d.stopped:
	}
}

// ask is command with an answer; true also when the deliverer has stopped, since
// then there is nothing left to do.
func (r *Router) ask(a protocol.Address, cmd command) bool {
	cmd.answer = make(chan bool, 1)
	r.command(a, cmd)
	select {
	case ok := <-cmd.answer:
		return ok
	case <-r.deliverer(a).stopped:
		return true
	}
}

type commandKind uint8

const (
	commandAttach commandKind = iota
	commandLive
	commandDetach
	commandRepair
	commandHeads
	commandStands
	commandPulse
	commandCheck
	commandCollect
	commandTell
	commandUnwatch
	commandStates
)

// command changes feeds, in order with what is delivered.
type command struct {
	kind    commandKind
	address protocol.Address
	stay    *Stay  // of commandAttach, commandLive and commandDetach
	frame   []byte // of commandDetach; nil: none
	at      protocol.Position
	answer  chan bool // capacity 1; of commandLive, commandRepair and those with watches

	page      *history.Page // of commandRepair: what was read above at
	repairing *waiting      // of commandRepair
	next      *protocol.Position

	addresses []protocol.Address // of commandHeads
	heads     []history.Log

	number uint64 // of commandPulse
	line   string
	heard  int

	watches []*Watch             // of commandCollect, commandTell and commandUnwatch
	states  []protocol.UserState // of commandTell and commandStates
}

func (d *deliverer) do(cmd command) {
	f := d.feeds[cmd.address]
	switch cmd.kind {
	case commandAttach:
		if f == nil {
			f = &feed{}
			d.feeds[cmd.address] = f
		}
		f.add(cmd.stay)
	case commandLive:
		cmd.answer <- d.live(f, cmd)
	case commandDetach:
		d.detach(f, cmd)
	case commandRepair:
		cmd.answer <- d.repaired(f, cmd)
	case commandHeads:
		d.compare(cmd.addresses, cmd.heads)
	case commandStands:
		d.reach(cmd.address, cmd.at)
	case commandPulse:
		d.pulse(cmd.number, cmd.line)
		d.listen(cmd.heard)
	case commandCheck:
		d.check()
	case commandCollect:
		d.collect(cmd.watches)
		cmd.answer <- true
	case commandTell:
		d.tell(cmd.watches, cmd.states)
		cmd.answer <- true
	case commandUnwatch:
		d.unwatch(cmd.watches)
		cmd.answer <- true
	case commandStates:
		d.states(cmd.states)
	}
}

func (d *deliverer) detach(f *feed, cmd command) {
	if f != nil {
		f.remove(cmd.stay)
		if len(f.members) == 0 {
			delete(d.feeds, cmd.address)
		}
	}
	if cmd.frame != nil {
		d.out.Append(cmd.stay.conn, cmd.frame)
	}
}

// live makes a member live when what waits for it goes on from its position
// without a hole. It answers true also when there is nothing left to do for it.
func (d *deliverer) live(f *feed, cmd command) bool {
	if f == nil {
		return true
	}
	m := f.find(cmd.stay)
	if m == nil || m.waiting == nil {
		return true
	}
	rest, ok := m.waiting.joins(cmd.at)
	if !ok {
		// A hole, another epoch, or too much: all of it is in the log, where
		// reading goes on.
		m.waiting = &waiting{}
		return false
	}
	at := protocol.Position{Epoch: cmd.at.Epoch, Offset: cmd.at.Offset + uint64(len(rest))}
	if !f.lives() {
		f.epoch, f.offset, f.repairing = at.Epoch, at.Offset, nil
	} else if f.epoch != at.Epoch {
		// One of the two has not heard of a roll yet.
		d.repair(cmd.address, f)
		return false
	} else if f.offset > at.Offset {
		return false // the others have more, from the log
	}
	if len(rest) > 0 && !m.conn.Takes(len(rest), wireBytes(rest)) {
		return false // it would be a burst: the log has it at the client's pace
	}
	if f.offset < at.Offset {
		m.after = at.Offset
	}
	m.waiting = nil
	for i := range rest {
		d.out.AppendFrame(m.conn, d.frame(rest[i].epoch, rest[i].offset, rest[i].frame))
		d.router.counts.delivered.Add(1)
	}
	return true
}
