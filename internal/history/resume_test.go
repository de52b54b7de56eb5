package history

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"chatgate/internal/protocol"
)

// The log of the table: in e3 now, 21 to 50 kept. e2 ended at 40, e1 at 30.
var tabled = Log{
	Epoch: "e3", First: 21, Top: 50,
	Rolls: []protocol.Position{{Epoch: "e2", Offset: 40}, {Epoch: "e1", Offset: 30}},
}

func TestWhatAPositionIsWorth(t *testing.T) {
	next := func(o uint64) protocol.Position { return protocol.Position{Epoch: "e3", Offset: o} }
	trimmed := func(from, to uint64) protocol.Gap {
		return protocol.Gap{Epoch: "e3", From: from, To: to, Reason: protocol.GapTrimmed, Next: next(to)}
	}
	// What a receiver had that the log lost, behind what every receiver is told: above it there was more, which is lost as well.
	ahead := func(epoch string, from, to, start uint64) []protocol.Gap {
		return []protocol.Gap{
			{Epoch: epoch, From: from, Reason: protocol.GapHistory, Next: next(start)},
			{Epoch: epoch, From: from, To: to, Reason: protocol.GapAhead, Next: next(start)},
		}
	}
	for name, tc := range map[string]struct {
		log   Log
		epoch string
		at    uint64
		start uint64
		gaps  []protocol.Gap
	}{
		"at the top":                      {tabled, "e3", 50, 50, nil},
		"in the present":                  {tabled, "e3", 45, 45, nil},
		"just before the oldest":          {tabled, "e3", 20, 20, nil},
		"one too early":                   {tabled, "e3", 19, 20, []protocol.Gap{trimmed(20, 20)}},
		"from the start":                  {tabled, "e3", 0, 20, []protocol.Gap{trimmed(1, 20)}},
		"ahead of the log":                {tabled, "e3", 60, 50, []protocol.Gap{{Epoch: "e3", From: 51, To: 60, Reason: protocol.GapAhead, Next: next(50)}}},
		"the end of the epoch before":     {tabled, "e2", 40, 40, []protocol.Gap{{Epoch: "e2", From: 41, Reason: protocol.GapHistory, Next: next(40)}}},
		"within the epoch before":         {tabled, "e2", 35, 35, []protocol.Gap{{Epoch: "e2", From: 41, Reason: protocol.GapHistory, Next: next(35)}}},
		"more than the epoch before kept": {tabled, "e2", 44, 40, ahead("e2", 41, 44, 40)},
		"an old epoch, and trimmed": {tabled, "e1", 5, 20, []protocol.Gap{
			{Epoch: "e1", From: 31, Reason: protocol.GapHistory, Next: next(5)},
			{Epoch: "e2", From: 41, Reason: protocol.GapHistory, Next: next(5)},
			trimmed(6, 20),
		}},
		"a later roll lost more": {
			Log{Epoch: "e3", First: 1, Top: 50, Rolls: []protocol.Position{{Epoch: "e2", Offset: 25}, {Epoch: "e1", Offset: 30}}},
			"e1", 30, 25,
			append(ahead("e1", 26, 30, 25), protocol.Gap{Epoch: "e2", From: 26, Reason: protocol.GapHistory, Next: next(25)}),
		},
		"a foreign epoch": {tabled, "x", 33, 20, []protocol.Gap{
			{Epoch: "x", From: 34, Reason: protocol.GapHistory, Next: next(20)},
			{Epoch: "e1", From: 31, Reason: protocol.GapHistory, Next: next(20)},
			{Epoch: "e2", From: 41, Reason: protocol.GapHistory, Next: next(20)},
			{Epoch: "e3", From: 1, To: 20, Reason: protocol.GapTrimmed, Next: next(20)},
		}},
		"a foreign epoch, nothing kept": {
			Log{Epoch: "e3", First: 51, Top: 50},
			"x", 2, 50,
			[]protocol.Gap{
				{Epoch: "x", From: 3, Reason: protocol.GapHistory, Next: next(50)},
				{Epoch: "e3", From: 1, To: 50, Reason: protocol.GapTrimmed, Next: next(50)},
			},
		},
		"nothing kept":              {Log{Epoch: "e3", First: 51, Top: 50}, "e3", 48, 50, []protocol.Gap{trimmed(49, 50)}},
		"nothing kept, at the top":  {Log{Epoch: "e3", First: 51, Top: 50}, "e3", 50, 50, nil},
		"a log never written":       {Log{Epoch: "e3", First: 1}, "e3", 0, 0, nil},
		"everything kept":           {tabled, "", 0, 20, nil},
		"everything of nothing":     {Log{Epoch: "e3", First: 1}, "", 0, 0, nil},
		"above an offset, no epoch": {tabled, "", 30, 30, nil},
		"trimmed, no epoch":         {tabled, "", 10, 20, []protocol.Gap{trimmed(11, 20)}},
		"ahead, no epoch":           {tabled, "", 99, 50, []protocol.Gap{{Epoch: "e3", From: 51, To: 99, Reason: protocol.GapAhead, Next: next(50)}}},
		"the largest offset":        {tabled, "e2", 1<<64 - 1, 40, ahead("e2", 41, 1<<64-1, 40)},
	} {
		t.Run(name, func(t *testing.T) {
			r := tc.log.Resume(protocol.Position{Epoch: tc.epoch, Offset: tc.at})
			if r.Start != tc.start || !slices.Equal(r.Gaps, tc.gaps) || r.Recovered() != (len(tc.gaps) == 0) {
				t.Errorf("start %d, %+v\nwant  %d, %+v", r.Start, r.Gaps, tc.start, tc.gaps)
			}
		})
	}
}

