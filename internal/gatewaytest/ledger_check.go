package gatewaytest

import (
	"slices"
	"time"
)

// Compare compares what people wrote down.
//
// A fault is listed under the promise it breaks (docs/delivery.md), once for each message and reader.
func Compare(records []Record) *Verdict { return compare(records, false) }

func compare(records []Record, forgetful bool) *Verdict {
	c := checker{
		v: newVerdict(), forgetful: forgetful, letters: make(map[letterKey]*Letter), names: make(map[string]bool), due: make(map[string][]*Letter),
		at: make(map[string]map[Position]letterKey), places: make(map[string]map[letterKey][]Position),
	}
	for i := range records {
		r := &records[i]
		c.names[r.Name] = true
		c.v.Ends.add(r.Ends)
		if r.Gone != nil {
			c.v.fault(Dismissed, "%s: %v", label(r.Name, r.Device), r.Gone)
		}
		for j := range r.Sent {
			m := &r.Sent[j]
			c.letters[letterKey{r.Name, m.ID}] = m
			c.due[m.To] = append(c.due[m.To], m)
			if m.Copy && m.To != m.From { // what one writes to oneself is its own copy
				c.due[m.From] = append(c.due[m.From], m)
			}
			c.count(m)
		}
	}
	// Where everybody got what is known before it is asked who is missing what: that of a copy nobody is told by an ack.
	var readings []*reading
	for i := range records {
		r := &records[i]
		readings = append(readings, c.read(r, ""))
		for _, room := range r.Rooms {
			readings = append(readings, c.read(r, room))
		}
	}
	for _, rd := range readings {
		for _, m := range c.due[rd.address] {
			rd.settle(m)
		}
	}
	for address, letters := range c.due {
		c.conflicts(address, letters)
	}
	c.v.measure()
	return c.v
}

type checker struct {
	v *Verdict
	// forgetful: see Ledger
	forgetful bool
	letters   map[letterKey]*Letter
	names     map[string]bool
	due       map[string][]*Letter                // by address: what was sent there, and what its owner has a copy of
	at        map[string]map[Position]letterKey   // by address: what is at each position, whoever was told so
	places    map[string]map[letterKey][]Position // by address: where readers got it
}

// put notes what is at a position of a log; another than is known there is a fault.
func (c *checker) put(address string, pos Position, key letterKey, how string) {
	if c.at[address] == nil {
		c.at[address] = make(map[Position]letterKey)
	}
	if other, taken := c.at[address][pos]; taken && other != key {
		c.v.fault(TwoAtOnePosition, "%s of %s and %s of %s are both at %v of %s: %s", other.id, other.from, key.id, key.from, pos, address, how)
	}
	c.at[address][pos] = key
}

// count adds up what the sender of a letter knows.
func (c *checker) count(m *Letter) {
	c.v.Sent++
	c.v.Tries += len(m.Tries)
	for _, e := range m.Refusals {
		c.v.Errors[e.Code]++
		c.v.refusals[e.Code] = append(c.v.refusals[e.Code], e.After)
	}
	if len(m.Acks) == 0 {
		return
	}
	c.v.Acked++
	c.v.Statuses[m.Acks[0].Status]++
	for _, a := range m.Acks {
		c.v.ackTimes = append(c.v.ackTimes, a.At)
	}
}

// reading is what one person received of one log, after the rules for clients.
type reading struct {
	checker *checker
	address string // of the log
	name    string // of the reader, and of the room when it is one
	shown   map[letterKey]time.Time
	places  map[letterKey][]Heard // each position at which a letter came
	gaps    []*Heard
	epochs  map[string]bool // epochs this person was ever told of
	first   Position        // where its reading began
	since   time.Time       // and when
}

// read checks what one person received of a log: the own one, or that of a room.
func (c *checker) read(r *Record, room string) *reading {
	rd := &reading{
		checker: c, address: r.Name, name: label(r.Name, r.Device), shown: make(map[letterKey]time.Time),
		places: make(map[letterKey][]Heard), epochs: make(map[string]bool),
	}
	gaps := c.v.Gaps
	if room != "" {
		rd.address, gaps = roomPrefix+room, c.v.RoomGaps
		rd.name += " in " + rd.address
	}
	if c.places[rd.address] == nil {
		c.places[rd.address] = make(map[letterKey][]Position)
	}
	in := inbox{byCursor: r.ByCursor}
	order := make(map[way]int)
	for i := range r.Heard {
		h := &r.Heard[i]
		if h.Room != room {
			continue
		}
		if !in.known {
			rd.first, rd.since = h.Pos, h.At
		}
		rd.epochs[h.Pos.Epoch] = true
		became, complaint := in.take(h)
		if complaint != "" {
			c.v.fault(HoleNotAnnounced, "%s: %s, connection %d at %s", rd.name, complaint, h.Conn, clock(h.At))
		}
		switch h.Type {
		case "gap":
			rd.gaps = append(rd.gaps, h)
			gaps[h.Reason]++
		case "message":
			c.v.Received++
			c.put(rd.address, h.Pos, letterKey{h.From, h.ID}, rd.name+" got it")
			rd.message(h, became)
			if became == shown {
				rd.order(h, order)
			}
		}
	}
	return rd
}

