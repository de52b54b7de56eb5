package router

import (
	"slices"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// Whoever watches a user is told his state once, and then what is newer. States
// come by the channel, and are read from Redis where the channel can't be believed:
// after a lost publish, and in another epoch than the known one. The versions of
// one epoch have an order; which of two epochs is the later one only Redis knows,
// since a word may be late.

// watched is one user whom connections here watch. It belongs to its group's
// deliverer.
type watched struct {
	// now is the newest state known; nil before the first was read.
	now     *protocol.UserState
	watches []*Watch
	// moved says that now has changed since the read under way began, which may
	// therefore bring an older state.
	moved bool
	// missing counts the reads in a row that found no state of a user who was
	// online: Redis has lost it, and his gateway may be about to enter him again.
	missing int
}

// missingReads is for how many pulses a user whose state Redis lost may still be
// entered again, before he is told to be offline.
const missingReads = 10

// Watch is one connection's part in the presence of a user, from Collect to
// Unwatch.
type Watch struct {
	// Immutable after NewWatch.
	user protocol.UserID
	conn *connection.Connection

	// Owned by the deliverer.
	at      int                 // the place among the user's watches
	entered bool                // it has such a place
	told    *protocol.UserState // what its client knows; nil: nothing yet
	waiting bool                // an answer is on its way, and nothing may overtake it
}

// NewWatch makes a Watch, which nobody knows of before Collect.
func NewWatch(u protocol.UserID, c *connection.Connection) *Watch { return &Watch{user: u, conn: c} }

// User is who is watched.
func (w *Watch) User() protocol.UserID { return w.user }

// Collect holds back what comes for these watches, and enters those that are new.
// It must come before this gateway is entered in the registry as a holder of them,
// and before their states are read: what was told by then is not newer than what
// is read. Each is owed a Tell, and in the end an Unwatch.
func (r *Router) Collect(watches ...*Watch) { r.tellGroups(commandCollect, watches, nil) }

// Tell says that clients have been told these states, in the order of the watches;
// nil: nothing. From now on they are told what is newer.
func (r *Router) Tell(watches []*Watch, states []protocol.UserState) {
	r.tellGroups(commandTell, watches, states)
}

// Unwatch ends watches. When it returns nothing more is told.
func (r *Router) Unwatch(watches ...*Watch) { r.tellGroups(commandUnwatch, watches, nil) }

// tellGroups gives each group the command for its watches, and waits until they
// are done.
func (r *Router) tellGroups(kind commandKind, watches []*Watch, states []protocol.UserState) {
	parts := make(map[*deliverer]*command)
	for i, w := range watches {
		d := r.deliverer(protocol.WatchAddress(w.user))
		part := parts[d]
		if part == nil {
			part = &command{kind: kind, answer: make(chan bool, 1)}
			parts[d] = part
		}
		part.watches = append(part.watches, w)
		if states != nil {
			part.states = append(part.states, states[i])
		}
	}
	for d, part := range parts {
		select {
		case d.commands <- *part:
		case <-d.stopped:
		}
	}
	for d, part := range parts {
		select {
		case <-part.answer:
		case <-d.stopped:
		}
	}
}

func (d *deliverer) collect(watches []*Watch) {
	d.publish() // what is told already must not come behind the answer
	for _, w := range watches {
		w.waiting = true
		if w.entered {
			continue
		}
		x := d.watched[w.user]
		if x == nil {
			x = &watched{}
			d.watched[w.user] = x
		}
		w.entered, w.at = true, len(x.watches)
		x.watches = append(x.watches, w)
		d.router.counts.watches.Add(1)
	}
}

// tell notes what watches were told, which may be news to the others as well.
func (d *deliverer) tell(watches []*Watch, states []protocol.UserState) {
	for i, w := range watches {
		if w.waiting = false; !w.entered {
			continue
		}
		x := d.watched[w.user]
		if states != nil {
			w.told = share(x.now, states[i])
			if x.now == nil || w.told.Epoch == x.now.Epoch && w.told.N > x.now.N {
				d.see(x, w.told)
			}
		}
		switch {
		case w.told == nil: // its Collect is being undone
		case w.told.Epoch == x.now.Epoch:
			d.inform(w, x.now)
		default:
			d.doubt(w.user)
		}
	}
}

// share returns the known state where another is the same: many watch one user.
func share(known *protocol.UserState, s protocol.UserState) *protocol.UserState {
	if known != nil && known.Epoch == s.Epoch && known.N == s.N {
		return known
	}
	return &s
}

func (d *deliverer) unwatch(watches []*Watch) {
	d.publish()
	for _, w := range watches {
		if !w.entered {
			continue
		}
		w.entered = false
		x := d.watched[w.user]
		last := len(x.watches) - 1
		x.watches[w.at] = x.watches[last]
		x.watches[w.at].at = w.at
		x.watches[last] = nil
		if x.watches = x.watches[:last]; last == 0 {
			delete(d.watched, w.user)
			delete(d.doubted, w.user)
			delete(d.missing, w.user)
		}
		d.router.counts.watches.Add(-1)
	}
}

// hear takes a state that came by the channel.
func (d *deliverer) hear(s protocol.UserState) {
	x := d.watched[s.User]
	switch {
	case x == nil:
		d.router.counts.unheld.Add(1)
	case x.now == nil || s.Epoch != x.now.Epoch:
		d.doubt(x.watches[0].user)
	case s.N <= x.now.N:
		d.router.counts.duplicates.Add(1)
	default:
		s.User, s.Epoch = x.now.User, x.now.Epoch // they alias the envelope
		d.see(x, &s)
	}
}

// settle takes a state that was read.
func (d *deliverer) settle(s protocol.UserState) {
	x := d.watched[s.User]
	if x == nil {
		return
	}
	newer := x.now == nil || s.Epoch == x.now.Epoch && s.N >= x.now.N
	switch {
	case newer:
		d.see(x, share(x.now, s))
	case x.moved:
		d.doubt(x.now.User) // what was read may be older than what came meanwhile
	case s.Epoch == "" && x.now.State == protocol.StateOnline && x.missing < missingReads:
		x.missing++
		d.missing[x.now.User] = struct{}{} // the next pulse reads again
	default:
		d.see(x, &s) // another epoch, or a failover forgot the end of this one
	}
}

// see makes a state the newest known, and tells those who watch and don't know it.
func (d *deliverer) see(x *watched, s *protocol.UserState) {
	x.now, x.moved, x.missing = s, true, 0
	for _, w := range x.watches {
		if !w.waiting && w.told != nil {
			d.inform(w, s)
		}
	}
}

// news is a state that a connection is told before the next flush.
type news struct {
	watch *Watch
	state *protocol.UserState
	back  bool // its version would be a step back, and is not told
}

// inform tells a client what is newer than what it knows, or true all the same.
func (d *deliverer) inform(w *Watch, s *protocol.UserState) {
	knew := w.told
	w.told = s
	n := news{watch: w, state: s}
	switch {
	case knew.Epoch == s.Epoch && knew.N == s.N:
		return
	case s.Epoch == "" || knew.Epoch == s.Epoch && s.N < knew.N:
		// Redis has forgotten what the client was told. The version that holds now
		// it may have had before.
		if s.State == knew.State {
			return
		}
		n.back = true
	}
	d.news = append(d.news, n)
}

// publish appends what was noted in news: one frame for each connection, as long
// as it has each user once. What many are told alike is built once.
func (d *deliverer) publish() {
	if len(d.news) == 0 {
		return
	}
	d.router.counts.told.Add(uint64(len(d.news)))
	if alike(d.news) {
		d.wire = appendNews(d.wire[:0], d.news[:1])
		for i := range d.news {
			d.out.AppendFrame(d.news[i].watch.conn, d.wire)
		}
	} else {
		for _, some := range byConnection(d.news) {
			d.wire = appendNews(d.wire[:0], some)
			d.out.AppendFrame(some[0].watch.conn, d.wire)
		}
	}
	clear(d.news)
	d.news = d.news[:0]
}

// alike reports whether all news are of one state, which then has one word for
// each connection.
func alike(all []news) bool {
	for i := range all {
		if all[i].state != all[0].state || all[i].back != all[0].back {
			return false
		}
	}
	return true
}

// newsPerFrame bounds a frame, whatever the users are called.
const newsPerFrame = 64

// byConnection splits news into frames, which keep the order of each connection.
func byConnection(all []news) (frames [][]news) {
	at := make(map[*connection.Connection]int) // its last frame
	for i := range all {
		c := all[i].watch.conn
		n, ok := at[c]
		// A second change of one user is in the next frame: none is left out.
		if !ok || len(frames[n]) == newsPerFrame || slices.ContainsFunc(frames[n], func(x news) bool { return x.watch == all[i].watch }) {
			n = len(frames)
			at[c], frames = n, append(frames, nil)
		}
		frames[n] = append(frames[n], all[i])
	}
	return frames
}

// appendNews builds the WebSocket frame of a push.
func appendNews(dst []byte, some []news) []byte {
	users := make([]protocol.UserPresence, 0, len(some))
	for i := range some {
		s := some[i].state
		u := protocol.UserPresence{User: s.User, State: s.State, LastSeen: s.LastSeen()}
		if !some[i].back {
			u.Version = s.Version()
		}
		users = append(users, u)
	}
	frame := protocol.AppendPresence(nil, nil, users)
	return append(connection.AppendTextHeader(dst, len(frame)), frame...)
}

// doubt has the state of a user read.
func (d *deliverer) doubt(u protocol.UserID) {
	d.doubted[u] = struct{}{}
	d.readStates()
}

// doubtAll has the states of all watched users read.
func (d *deliverer) doubtAll() {
	for u, x := range d.watched {
		x.missing = 0
		d.doubted[u] = struct{}{}
	}
	d.readStates()
}

// readMissing looks again after those whose state Redis has lost.
func (d *deliverer) readMissing() {
	for u := range d.missing {
		d.doubted[u] = struct{}{}
		delete(d.missing, u)
	}
	d.readStates()
}

// readStates reads some of the states in doubt, one read in flight; its answer
// asks for the next.
func (d *deliverer) readStates() {
	if d.reading || len(d.doubted) == 0 {
		return
	}
	users := make([]protocol.UserID, 0, min(len(d.doubted), checkBatch))
	for u := range d.doubted {
		if len(users) == checkBatch {
			break
		}
		d.watched[u].moved = false
		users = append(users, u)
		delete(d.doubted, u)
	}
	d.reading = true
	d.router.spawn(func() {
		states := d.router.statesOf(users)
		select {
		case d.commands <- command{kind: commandStates, states: states}:
		case <-d.stopped:
		}
	})
}

// statesOf reads states until Redis answers, or the router ends.
func (r *Router) statesOf(users []protocol.UserID) []protocol.UserState {
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-r.ctx.Done():
		return nil
	}
	for {
		r.counts.stateReads.Add(1)
		if states, err := r.registry.States(r.ctx, users...); err == nil {
			return states
		}
		if !r.rest(r.cfg.Probe) {
			return nil
		}
	}
}

// states takes what was read. The next read begins behind all of it, or what is new about a user would be forgotten before his older state
// is judged by it.
func (d *deliverer) states(states []protocol.UserState) {
	for i := range states {
		d.settle(states[i])
	}
	d.reading = false
	d.readStates()
}
