package gatewaytest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Fault is a promise that can be broken.
type Fault string

// A test names in Want what its fault may cause; nothing else may be there.
const (
	// LostSilently: acknowledged, never shown, and no gap announced it to the receiver. Nothing may cause it.
	LostSilently Fault = "lost silently"
	// LostAnnounced: acknowledged and never shown, and a gap says so. Only a Redis that loses data may cause it.
	LostAnnounced Fault = "lost, announced"
	// ShownTwice: one (from, id) at two positions, with no other history between: by its offsets a client shows it twice.
	ShownTwice Fault = "shown twice"
	// OutOfOrder: against the order sent by one connection, or against an acknowledgement older than the sending.
	OutOfOrder Fault = "out of order"
	// RawDuplicate: an offset not above the last of its epoch. The people resume exactly, so nothing should cause it.
	RawDuplicate Fault = "raw duplicates"
	// HoleNotAnnounced: the next position doesn't follow, and no gap stands between.
	HoleNotAnnounced Fault = "holes not announced"
	// Changed: content, sender or receiver are not those that were sent.
	Changed Fault = "changed"
	// NeverSent: received, and nobody sent it.
	NeverSent Fault = "never sent"
	// AckDisagrees: the position that was acknowledged is not the one that was received, or another acknowledgement's.
	AckDisagrees Fault = "acks that disagree"
	// TwoAtOnePosition: two messages at one offset of one epoch.
	TwoAtOnePosition Fault = "two at one position"
	// RefusedButDelivered: refused as certainly not stored, each time, and received.
	RefusedButDelivered Fault = "refused, delivered"
	// FalseOffline: somebody who was there was seen offline, or with the version of another state.
	FalseOffline Fault = "false offline"
	// ToldOffline: a watcher was told that somebody went offline who never left, or a version twice or backwards. Nothing may
	// cause it.
	ToldOffline Fault = "told offline"
	// PresenceForgotten: the state of somebody who was there began anew. Only a Redis that loses data may cause it.
	PresenceForgotten Fault = "presence forgotten"
	// Dismissed: somebody was told not to come back.
	Dismissed Fault = "dismissed"
)

// Faults are all of them.
var Faults = []Fault{
	LostSilently, LostAnnounced, ShownTwice, OutOfOrder, RawDuplicate, HoleNotAnnounced, Changed, NeverSent, AckDisagrees,
	TwoAtOnePosition, RefusedButDelivered, FalseOffline, ToldOffline, PresenceForgotten, Dismissed,
}

// Verdict is what Check found.
type Verdict struct {
	Sent, Tries, Acked     int    // messages, sendings of them, those acknowledged
	Received, Shown, Again int    // message frames, those shown, those dropped by (from, id) after another history
	Copies, Repeated       int    // of those shown, a sender's own; those that came again for a cursor
	Statuses, Errors       Counts // first acknowledgements by status; errors by code
	Gaps, RoomGaps         Counts // of own logs, and of rooms', by reason
	Ends                   Ends   // connections ended by the other side, by close code
	Sightings, Words       int    // what the observer was told when it asked, and of those it watches
	Absent                 int    // people who were away for longer than the grace
	FromAck, FromSent      Times  // until shown
	list                   map[Fault][]string
	deliveries             []delivery
	ackTimes               []time.Time
	refusals               map[string][]time.Duration
}

// Counts and Ends are how often something was seen.
type (
	Counts map[string]int
	Ends   map[int]int
)

func (e Ends) add(others map[int]int) {
	for code, n := range others {
		e[code] += n
	}
}

type delivery struct{ sent, acked, shown time.Time }

// Times are the percentiles of a duration.
type Times struct{ P50, P99, P100 time.Duration }

func newVerdict() *Verdict {
	return &Verdict{Statuses: make(Counts), Errors: make(Counts), Gaps: make(Counts), RoomGaps: make(Counts), Ends: make(Ends), list: make(map[Fault][]string), refusals: make(map[string][]time.Duration)}
}

func (v *Verdict) fault(f Fault, format string, args ...any) {
	v.list[f] = append(v.list[f], fmt.Sprintf(format, args...))
}

// Count says how often a promise was broken, List tells of each.
func (v *Verdict) Count(f Fault) int     { return len(v.list[f]) }
func (v *Verdict) List(f Fault) []string { return v.list[f] }

