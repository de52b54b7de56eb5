//go:build !secondpass

package gatewaytest

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// began is when the stories of this file begin.
var began = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func tick(n int) time.Time { return began.Add(time.Duration(n) * time.Second) }

// story is a good record. Alice and carol send to bob, who changes gateways once. Then Redis fails over and forgets the
// offsets from 6 on: what was 6 and 7 is stored again, and bob, who had 6, is given it again.
type story struct{ alice, carol, bob Record }

func (s *story) records() []Record { return []Record{s.alice, s.bob, s.carol} }

// letter is a message of the story that one try settled.
func letter(from string, n, at int, pos Position) Letter {
	return Letter{
		ID: from + "-" + itoa(n), From: from, To: "bob", Content: itoa(n), N: n,
		Tries: []Try{{At: tick(at), Conn: 1}},
		Acks:  []Ack{{At: tick(at).Add(100 * time.Millisecond), Conn: 1, Status: "routed", Pos: pos}},
	}
}

// got is how a letter reaches bob.
func got(m Letter, conn, at int, pos Position) Heard {
	return Heard{
		Type: "message", Conn: conn, At: tick(at).Add(200 * time.Millisecond), Pos: pos, From: m.From, ID: m.ID, To: m.To, Content: m.Content,
	}
}

func goodStory() *story {
	first := func(offset uint64) Position { return Position{"first", offset} }
	second := func(offset uint64) Position { return Position{"second", offset} }
	s := &story{alice: Record{Name: "alice"}, carol: Record{Name: "carol"}, bob: Record{Name: "bob"}}
	s.bob.Heard = append(s.bob.Heard, Heard{Type: "registered", Conn: 1, At: tick(0), Pos: first(0), Recovered: true})
	for n := 1; n <= 7; n++ { // alice's 1 to 5, and carol's 1 and 2 at 2 and 4
		if n%2 == 0 && n < 5 {
			s.carol.Sent = append(s.carol.Sent, letter("carol", n/2, n, first(uint64(n))))
		} else {
			s.alice.Sent = append(s.alice.Sent, letter("alice", len(s.alice.Sent)+1, n, first(uint64(n))))
		}
	}
	a, c := s.alice.Sent, s.carol.Sent
	s.bob.Heard = append(s.bob.Heard,
		got(a[0], 1, 1, first(1)), got(c[0], 1, 2, first(2)), got(a[1], 1, 3, first(3)), got(c[1], 1, 4, first(4)),
		Heard{Type: "registered", Conn: 2, At: tick(5), Pos: first(4), Recovered: true},
		got(a[2], 2, 5, first(5)), got(a[3], 2, 6, first(6)),
		Heard{Type: "gap", Conn: 2, At: tick(8), Reason: "history", Epoch: "first", FirstGone: 6, Pos: second(5)},
		got(a[3], 2, 9, second(6)), got(a[4], 2, 9, second(7)),
	)
	s.alice.Sent = append(s.alice.Sent, letter("alice", 6, 10, second(8)))
	s.bob.Heard = append(s.bob.Heard, got(s.alice.Sent[5], 2, 10, second(8)))
	return s
}

// The places of the good story.
const (
	atFirst, atResume, atGap, atHealed, atLast = 1, 5, 8, 10, 11 // in what bob heard
)

func TestAGoodRecordPasses(t *testing.T) {
	v := Compare(goodStory().records())
	v.Want(t)
	if v.Sent != 8 || v.Acked != 8 || v.Shown != 8 || v.Received != 9 || v.Again != 1 || v.Gaps["history"] != 1 {
		t.Errorf("counted wrongly: %v", v)
	}
	if want := 100 * time.Millisecond; v.FromAck.P50 != want || v.FromSent.P50 != 2*want {
		t.Errorf("ack to shown %v, sent to shown %v, want half of them within %v and %v", v.FromAck, v.FromSent, want, 2*want)
	}
	if first, ok := v.FirstAckAfter(tick(7).Add(time.Second)); !ok || first != 2100*time.Millisecond {
		t.Errorf("the first ack after 8 s came %v later (%v), want 2.1 s", first, ok)
	}
	if silence := v.LongestSilence(); silence != 3*time.Second {
		t.Errorf("longest without an ack %v, want 3 s", silence)
	}
}

