//go:build !secondpass

package gatewaytest

import (
	"slices"
	"testing"
)

// wideStory is the good story, and what else its people read: bob has a tablet, which trusts its cursor; he and alice are in
// the hall, where she says two things; and she, and he from his phone, keep copies.
type wideStory struct {
	*story
	tablet Record
}

func (s *wideStory) records() []Record { return append(s.story.records(), s.tablet) }

func goodWideStory() *wideStory {
	first := func(offset uint64) Position { return Position{"first", offset} }
	second := func(offset uint64) Position { return Position{"second", offset} }
	mine := func(offset uint64) Position { return Position{"mine", offset} }
	hall := func(offset uint64) Position { return Position{"hall", offset} }
	s := &wideStory{story: goodStory()}
	s.bob.Device, s.alice.Rooms, s.bob.Rooms = "phone", []string{"hall"}, []string{"hall"}

	// The tablet hears what the phone does; when it comes back it is given 3 and 4 once more.
	s.tablet = Record{Name: "bob", Device: "tablet", ByCursor: true, Heard: slices.Clone(s.bob.Heard)}
	s.tablet.Heard[atResume].Pos = first(2)
	s.tablet.Heard = slices.Insert(s.tablet.Heard, atResume+1, s.bob.Heard[atResume-2:atResume]...)

	joined := Heard{Type: "joined", Room: "hall", Conn: 1, At: tick(0), Pos: hall(0), Recovered: true}
	s.alice.Heard = []Heard{{Type: "registered", Conn: 1, At: tick(0), Pos: mine(0), Recovered: true}, joined}
	s.bob.Heard = slices.Insert(s.bob.Heard, 1, joined)

	toHall, toBob, last := letter("alice", 7, 12, hall(1)), letter("alice", 8, 13, second(9)), letter("alice", 9, 14, hall(2))
	toAlice := letter("bob/phone", 1, 15, mine(3))
	toHall.To, last.To, toAlice.To = "room:hall", "room:hall", "alice"
	toAlice.From, toAlice.Device = "bob", "phone"
	toHall.Copy, toBob.Copy, toAlice.Copy = true, true, true
	s.alice.Sent, s.bob.Sent = append(s.alice.Sent, toHall, toBob, last), append(s.bob.Sent, toAlice)

	said := func(m Letter, at int, pos Position) Heard {
		h := got(m, 1, at, pos)
		h.Room = "hall"
		return h
	}
	copied := func(m Letter, at int, pos Position) Heard {
		h := got(m, 1, at, pos)
		h.Own = true
		return h
	}
	s.alice.Heard = append(s.alice.Heard,
		copied(toHall, 12, mine(1)), said(toHall, 12, hall(1)), copied(toBob, 13, mine(2)), said(last, 14, hall(2)), got(toAlice, 1, 15, mine(3)))
	s.bob.Heard = append(s.bob.Heard,
		said(toHall, 12, hall(1)), got(toBob, 2, 13, second(9)), said(last, 14, hall(2)), copied(toAlice, 15, second(10)))
	s.tablet.Heard = append(s.tablet.Heard, got(toBob, 2, 13, second(9)), copied(toAlice, 15, second(10)))
	return s
}

// The end of the wide story: what alice and bob heard last, counted from the end.
const (
	aliceHall1, aliceCopy2, aliceHall2, aliceLast = 4, 3, 2, 1
	bobHall1, bobInbox9, bobHall2, bobCopy        = 4, 3, 2, 1
	tabletInbox9, tabletCopy                      = 2, 1
)

func last(r *Record, n int) *Heard { return &r.Heard[len(r.Heard)-n] }

func lose(r *Record, n int) { i := len(r.Heard) - n; r.Heard = slices.Delete(r.Heard, i, i+1) }

// once more: something that was heard comes again behind everything, at a later offset or at its own.
func more(r *Record, n int, later uint64) *Heard {
	h := *last(r, n)
	h.Pos.Offset += later
	r.Heard = append(r.Heard, h)
	return last(r, 1)
}

func TestAGoodRecordOfManyLogsPasses(t *testing.T) {
	v := Compare(goodWideStory().records())
	v.Want(t)
	if v.Sent != 12 || v.Acked != 12 || v.Copies != 4 || v.Repeated != 2 || v.Gaps["history"] != 2 {
		t.Errorf("counted wrongly: %v", v)
	}
}