// message checks one message as it came.
func (rd *reading) message(h *Heard, became fate) {
	v, key := rd.checker.v, letterKey{h.From, h.ID}
	if became == repeated {
		v.Repeated++
		return
	}
	before := rd.places[key]
	rd.places[key] = append(before, *h)
	rd.checker.places[rd.address][key] = append(rd.checker.places[rd.address][key], h.Pos)
	switch became {
	case old:
		v.fault(RawDuplicate, "%s got %v again, on connection %d at %s: %s of %s", rd.name, h.Pos, h.Conn, clock(h.At), h.ID, h.From)
		return
	case again:
		if last := before[len(before)-1]; !rd.rolled(last.At, h.At) {
			v.fault(ShownTwice, "%s got %s of %s at %v and at %v, and no gap lay between", rd.name, h.ID, h.From, last.Pos, h.Pos)
		} else {
			v.Again++
		}
		return
	}
	v.Shown++
	if h.Own {
		v.Copies++
	}
	rd.shown[key] = h.At
	m := rd.checker.letters[key]
	switch {
	case m == nil && rd.checker.names[h.From]:
		v.fault(NeverSent, "%s got %s of %s, who never sent it", rd.name, h.ID, h.From)
	case m == nil:
		v.fault(NeverSent, "%s got %s of %s, whom nobody knows", rd.name, h.ID, h.From)
	case m.Content != h.Content || m.To != h.To || !rd.isDue(m) || h.Own != rd.isCopy(m):
		v.fault(Changed, "%s got %s of %s as %.40s to %s (own: %v), sent was %.40s to %s (copy: %v)", rd.name, h.ID, h.From, h.Content, h.To, h.Own,
			m.Content, m.To, m.Copy)
	}
}

// isDue reports whether a letter belongs into this log, isCopy whether it does because its sender keeps a copy there.
func (rd *reading) isDue(m *Letter) bool  { return m.To == rd.address || rd.isCopy(m) }
func (rd *reading) isCopy(m *Letter) bool { return m.Copy && m.From == rd.address }

// rolled reports whether this person was told of another history between two moments, the later one included.
func (rd *reading) rolled(after, until time.Time) bool {
	return slices.ContainsFunc(rd.gaps, func(g *Heard) bool { return g.rolls() && !g.At.Before(after) && !g.At.After(until) })
}

// way is one connection of one sender, and one address: what goes there arrives in the order sent. So do the copies of it.
type way struct {
	from, device string
	conn         int
	to           string
}

// order checks that what was sent once, and never refused, is shown in the order in which one connection sent it.
func (rd *reading) order(h *Heard, last map[way]int) {
	m := rd.checker.letters[letterKey{h.From, h.ID}]
	if m == nil || len(m.Tries) != 1 || len(m.Refusals) > 0 {
		return
	}
	w := way{h.From, m.Device, m.Tries[0].Conn, m.To}
	if m.N < last[w] {
		rd.checker.v.fault(OutOfOrder, "%s was shown %s of %s behind message %d of the same connection", rd.name, m.ID, h.From, last[w])
	}
	last[w] = max(last[w], m.N)
}

// settle compares what became of a letter with what its sender was told.
func (rd *reading) settle(m *Letter) {
	v, key := rd.checker.v, letterKey{m.From, m.ID}
	at, isShown := rd.shown[key]
	if len(m.Acks) == 0 {
		unclear := func(e Refusal) bool { return e.Code == "unknown" || e.Code == "internal" }
		if isShown && len(m.Refusals) > 0 && len(m.Refusals) == len(m.Tries) && !slices.ContainsFunc(m.Refusals, unclear) {
			v.fault(RefusedButDelivered, "%s of %s was refused each time (%v), and %s got it", m.ID, m.From, m.Refusals, rd.name)
		}
		return
	}
	ack := m.Acks[0]
	if isShown {
		v.deliveries = append(v.deliveries, delivery{sent: m.Tries[0].At, acked: ack.At, shown: at})
		if !rd.isCopy(m) && !rd.agrees(rd.places[key], m, ack) {
			v.fault(AckDisagrees, "%s of %s was acknowledged at %v, %s got it at %v", m.ID, m.From, ack.Pos, rd.name, rd.places[key][0].Pos)
		}
		return
	}
	if rd.isCopy(m) {
		rd.missCopy(m)
		return
	}
	if ack.Pos.Epoch == rd.first.Epoch && ack.Pos.Offset <= rd.first.Offset {
		return // it was there before its receiver first came, who asked for nothing older
	}
	said := slices.ContainsFunc(rd.gaps, func(g *Heard) bool { return rd.announced(g, ack.Pos, ack) })
	list := LostSilently
	if said {
		list = LostAnnounced
	}
	v.fault(list, "%s of %s, acknowledged at %v at %s: %s never got it", m.ID, m.From, ack.Pos, clock(ack.At), rd.name)
}