// A checker that never failed proves nothing: what it must see is done to a good record once each.
func TestTheLedgerSeesEachFault(t *testing.T) {
	drop := func(s *story, i int) { s.bob.Heard = slices.Delete(s.bob.Heard, i, i+1) }
	for name, tc := range map[string]struct {
		spoil func(s *story)
		want  Fault
	}{
		"the last is lost": {func(s *story) { drop(s, atLast) }, LostSilently},
		"one is lost in the middle": {func(s *story) {
			drop(s, atFirst)
		}, LostSilently},
		"a hole":                      {func(s *story) { drop(s, atFirst) }, HoleNotAnnounced},
		"a gap that nobody announced": {func(s *story) { drop(s, atGap) }, HoleNotAnnounced},
		"lost after the gap": {func(s *story) {
			s.bob.Heard = s.bob.Heard[:atHealed+1]
		}, LostSilently},
		"not sent again": {func(s *story) {
			s.bob.Heard = s.bob.Heard[:atGap+2]
			s.alice.Sent = s.alice.Sent[:5]
		}, LostAnnounced},
		"a gap that ends too early": {func(s *story) {
			s.bob.Heard = s.bob.Heard[:atGap+2]
			s.alice.Sent = s.alice.Sent[:5]
			s.bob.Heard[atGap].ToGone, s.bob.Heard[atGap].Reason = 6, "ahead"
		}, LostSilently},
		"a gap that begins too late": {func(s *story) {
			g := &s.bob.Heard[atGap]
			g.FirstGone, g.Pos.Offset = 9, 8
		}, HoleNotAnnounced},
		"a gap of an epoch that bob never had": {func(s *story) { s.bob.Heard[atGap].Epoch = "third" }, HoleNotAnnounced},
		"a trimmed gap that skips more": {func(s *story) {
			g := &s.bob.Heard[atGap]
			g.Reason, g.ToGone = "trimmed", 4
		}, HoleNotAnnounced},
		"resumed too far on":       {func(s *story) { s.bob.Heard[atResume].Pos.Offset = 5 }, HoleNotAnnounced},
		"resumed in another epoch": {func(s *story) { s.bob.Heard[atResume].Pos.Epoch = "third" }, HoleNotAnnounced},
		"twice at one position": {func(s *story) {
			s.bob.Heard = slices.Insert(s.bob.Heard, atFirst, s.bob.Heard[atFirst])
		}, RawDuplicate},
		"resumed too far back": {func(s *story) {
			s.bob.Heard = slices.Insert(s.bob.Heard, atResume+1, s.bob.Heard[atFirst+2])
		}, RawDuplicate},
		"stored twice": {func(s *story) {
			m := got(s.alice.Sent[5], 2, 11, Position{"second", 9})
			s.bob.Heard = append(s.bob.Heard, m)
		}, ShownTwice},
		"two stored at one offset": {func(s *story) {
			m := s.bob.Heard[atLast]
			m.From, m.ID = "carol", "carol-2"
			s.bob.Heard = append(s.bob.Heard, m)
		}, TwoAtOnePosition},
		"two acknowledged at one offset": {func(s *story) {
			s.alice.Sent[1].Acks[0].Pos.Offset = 4
		}, TwoAtOnePosition},
		"in another order than sent": {func(s *story) {
			a, b := &s.alice.Sent[1], &s.alice.Sent[2]
			a.N, b.N = b.N, a.N
		}, OutOfOrder},
		"acknowledged before what was there": {func(s *story) {
			a, b := &s.alice.Sent[1], &s.carol.Sent[1]
			a.Acks[0].Pos, b.Acks[0].Pos = b.Acks[0].Pos, a.Acks[0].Pos
		}, OutOfOrder},
		"another content":          {func(s *story) { s.bob.Heard[atFirst].Content = "9" }, Changed},
		"another receiver":         {func(s *story) { s.bob.Heard[atFirst].To = "dave" }, Changed},
		"delivered to another":     {func(s *story) { s.alice.Sent[0].To = "carol" }, Changed},
		"another sender":           {func(s *story) { s.bob.Heard[atFirst].From = "carol" }, NeverSent},
		"a stranger":               {func(s *story) { s.bob.Heard[atFirst].From = "eve" }, NeverSent},
		"another id":               {func(s *story) { s.bob.Heard[atFirst].ID = "alice-99" }, NeverSent},
		"an ack at another offset": {func(s *story) { s.alice.Sent[5].Acks[0].Pos.Offset = 9 }, AckDisagrees},
		"an ack in another epoch":  {func(s *story) { s.alice.Sent[0].Acks[0].Pos.Epoch = "third" }, AckDisagrees},
		"another answer to a repeat": {func(s *story) {
			m := &s.alice.Sent[0]
			m.Acks = append(m.Acks, Ack{At: tick(2), Pos: Position{"first", 2}})
		}, AckDisagrees},
		"certainly not stored, and there": {func(s *story) {
			m := &s.alice.Sent[5]
			m.Acks, m.Refusals = nil, []Refusal{{Code: "unavailable"}}
		}, RefusedButDelivered},
		"sent away": {func(s *story) { s.bob.Gone = errors.New("4502") }, Dismissed},
	} {
		t.Run(name, func(t *testing.T) {
			s := goodStory()
			tc.spoil(s)
			v := Compare(s.records())
			if v.Count(tc.want) == 0 {
				t.Errorf("%q was not seen: %v", tc.want, v)
			}
			if v.Err() == nil {
				t.Error("and it passes")
			}
		})
	}
}