// The tablet's cursor was written before history changed, and not since: when it comes back it hears of the change again, and gets
// again what it has behind it. To one that says where it goes on nobody may tell that.
func TestACursorOfAnEarlierEpochIsForgiven(t *testing.T) {
	for byCursor, want := range map[bool]int{true: 0, false: 1} {
		s := goodWideStory()
		s.tablet.ByCursor = byCursor
		s.tablet.Heard[atResume].Pos.Offset = 4
		s.tablet.Heard = slices.Delete(s.tablet.Heard, atResume+1, atResume+3)
		gap, copied := *last(&s.tablet, 6), *last(&s.tablet, tabletCopy)
		if gap.Type != "gap" {
			t.Fatalf("%+v is no gap", gap)
		}
		gap.At, gap.Pos.Offset, copied.At = tick(17), 9, tick(18)
		s.tablet.Heard = append(s.tablet.Heard, Heard{Type: "registered", Conn: 3, At: tick(17), Pos: Position{"second", 9}}, gap, copied)
		if v := Compare(s.records()); v.Count(HoleNotAnnounced) != want || (v.Err() == nil) != byCursor {
			t.Errorf("by cursor %v: %v", byCursor, v.Err())
		}
	}
}

// What can go wrong in a room, with a copy, or on the second device is done to a good record once each.
func TestTheLedgerSeesEachFaultInEachLog(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(s *wideStory)
		want  Fault
	}{
		"lost in a room":                 {func(s *wideStory) { lose(&s.bob, bobHall2) }, LostSilently},
		"lost in a room, for its sender": {func(s *wideStory) { lose(&s.alice, aliceHall2) }, LostSilently},
		"a hole in a room":               {func(s *wideStory) { lose(&s.bob, bobHall1) }, HoleNotAnnounced},
		"joined too far on": {func(s *wideStory) {
			s.bob.Heard = append(s.bob.Heard, Heard{Type: "joined", Room: "hall", At: tick(16), Pos: Position{"hall", 3}, Recovered: true})
		}, HoleNotAnnounced},
		"twice in a room":                 {func(s *wideStory) { more(&s.bob, bobHall2, 0) }, RawDuplicate},
		"stored twice in a room":          {func(s *wideStory) { more(&s.bob, bobHall2, 1) }, ShownTwice},
		"said in a room, and in an inbox": {func(s *wideStory) { h := more(&s.bob, bobHall2, 0); h.Room, h.Pos = "", Position{"second", 11} }, Changed},
		"another room":                    {func(s *wideStory) { last(&s.bob, bobHall2).To = "room:kitchen" }, Changed},
		"members disagree about a place": {func(s *wideStory) {
			a, b := last(&s.alice, aliceHall1), last(&s.alice, aliceHall2)
			a.Pos, b.Pos = b.Pos, a.Pos
		}, TwoAtOnePosition},
		"in another order in a room":        {func(s *wideStory) { a, b := &s.alice.Sent[6], &s.alice.Sent[8]; a.N, b.N = b.N, a.N }, OutOfOrder},
		"an ack of another place in a room": {func(s *wideStory) { s.alice.Sent[8].Acks[0].Pos.Offset = 3 }, AckDisagrees},
		"a gap in the inbox excuses no room": {func(s *wideStory) {
			lose(&s.bob, bobHall2)
			s.bob.Heard = append(s.bob.Heard, Heard{Type: "gap", At: tick(16), Reason: "history", Epoch: "hall", FirstGone: 2, Pos: Position{"third", 10}})
		}, LostSilently},
		"a gap in the room does": {func(s *wideStory) {
			lose(&s.bob, bobHall2)
			s.bob.Heard = append(s.bob.Heard, Heard{Type: "gap", Room: "hall", At: tick(16), Reason: "history", Epoch: "hall", FirstGone: 2, Pos: Position{"third", 1}})
		}, LostAnnounced},

		"lost on the second device":        {func(s *wideStory) { lose(&s.tablet, tabletCopy); lose(&s.tablet, tabletInbox9) }, LostSilently},
		"a hole on the second device":      {func(s *wideStory) { lose(&s.tablet, tabletInbox9) }, HoleNotAnnounced},
		"twice on the second device":       {func(s *wideStory) { more(&s.tablet, tabletInbox9, 0) }, RawDuplicate},
		"stored twice, as the second sees": {func(s *wideStory) { more(&s.tablet, tabletInbox9, 2) }, ShownTwice},
		"a cursor too far on":              {func(s *wideStory) { s.tablet.Heard[atResume].Pos.Offset = 5 }, HoleNotAnnounced},
		"more than a cursor asks for":      {func(s *wideStory) { s.tablet.Heard[atResume].Pos.Offset = 3 }, RawDuplicate},
		"repeated without a cursor":        {func(s *wideStory) { s.tablet.ByCursor = false }, RawDuplicate},
		"devices disagree about a place":   {func(s *wideStory) { h := last(&s.tablet, tabletInbox9); h.From, h.ID = "carol", "carol-2" }, TwoAtOnePosition},
		"one gap for two devices": {func(s *wideStory) {
			i := atGap + 2 // the tablet's, behind what was repeated
			s.tablet.Heard = slices.Delete(s.tablet.Heard, i, i+1)
		}, HoleNotAnnounced},

		"no copy":                     {func(s *wideStory) { lose(&s.bob, bobCopy); lose(&s.tablet, tabletCopy) }, LostSilently},
		"no copy on the other device": {func(s *wideStory) { lose(&s.tablet, tabletCopy) }, LostSilently},
		"no copy, and a hole":         {func(s *wideStory) { lose(&s.alice, aliceCopy2) }, HoleNotAnnounced},
		"a copy stored twice":         {func(s *wideStory) { more(&s.bob, bobCopy, 1) }, ShownTwice},
		"a copy comes twice":          {func(s *wideStory) { more(&s.bob, bobCopy, 0) }, RawDuplicate},
		"a copy that nobody asked for": {func(s *wideStory) {
			h := more(&s.alice, aliceHall2, 0)
			h.Room, h.Own, h.Pos = "", true, Position{"mine", 4}
		}, Changed},
		"a copy that looks like mail": {func(s *wideStory) { last(&s.bob, bobCopy).Own = false }, Changed},
		"mail that looks like a copy": {func(s *wideStory) { last(&s.alice, aliceLast).Own = true }, Changed},
		"a copy to another receiver":  {func(s *wideStory) { last(&s.bob, bobCopy).To = "carol" }, Changed},
		"a copy where mail was acknowledged": {func(s *wideStory) {
			s.carol.Sent = append(s.carol.Sent, letter("carol", 3, 16, Position{"second", 10}))
		}, TwoAtOnePosition},
		"certainly not stored, and a copy": {func(s *wideStory) {
			m := &s.bob.Sent[0]
			m.Acks, m.Refusals = nil, []Refusal{{Code: "unavailable"}}
			lose(&s.alice, aliceLast)
		}, RefusedButDelivered},
		"a copy in another order": {func(s *wideStory) {
			m := s.alice.Sent[7]
			m.ID, m.N, m.Acks = "alice-10", 1, nil
			s.alice.Sent = append(s.alice.Sent, m)
			h := got(m, 1, 16, Position{"mine", 4})
			h.Own = true
			s.alice.Heard = append(s.alice.Heard, h)
		}, OutOfOrder},
	} {
		t.Run(name, func(t *testing.T) {
			s := goodWideStory()
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

// An ack doesn't say where the copy is. Where the sender's other device has got it, a gap is about it or is not; else any gap may be that
// came since.
func TestALostCopyIsAnnouncedByWhatCameSince(t *testing.T) {
	for name, tc := range map[string]struct {
		seen bool // by the tablet
		from uint64
		at   int
		want Fault
	}{
		"at the place the other knows": {true, 10, 16, LostAnnounced},
		"behind it":                    {true, 11, 16, LostSilently},
		"since it was sent":            {false, 10, 16, LostAnnounced},
		"before it was sent":           {false, 10, 14, LostSilently},
	} {
		t.Run(name, func(t *testing.T) {
			s := goodWideStory()
			lose(&s.bob, bobCopy)
			gap := Heard{Type: "gap", At: tick(tc.at), Reason: "history", Epoch: "second", FirstGone: tc.from, Pos: Position{"third", 10}}
			s.bob.Heard = append(s.bob.Heard, gap)
			if !tc.seen {
				lose(&s.tablet, tabletCopy)
				s.tablet.Heard = append(s.tablet.Heard, gap)
			}
			v := Compare(s.records())
			if v.Count(tc.want) == 0 || v.Count(LostSilently)+v.Count(LostAnnounced) != v.Count(tc.want) {
				t.Errorf("want it to be %s: %v", tc.want, v)
			}
		})
	}
}