// A modelLog is a log as it really went: every message has a name of its own, and a restart of Redis may lose the last ones.
type modelLog struct {
	log   Log
	names []string // by offset, from 1; those below First are trimmed
	made  int
	given map[string]uint64 // by epoch, the last offset that was acknowledged in it
}

func (m *modelLog) append(n int) {
	for range n {
		m.made++
		m.names = append(m.names, fmt.Sprint("m", m.made))
	}
	m.log.Top = uint64(len(m.names))
	m.given[m.log.Epoch] = m.log.Top
}

func (m *modelLog) restart(lost int) {
	m.names = slices.Clone(m.names[:len(m.names)-min(lost, len(m.names))])
	m.log.Top = uint64(len(m.names))
	m.log.First = min(m.log.First, m.log.Top+1)
	m.log.Rolls = append([]protocol.Position{m.log.position(m.log.Top)}, m.log.Rolls...)
	m.log.Rolls = m.log.Rolls[:min(len(m.log.Rolls), 8)]
	m.made++
	m.log.Epoch = fmt.Sprint("e", m.made)
}

// A reader had everything up to a position, at some time.
type reader struct {
	at    protocol.Position
	names []string // by offset
}

// Whatever happened to a log, a reader who comes back with a position it once had gets every message that is there and that it lacks, in
// a known epoch nothing twice, and is told of everything else.
func TestResumeLosesNothingSilently(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &modelLog{log: Log{Epoch: "e0", First: 1}, given: make(map[string]uint64)}
		var readers []reader
		t.Repeat(map[string]func(*rapid.T){
			"append":  func(t *rapid.T) { m.append(rapid.IntRange(1, 5).Draw(t, "messages")) },
			"restart": func(t *rapid.T) { m.restart(rapid.IntRange(0, 4).Draw(t, "lost")) },
			"trim": func(t *rapid.T) {
				m.log.First = rapid.Uint64Range(m.log.First, m.log.Top+1).Draw(t, "first")
			},
			"read": func(t *rapid.T) {
				o := rapid.Uint64Range(m.log.First-1, m.log.Top).Draw(t, "offset")
				readers = append(readers, reader{m.log.position(o), slices.Clone(m.names[:o])})
			},
			"": func(t *rapid.T) {
				for _, r := range readers {
					m.check(t, r)
				}
			},
		})
	})
}

func (m *modelLog) check(t *rapid.T, r reader) {
	l := &m.log
	s := l.Resume(r.at)
	if s.Start > l.Top || s.Start+1 < l.First {
		t.Fatalf("%v starts at %d, kept is %d to %d", r.at, s.Start, l.First, l.Top)
	}
	_, known := l.end(r.at.Epoch)
	known = known || r.at.Epoch == l.Epoch
	told := func(offset uint64) bool {
		return slices.ContainsFunc(s.Gaps, func(g protocol.Gap) bool {
			return g.Reason == protocol.GapTrimmed && g.From <= offset && offset <= g.To
		})
	}
	for o := uint64(1); o <= l.Top; o++ {
		name := m.names[o-1]
		has := o <= uint64(len(r.names)) && r.names[o-1] == name
		switch {
		case o > s.Start && known && has:
			t.Fatalf("%v gets %s at %d a second time, it starts at %d of %+v", r.at, name, o, s.Start, l)
		case o <= s.Start && !has && o >= l.First:
			t.Fatalf("%v never gets %s at %d, it starts at %d of %+v", r.at, name, o, s.Start, l)
		case o <= s.Start && !has && known && !told(o):
			t.Fatalf("%v is not told that %s at %d is gone: %+v of %+v", r.at, name, o, s.Gaps, l)
		}
	}
	// Whoever was acknowledged behind the end of the reader's epoch, his message is lost, also above all that the reader had.
	for o := uint64(len(r.names)) + 1; o <= m.given[r.at.Epoch] && known && r.at.Epoch != l.Epoch; o++ {
		kept := o <= l.Top && o <= endOf(l, r.at.Epoch)
		if !kept && !slices.ContainsFunc(s.Gaps, func(g protocol.Gap) bool {
			return g.Epoch == r.at.Epoch && g.From <= o && (g.To == 0 || o <= g.To)
		}) {
			t.Fatalf("%v is not told that %d of its epoch is lost: %+v of %+v", r.at, o, s.Gaps, l)
		}
	}
	// Behind the end of every epoch since something may be lost that was acknowledged: each is named.
	since := slices.IndexFunc(l.Rolls, func(p protocol.Position) bool { return p.Epoch == r.at.Epoch })
	for _, roll := range l.Rolls[:max(since, 0)] {
		if !slices.ContainsFunc(s.Gaps, func(g protocol.Gap) bool {
			return g.Epoch == roll.Epoch && g.From == endOf(l, roll.Epoch)+1 && g.To == 0
		}) {
			t.Fatalf("%v is not told of the end of %s: %+v of %+v", r.at, roll.Epoch, s.Gaps, l)
		}
	}
	rolled := slices.ContainsFunc(s.Gaps, func(g protocol.Gap) bool { return g.Reason != protocol.GapTrimmed && g.Epoch == r.at.Epoch })
	if rolled != (r.at.Epoch != l.Epoch) {
		t.Fatalf("%v in %+v is told %+v", r.at, l, s.Gaps)
	}
	if n := len(s.Gaps); n > 0 && s.Gaps[n-1].Next != l.position(s.Start) {
		t.Fatalf("the last gap of %+v does not lead to %d", s.Gaps, s.Start)
	}
	if s.Recovered() != l.Continues(r.at) {
		t.Fatalf("%v: recovered %v, continues %v", r.at, s.Recovered(), l.Continues(r.at))
	}
}

func endOf(l *Log, epoch string) uint64 {
	end, _ := l.end(epoch)
	return end
}