// What is no fault, though it looks like one.
func TestTheLedgerForgivesWhatIsAllowed(t *testing.T) {
	for name, spoil := range map[string]func(s *story){
		"repeated, and overtaken by the next": func(s *story) {
			a, b := &s.alice.Sent[1], &s.alice.Sent[2]
			a.N, b.N = b.N, a.N
			a.Tries = append(a.Tries, Try{At: a.Tries[0].At, Conn: 2})
		},
		"sent by another connection": func(s *story) {
			a, b := &s.alice.Sent[1], &s.alice.Sent[2]
			a.N, b.N = b.N, a.N
			b.Tries[0].Conn = 2
		},
		"the outcome was unknown, and it was stored": func(s *story) {
			m := &s.alice.Sent[5]
			m.Acks, m.Refusals = nil, []Refusal{{Code: "unknown"}}
		},
		"sent before bob first came": func(s *story) {
			s.bob.Heard = slices.Delete(s.bob.Heard, 1, 3)
			s.bob.Heard[0].Pos.Offset = 2
		},
		"a second gap about the same change": func(s *story) {
			more := s.bob.Heard[atGap]
			more.Reason, more.ToGone = "ahead", 6
			s.bob.Heard = slices.Insert(s.bob.Heard, atGap+1, more)
		},
		"no answer, and nothing arrived": func(s *story) {
			s.alice.Sent[5].Acks = nil
			s.bob.Heard = s.bob.Heard[:atLast]
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := goodStory()
			spoil(s)
			Compare(s.records()).Want(t)
		})
	}
}

// An epoch came and went while its receiver was away. What was acknowledged behind its end is announced by a gap of its own, which
// leads where the first one leads; the gap of the epoch before says nothing of it.
func TestAGapNamesAnEpochThatCameAndWent(t *testing.T) {
	for name, tc := range map[string]struct {
		from uint64 // of the gap; 0: there is none
		want Fault
	}{"named": {7, LostAnnounced}, "named from further on": {8, LostSilently}, "not named": {0, LostSilently}} {
		t.Run(name, func(t *testing.T) {
			s := goodStory()
			s.carol.Sent = append(s.carol.Sent, letter("carol", 3, 7, Position{"between", 7}))
			if tc.from > 0 {
				more := s.bob.Heard[atGap]
				more.Epoch, more.FirstGone, more.ToGone = "between", tc.from, 0
				s.bob.Heard = slices.Insert(s.bob.Heard, atGap+1, more)
			}
			v := Compare(s.records())
			if v.Count(tc.want) != 1 {
				t.Errorf("want it to be %s: %v", tc.want, v)
			}
			// A Redis that lost everything can't name it: the gap of the epoch before, without an end, stands for it.
			if v = compare(s.records(), true); v.Count(LostAnnounced) != 1 {
				t.Errorf("of a Redis that forgets, want it to be announced: %v", v)
			}
			s.bob.Heard[atGap].ToGone, s.bob.Heard[atGap].Reason = 6, "ahead"
			if v = compare(s.records(), true); tc.from == 0 && v.Count(LostSilently) == 0 {
				t.Errorf("a gap with an end says nothing of it: %v", v)
			}
		})
	}
}