func (v *Verdict) measure() {
	slices.SortFunc(v.ackTimes, time.Time.Compare)
	var acked, sent []time.Duration
	for _, d := range v.deliveries {
		acked, sent = append(acked, max(0, d.shown.Sub(d.acked))), append(sent, d.shown.Sub(d.sent))
	}
	v.FromAck, v.FromSent = timesOf(acked), timesOf(sent)
}

func timesOf(all []time.Duration) Times {
	if len(all) == 0 {
		return Times{}
	}
	slices.Sort(all)
	return Times{P50: all[(len(all)-1)/2], P99: all[(len(all)-1)*99/100], P100: all[len(all)-1]}
}

// ShownAfter is the time from the acknowledgement to the showing of what was acknowledged between two moments.
func (v *Verdict) ShownAfter(from, to time.Time) Times {
	var all []time.Duration
	for _, d := range v.deliveries {
		if !d.acked.Before(from) && d.acked.Before(to) {
			all = append(all, max(0, d.shown.Sub(d.acked)))
		}
	}
	return timesOf(all)
}

// RefusedAfter is how long senders waited for an error.
func (v *Verdict) RefusedAfter(code string) Times { return timesOf(slices.Clone(v.refusals[code])) }

// FirstAckAfter is how long after a moment the first acknowledgement came; false when none did.
func (v *Verdict) FirstAckAfter(moment time.Time) (time.Duration, bool) {
	i, _ := slices.BinarySearchFunc(v.ackTimes, moment, time.Time.Compare)
	if i == len(v.ackTimes) {
		return 0, false
	}
	return v.ackTimes[i].Sub(moment), true
}

// LongestSilence is the longest time between two acknowledgements, whoever they were for.
func (v *Verdict) LongestSilence() (longest time.Duration) {
	for i := 1; i < len(v.ackTimes); i++ {
		longest = max(longest, v.ackTimes[i].Sub(v.ackTimes[i-1]))
	}
	return longest
}

// Err lists every broken promise but those that may be; nil when there is none.
func (v *Verdict) Err(may ...Fault) error {
	var b strings.Builder
	for _, f := range Faults {
		if len(v.list[f]) == 0 || slices.Contains(may, f) {
			continue
		}
		fmt.Fprintf(&b, "\n%s: %d", f, len(v.list[f]))
		for i, text := range v.list[f] {
			if i == 10 {
				b.WriteString("\n    …")
				break
			}
			b.WriteString("\n    " + text)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return fmt.Errorf("the ledgers disagree:%s\n%v", b.String(), v)
}

// Want fails the test for every broken promise but those that its fault may break, and when there was nothing to compare.
func (v *Verdict) Want(t testing.TB, may ...Fault) {
	t.Helper()
	if err := v.Err(may...); err != nil {
		t.Error(err)
	}
	if v.Acked == 0 || v.Shown == 0 {
		t.Errorf("%d messages were acknowledged and %d shown: that proves nothing", v.Acked, v.Shown)
	}
}

// String is a summary of one paragraph.
func (v *Verdict) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d sent (%d times), %d acknowledged%s, %d received, %d shown", v.Sent, v.Tries, v.Acked, textOf(v.Statuses), v.Received, v.Shown)
	fmt.Fprintf(&b, " (%d copies)", v.Copies)
	if v.Repeated > 0 {
		fmt.Fprintf(&b, ", %d repeated for cursors", v.Repeated)
	}
	fmt.Fprintf(&b, "; ack to shown p50 %v p99 %v p100 %v; sent to shown p100 %v; longest without an ack %v", short(v.FromAck.P50),
		short(v.FromAck.P99), short(v.FromAck.P100), short(v.FromSent.P100), short(v.LongestSilence()))
	for what, counts := range map[string]Counts{"errors": v.Errors, "gaps": v.Gaps, "gaps of rooms": v.RoomGaps} {
		if len(counts) > 0 {
			fmt.Fprintf(&b, "; %s%s", what, textOf(counts))
		}
	}
	if len(v.Ends) > 0 {
		fmt.Fprintf(&b, "; ends%s", textOf(v.Ends))
	}
	for _, f := range Faults {
		if n := len(v.list[f]); n > 0 {
			fmt.Fprintf(&b, "; %s %d", strings.ToUpper(string(f)), n)
		}
	}
	return b.String()
}

func short(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// textOf lists counts in the order of their keys.
func textOf[K int | string](counts map[K]int) string {
	if len(counts) == 0 {
		return ""
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%v %d", key, counts[key]))
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
