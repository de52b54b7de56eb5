//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// modelLog is what the protocol says of one user's log, told from docs/protocol.md and docs/delivery.md alone: this file shares no
// line with the gateways, so that a mistake of theirs can't hide in it.
type modelLog struct {
	lives []*modelLife // a log begins a new life with each FLUSHALL; the last one is now
}

// modelLife is a log from its beginning until everything in Redis is deleted.
type modelLife struct {
	messages []*modelMessage // by offset, from 1
	first    uint64          // the oldest kept
	eras     []modelEra      // oldest first; the last one is now
	known    map[modelID]*modelMessage
}

// modelEra is an epoch. Redis makes one when somebody first looks, so its name is learnt from the first frame that tells it.
type modelEra struct {
	epoch string
	end   uint64 // the last offset it had; of the present one: not known yet
}

// modelID names a message to a receiver for good.
type modelID struct{ from, id string }

// modelMessage is a message of a log.
type modelMessage struct {
	modelID
	content string
	offset  uint64
	ack     Frame      // the first answer, which every repeat gets; without Raw it isn't known
	acked   []modelAck // who answered that it is stored, first or again
	twice   bool       // it was sent more than once: by which of these it was stored isn't known
}

// modelAck says which gateway told a client that a message is stored.
type modelAck struct {
	gateway *Process
	at      time.Time
}

func (m *modelMessage) lastAcked() time.Time {
	if len(m.acked) == 0 {
		return time.Time{}
	}
	return m.acked[len(m.acked)-1].at
}

// modelPosition is a position as frames tell it.
type modelPosition struct {
	Epoch  string `json:"epoch,omitempty"`
	Offset uint64 `json:"offset"`
}

// modelGap is a gap as a client has to be told it.
type modelGap struct {
	epoch    string
	from, to uint64 // to 0: the end is unknown
	reason   string
	next     modelPosition
}

func gapOf(f Frame) (modelGap, error) {
	g := modelGap{epoch: f.Epoch, reason: f.Reason}
	if err := json.Unmarshal(f.From, &g.from); err != nil {
		return g, fmt.Errorf("from: %w", err)
	}
	if f.To != nil {
		if err := json.Unmarshal(f.To, &g.to); err != nil {
			return g, fmt.Errorf("to: %w", err)
		}
	}
	return g, json.Unmarshal(f.Next, &g.next)
}

// knownEpochs is how many epochs before the present one a log remembers.
const knownEpochs = 8

func newModelLog() *modelLog {
	l := &modelLog{}
	l.begin()
	return l
}

// begin starts a new life: everything in Redis was deleted.
func (l *modelLog) begin() {
	l.lives = append(l.lives, &modelLife{first: 1, eras: []modelEra{{}}, known: make(map[modelID]*modelMessage)})
}

// now is the present life.
func (l *modelLog) now() *modelLife { return l.lives[len(l.lives)-1] }

// roll is a change of Redis' history line. An epoch nobody was told of was never made.
func (l *modelLog) roll() {
	life := l.now()
	if last := &life.eras[len(life.eras)-1]; last.epoch != "" {
		last.end = life.top()
		life.eras = append(life.eras, modelEra{})
	}
}

// learn checks an epoch that a frame gives as the present one.
func (l *modelLog) learn(epoch string) error {
	life := l.now()
	last := &life.eras[len(life.eras)-1]
	switch {
	case epoch == "":
		return fmt.Errorf("no epoch")
	case last.epoch == epoch:
		return nil
	case last.epoch != "":
		return fmt.Errorf("epoch %s, it was %s", epoch, last.epoch)
	}
	for _, life := range l.lives {
		if slices.ContainsFunc(life.eras, func(e modelEra) bool { return e.epoch == epoch }) {
			return fmt.Errorf("epoch %s is over, and is told as the present one", epoch)
		}
	}
	last.epoch = epoch
	return nil
}

func (l *modelLife) top() uint64               { return uint64(len(l.messages)) }
func (l *modelLife) epoch() string             { return l.eras[len(l.eras)-1].epoch }
func (l *modelLife) at(o uint64) modelPosition { return modelPosition{l.epoch(), o} }

func (l *modelLife) append(m *modelMessage) {
	m.offset = l.top() + 1
	l.messages = append(l.messages, m)
	l.known[m.modelID] = m
}

// eraOf finds an epoch that the log still knows; -1: it never had it, or forgot it.
func (l *modelLife) eraOf(epoch string) int {
	for i := max(0, len(l.eras)-1-knownEpochs); i < len(l.eras); i++ {
		if l.eras[i].epoch == epoch && epoch != "" {
			return i
		}
	}
	return -1
}