// A watcher may be told of each absence that was longer than the grace, once. Who was never away for so long is never told to be
// offline, by whatever kind of word.
func TestTheLedgerSeesWhoIsToldOfflineFalsely(t *testing.T) {
	here := []Stay{{From: tick(0), To: tick(10)}, {From: tick(12)}}
	away := []Stay{{From: tick(0), To: tick(10)}, {From: tick(19)}}
	first := word{UserState{State: "online", Version: "e.1"}, tick(1), 1, true}
	push := func(at int, state, version string) word {
		return word{UserState{State: state, Version: version}, tick(at), 1, false}
	}
	answer := func(at int, state, version string) word {
		return word{UserState{State: state, Version: version}, tick(at), 2, true}
	}
	for name, tc := range map[string]struct {
		words  []word
		stays  []Stay
		tablet []Stay
		want   bool
	}{
		"nothing is told":           {nil, here, nil, false},
		"offline while there":       {[]word{push(5, "offline", "e.2")}, here, nil, true},
		"taken back":                {[]word{push(5, "offline", "")}, here, nil, true},
		"offline, and back":         {[]word{push(5, "offline", "e.2"), push(6, "online", "e.3")}, here, nil, true},
		"back, and nobody said why": {[]word{push(6, "online", "e.3")}, here, nil, true},
		"offline in another epoch":  {[]word{push(6, "offline", "f.1")}, here, nil, true},
		"another epoch":             {[]word{push(6, "online", "f.1")}, here, nil, false},
		"another watcher's answer":  {[]word{answer(6, "online", "e.1")}, here, nil, false},
		"an answer is offline":      {[]word{answer(6, "offline", "e.2")}, here, nil, true},
		"an answer knows nothing":   {[]word{answer(6, "offline", "")}, here, nil, false},
		"away for long":             {[]word{push(16, "offline", "e.2"), push(20, "online", "e.3")}, away, nil, false},
		"told so late":              {[]word{push(21, "offline", "e.2"), push(22, "online", "e.3")}, away, nil, false},
		"told so twice":             {[]word{push(16, "offline", "e.2"), push(20, "online", "e.3"), push(24, "offline", "e.4")}, away, nil, true},
		"the tablet was there":      {[]word{push(16, "offline", "e.2")}, away, []Stay{{From: tick(2)}}, true},
		"the tablet came too late":  {[]word{push(16, "offline", "e.2")}, away, []Stay{{From: tick(18)}}, false},
		"a version twice":           {[]word{push(5, "online", "e.1")}, here, nil, true},
		"a version backwards":       {[]word{push(16, "offline", "e.2"), push(20, "online", "e.3"), push(21, "offline", "e.2")}, away, nil, true},
		"before she came":           {[]word{push(-1, "offline", "e.0")}, here, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVerdict()
			records := []Record{{Name: "alice", Device: "phone", Stays: tc.stays}, {Name: "alice", Device: "tablet", Stays: tc.tablet}}
			v.judgeTold(records, map[string][]word{"alice": append([]word{first}, tc.words...)}, 5*time.Second)
			if got := v.Count(ToldOffline) > 0; got != tc.want {
				t.Errorf("told falsely: %v, want %v: %v", got, tc.want, v.Err())
			}
		})
	}
}

// Nobody who was there may be seen offline, or in another version; who was away for long may.
func TestTheLedgerSeesFalsePresence(t *testing.T) {
	stays := []Stay{{From: tick(0), To: tick(10)}, {From: tick(12)}}
	long := []Stay{{From: tick(0), To: tick(10)}, {From: tick(19)}}
	told := func(at int, state, version string) sighting { return sighting{tick(at), tick(at + 1), state, version} }
	for name, tc := range map[string]struct {
		seen  []sighting
		stays []Stay
		want  Fault
	}{
		"online all the time":       {[]sighting{told(1, "online", "e.1"), told(10, "online", ""), told(12, "online", "e.1")}, stays, ""},
		"offline while away":        {[]sighting{told(1, "online", "e.1"), told(10, "offline", "")}, stays, ""},
		"offline with a version":    {[]sighting{told(1, "online", "e.1"), told(10, "offline", "e.1")}, stays, FalseOffline},
		"offline while there":       {[]sighting{told(1, "online", "e.1"), told(3, "offline", "")}, stays, FalseOffline},
		"found too late":            {[]sighting{told(1, "online", "e.1"), told(15, "offline", "")}, stays, FalseOffline},
		"found soon":                {[]sighting{told(1, "online", "e.1"), told(13, "offline", "")}, stays, ""},
		"another version":           {[]sighting{told(1, "online", "e.1"), told(13, "online", "e.3")}, stays, FalseOffline},
		"another version's epoch":   {[]sighting{told(1, "online", "e.1"), told(13, "online", "f.1")}, stays, PresenceForgotten},
		"before she came":           {[]sighting{told(-1, "offline", "e.2"), told(1, "online", "e.3")}, stays, ""},
		"away for long":             {[]sighting{told(1, "online", "e.1"), told(16, "offline", "e.2"), told(20, "online", "e.3")}, long, ""},
		"back, and offline at once": {[]sighting{told(1, "online", "e.1"), told(20, "offline", "e.3")}, long, FalseOffline},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVerdict()
			v.judgePresence([]Record{{Name: "alice", Stays: tc.stays}}, map[string][]sighting{"alice": tc.seen}, 5*time.Second)
			if err := v.Err(); (err != nil) != (tc.want != "") {
				t.Errorf("want %q: %v", tc.want, err)
			}
			if tc.want != "" && v.Count(tc.want) != 1 {
				t.Errorf("want one %q: %v", tc.want, v)
			}
		})
	}
}