// missCopy judges a copy that never came. No ack says where it was; another device of the sender may have got it there. Where none
// did, a gap that came after the sending may be about it: what was stored and lies before the next position that came would be
// a hole.
func (rd *reading) missCopy(m *Letter) {
	if m.Tries[0].At.Before(rd.since) {
		return // its sender had not come with this device
	}
	places := rd.checker.places[rd.address][letterKey{m.From, m.ID}]
	said := slices.ContainsFunc(rd.gaps, func(g *Heard) bool {
		if len(places) == 0 {
			return !g.At.Before(m.Tries[0].At)
		}
		return slices.ContainsFunc(places, func(at Position) bool { return rd.announced(g, at, m.Acks[0]) })
	})
	list := LostSilently
	if said {
		list = LostAnnounced
	}
	rd.checker.v.fault(list, "%s of %s, acknowledged at %s: %s never got the copy", m.ID, m.From, clock(m.Acks[0].At), rd.name)
}

// announced reports whether a gap says that what was at a position may be missing.
func (rd *reading) announced(g *Heard, at Position, ack Ack) bool {
	return g.announces(at) || rd.checker.forgetful && rd.skips(g, Ack{At: ack.At, Pos: at})
}

// skips reports whether a gap leads over a whole epoch of which its receiver never heard: what it had from some offset on
// may be missing, up to another history, and the acknowledgement is older than that.
func (rd *reading) skips(g *Heard, ack Ack) bool {
	return g.rolls() && g.ToGone == 0 && !rd.epochs[ack.Pos.Epoch] && ack.At.Before(g.At)
}

// agrees reports whether a letter came at the position that was acknowledged, or at another because history changed: it
// was stored again after that, by a gateway, or by a sender who repeated it.
func (rd *reading) agrees(copies []Heard, m *Letter, ack Ack) bool {
	for i := range copies {
		if copies[i].Pos.Epoch == ack.Pos.Epoch {
			return copies[i].Pos == ack.Pos
		}
	}
	last := copies[len(copies)-1]
	return slices.ContainsFunc(rd.gaps, func(g *Heard) bool {
		byGateway := g.rolls() && (g.Epoch == ack.Pos.Epoch || rd.skips(g, ack)) && !last.At.Before(g.At)
		bySender := g.rolls() && (g.Pos.Epoch == ack.Pos.Epoch || rd.skips(g, ack)) && len(m.Tries) > 1
		return byGateway || bySender
	})
}

// conflicts compares the acknowledgements of all that was sent to one address with each other, and with what readers got there.
func (c *checker) conflicts(address string, letters []*Letter) {
	type event struct {
		at  time.Time
		ack *Ack // nil: a letter is sent for the first time
		m   *Letter
	}
	var events []event
	for _, m := range letters {
		if len(m.Acks) == 0 || m.To != address {
			continue
		}
		first := &m.Acks[0]
		for _, a := range m.Acks[1:] {
			if a.Pos.Epoch == first.Pos.Epoch && a.Pos.Offset != first.Pos.Offset {
				c.v.fault(AckDisagrees, "%s to %s was acknowledged at %v and at %v", m.ID, address, first.Pos, a.Pos)
			}
		}
		c.put(address, first.Pos, letterKey{m.From, m.ID}, "its sender was told so")
		events = append(events, event{m.Tries[0].At, nil, m}, event{first.At, first, m})
	}
	// What was acknowledged before another was sent is before it in the log, whoever sent them.
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	top := make(map[string]uint64)
	floor := make(map[*Letter]map[string]uint64)
	for _, e := range events {
		if e.ack == nil {
			floor[e.m] = copyOf(top)
			continue
		}
		if least := floor[e.m][e.ack.Pos.Epoch]; e.ack.Pos.Offset <= least {
			c.v.fault(OutOfOrder, "%s to %s was acknowledged at %v, but sent after %d was acknowledged", e.m.ID, address, e.ack.Pos, least)
		}
		delete(floor, e.m)
		top[e.ack.Pos.Epoch] = max(top[e.ack.Pos.Epoch], e.ack.Pos.Offset)
	}
}

func copyOf(m map[string]uint64) map[string]uint64 {
	c := make(map[string]uint64, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }
