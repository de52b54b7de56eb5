package gatewaytest

import (
	"slices"
	"strings"
	"time"
)

// Compare compares what people wrote down.
//
// A fault is listed under the promise it breaks (docs/delivery.md), once for each message.
func Compare(records []Record) *Verdict {
	c := checker{v: newVerdict(), letters: make(map[letterKey]*Letter), names: make(map[string]bool)}
	to := make(map[string][]*Letter)
	for i := range records {
		r := &records[i]
		c.names[r.Name] = true
		c.v.Ends.add(r.Ends)
		if r.Gone != nil {
			c.v.fault(Dismissed, "%s: %v", r.Name, r.Gone)
		}
		for j := range r.Sent {
			m := &r.Sent[j]
			c.letters[letterKey{r.Name, m.ID}] = m
			to[m.To] = append(to[m.To], m)
			c.count(m)
		}
	}
	for i := range records {
		c.reader(&records[i], to[records[i].Name])
		c.conflicts(records[i].Name, to[records[i].Name])
	}
	c.v.measure()
	return c.v
}

type checker struct {
	v       *Verdict
	letters map[letterKey]*Letter
	names   map[string]bool
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

// reading is what one person received, after the rules for clients.
type reading struct {
	checker *checker
	name    string
	shown   map[letterKey]time.Time
	places  map[letterKey][]Heard // each position at which a letter came
	gaps    []*Heard
	epochs  map[string]bool // epochs this person was ever told of
	first   Position        // where its reading began
}

// reader checks what one person received, and what it should have.
func (c *checker) reader(r *Record, letters []*Letter) {
	rd := &reading{
		checker: c, name: r.Name, shown: make(map[letterKey]time.Time), places: make(map[letterKey][]Heard), epochs: make(map[string]bool),
	}
	var in inbox
	order := make(map[connOf]int)
	at := make(map[Position]letterKey)
	for i := range r.Heard {
		h := &r.Heard[i]
		if !in.known {
			rd.first = h.Pos
		}
		rd.epochs[h.Pos.Epoch] = true
		became, complaint := in.take(h)
		if complaint != "" {
			c.v.fault(HoleNotAnnounced, "%s: %s, connection %d at %s", r.Name, complaint, h.Conn, clock(h.At))
		}
		switch h.Type {
		case "gap":
			rd.gaps = append(rd.gaps, h)
			c.v.Gaps[h.Reason]++
		case "message":
			c.v.Received++
			key := letterKey{h.From, h.ID}
			if other, taken := at[h.Pos]; taken && other != key {
				c.v.fault(TwoAtOnePosition, "%s got %s of %s and %s of %s at %v", r.Name, other.id, other.from, key.id, key.from, h.Pos)
			}
			at[h.Pos] = key
			rd.message(h, became)
			if became == shown {
				rd.order(h, order)
			}
		}
	}
	for _, m := range letters {
		rd.settle(m)
	}
}

// message checks one message as it came.
func (rd *reading) message(h *Heard, became fate) {
	v, key := rd.checker.v, letterKey{h.From, h.ID}
	before := rd.places[key]
	rd.places[key] = append(before, *h)
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
	rd.shown[key] = h.At
	m := rd.checker.letters[key]
	switch {
	case m == nil && rd.checker.names[h.From]:
		v.fault(NeverSent, "%s got %s of %s, who never sent it", rd.name, h.ID, h.From)
	case m == nil:
		v.fault(NeverSent, "%s got %s of %s, whom nobody knows", rd.name, h.ID, h.From)
	case m.Content != h.Content || m.To != rd.name || h.To != rd.name:
		v.fault(Changed, "%s got %s of %s as %.40s to %s, sent was %.40s to %s", rd.name, h.ID, h.From, h.Content, h.To, m.Content, m.To)
	}
}

// rolled reports whether this person was told of another history between two moments, the later one included.
func (rd *reading) rolled(after, until time.Time) bool {
	return slices.ContainsFunc(rd.gaps, func(g *Heard) bool { return g.rolls() && !g.At.Before(after) && !g.At.After(until) })
}

// connOf is one connection of one sender: what it sends to one receiver arrives in that order.
type connOf struct {
	from string
	conn int
}

// order checks that what was sent once, and never refused, is shown in the order in which one connection sent it.
func (rd *reading) order(h *Heard, last map[connOf]int) {
	m := rd.checker.letters[letterKey{h.From, h.ID}]
	if m == nil || len(m.Tries) != 1 || len(m.Refusals) > 0 {
		return
	}
	way := connOf{h.From, m.Tries[0].Conn}
	if m.N < last[way] {
		rd.checker.v.fault(OutOfOrder, "%s was shown %s of %s behind message %d of the same connection", rd.name, m.ID, h.From, last[way])
	}
	last[way] = max(last[way], m.N)
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
		if !rd.agrees(rd.places[key], m, ack) {
			v.fault(AckDisagrees, "%s of %s was acknowledged at %v, %s got it at %v", m.ID, m.From, ack.Pos, rd.name, rd.places[key][0].Pos)
		}
		return
	}
	if ack.Pos.Epoch == rd.first.Epoch && ack.Pos.Offset <= rd.first.Offset {
		return // it was there before its receiver first came, who asked for nothing older
	}
	said := slices.ContainsFunc(rd.gaps, func(g *Heard) bool { return g.announces(ack.Pos) })
	list := LostSilently
	if said {
		list = LostAnnounced
	}
	v.fault(list, "%s of %s, acknowledged at %v at %s: %s never got it", m.ID, m.From, ack.Pos, clock(ack.At), rd.name)
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

// conflicts compares the acknowledgements of all that was sent to one person with each other.
func (c *checker) conflicts(name string, letters []*Letter) {
	type event struct {
		at  time.Time
		ack *Ack // nil: a letter is sent for the first time
		m   *Letter
	}
	var events []event
	at := make(map[Position]*Letter)
	for _, m := range letters {
		if len(m.Acks) == 0 {
			continue
		}
		first := &m.Acks[0]
		for _, a := range m.Acks[1:] {
			if a.Pos.Epoch == first.Pos.Epoch && a.Pos.Offset != first.Pos.Offset {
				c.v.fault(AckDisagrees, "%s to %s was acknowledged at %v and at %v", m.ID, name, first.Pos, a.Pos)
			}
		}
		if other := at[first.Pos]; other != nil {
			c.v.fault(TwoAtOnePosition, "%s and %s to %s were both acknowledged at %v", other.ID, m.ID, name, first.Pos)
		}
		at[first.Pos] = m
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
			c.v.fault(OutOfOrder, "%s to %s was acknowledged at %v, but sent after %d was acknowledged", e.m.ID, name, e.ack.Pos, least)
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

// judgePresence compares what an observer was told of people with where they were. Whoever was there while it asked is
// online; and a version may only change with a user who left, for longer than the grace.
func (v *Verdict) judgePresence(records []Record, seen map[string][]sighting, grace time.Duration) {
	for i := range records {
		r := &records[i]
		steady := away(r.Stays) < grace
		if !steady {
			v.Absent++
		}
		last := ""
		for _, s := range seen[r.Name] {
			if len(r.Stays) == 0 || s.asked.Before(r.Stays[0].From) {
				continue
			}
			v.Sightings++
			there := slices.ContainsFunc(r.Stays, func(x Stay) bool {
				from := x.From
				if x.Resumed {
					from = from.Add(renewal)
				}
				return from.Before(s.asked) && (x.To.IsZero() || x.To.After(s.told))
			})
			if s.state == "offline" && (there || s.version != "" && steady) {
				v.fault(FalseOffline, "%s was there, but offline at %s (%s)", r.Name, clock(s.asked), s.version)
			}
			if s.version == "" || s.version == last {
				continue
			}
			if last != "" && steady {
				v.changed(r.Name, last, &s)
			}
			last = s.version
		}
	}
}

// renewal is how long a gateway that stood still may take until it counts again.
const renewal = 2 * time.Second

// changed notes a change of the version of somebody who was there all the time.
func (v *Verdict) changed(name, last string, s *sighting) {
	epoch, _, _ := strings.Cut(s.version, ".")
	before, _, _ := strings.Cut(last, ".")
	if epoch == before {
		v.fault(FalseOffline, "%s was there, but changed from version %s to %s by %s", name, last, s.version, clock(s.told))
	} else {
		v.fault(PresenceForgotten, "%s was there, but has version %s after %s, by %s", name, s.version, last, clock(s.told))
	}
}

// away is the longest time between two stays.
func away(stays []Stay) (longest time.Duration) {
	for i := 1; i < len(stays); i++ {
		longest = max(longest, stays[i].From.Sub(stays[i-1].To))
	}
	if n := len(stays); n > 0 && !stays[n-1].To.IsZero() {
		longest = max(longest, time.Since(stays[n-1].To))
	}
	return longest
}