// resume says where a client goes on that gives a position, and what it has to be told. The present epoch must have been learnt.
func (l *modelLife) resume(at modelPosition) (start uint64, gaps []modelGap) {
	trim := func(asked bool) {
		if start+1 < l.first {
			if asked {
				gaps = append(gaps, modelGap{l.epoch(), start + 1, l.first - 1, "trimmed", l.at(l.first - 1)})
			}
			start = l.first - 1
		}
	}
	if at.Epoch == "" && at.Offset > l.top() {
		at.Epoch = l.epoch()
	}
	if at.Epoch == "" {
		start = at.Offset
		trim(at.Offset > 0)
		return start, gaps
	}
	era := l.eraOf(at.Epoch)
	if era < 0 {
		// Nothing is known of where it ended: all that is kept may be new.
		start = l.first - 1
		gaps = []modelGap{{at.Epoch, at.Offset + 1, 0, "history", l.at(start)}}
		gaps = append(gaps, l.ends(max(0, len(l.eras)-1-knownEpochs), start)...)
		if start > 0 {
			gaps = append(gaps, modelGap{l.epoch(), 1, start, "trimmed", l.at(start)})
		}
		return start, gaps
	}
	present, end := era == len(l.eras)-1, l.reach(era)
	start = min(at.Offset, end)
	if !present {
		gaps = append(gaps, modelGap{at.Epoch, end + 1, 0, "history", l.at(start)})
	}
	if at.Offset > end {
		gaps = append(gaps, modelGap{at.Epoch, end + 1, at.Offset, "ahead", l.at(start)})
	}
	gaps = append(gaps, l.ends(era+1, start)...)
	trim(true)
	return start, gaps
}

// ends are the gaps that name the end of each epoch from one on, up to the present one.
func (l *modelLife) ends(from int, start uint64) (gaps []modelGap) {
	for i := from; i < len(l.eras)-1; i++ {
		gaps = append(gaps, modelGap{l.eras[i].epoch, l.reach(i) + 1, 0, "history", l.at(start)})
	}
	return gaps
}

// modelCursor is what a device may be remembered to have kept. Of what it says in one moment only the last word has to be written down.
type modelCursor struct {
	any  []modelPosition // where it may stand if some words were passed over
	last []modelPosition // and if the last one wasn't
}

// nowhere is the position of a device that has said nothing good yet.
var nowhere = modelPosition{}

func newModelCursor() *modelCursor {
	return &modelCursor{any: []modelPosition{nowhere}, last: []modelPosition{nowhere}}
}

// hear is a word of the device.
func (c *modelCursor) hear(l *modelLife, at modelPosition) {
	c.last = nil
	for _, p := range c.any {
		if l.keeps(p, at) {
			p = at
		}
		if !slices.Contains(c.last, p) {
			c.last = append(c.last, p)
		}
	}
	for _, p := range c.last {
		if !slices.Contains(c.any, p) {
			c.any = append(c.any, p)
		}
	}
}

// settle is called when the cursor was seen to stand where it may. When that is one place, no word before is open any more.
func (c *modelCursor) settle() {
	if len(c.last) == 1 {
		c.any = slices.Clone(c.last)
	}
}

// lastWordLost is the end of the gateway that had heard it.
func (c *modelCursor) lastWordLost() { c.last = slices.Clone(c.any) }

// keeps says whether a device that says `received` moves its cursor there.
func (l *modelLife) keeps(cursor, at modelPosition) bool {
	era := l.eraOf(at.Epoch)
	if era < 0 || at.Offset > l.reach(era) {
		return false
	}
	had := l.eraOf(cursor.Epoch)
	return had < 0 || at.Offset > cursor.Offset || at.Offset == cursor.Offset && era > had
}

// reach is the last offset of an epoch.
func (l *modelLife) reach(era int) uint64 {
	if era == len(l.eras)-1 {
		return l.top()
	}
	return l.eras[era].end
}

// page is what `history` shows: the messages of a page, and whether the log goes on in that direction.
func (l *modelLife) page(epoch string, after, before *uint64, limit uint64) (page []*modelMessage, more bool) {
	lo, hi := l.first, l.top() // what is asked for, before the limit
	down := after == nil
	if after != nil {
		from := *after
		if epoch != "" {
			start, _ := l.resume(modelPosition{epoch, from})
			from = min(from, start) // an offset stands for where its epoch ended, at most
		}
		lo = max(lo, from+1)
	} else if before != nil {
		hi = min(hi, max(*before, 1)-1)
	}
	if lo > hi {
		return nil, false
	}
	if more = hi-lo+1 > limit; more && down {
		lo = hi + 1 - limit
	} else if more {
		hi = lo - 1 + limit
	}
	return l.messages[lo-1 : hi], more
}
