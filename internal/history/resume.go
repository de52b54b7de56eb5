package history

import (
	"slices"

	"chatgate/internal/protocol"
)

// Resumption is where a receiver goes on, and what it misses.
type Resumption struct {
	// Start is before the first message it will get, in the log's epoch.
	Start uint64
	Gaps  []protocol.Gap
}

// Recovered reports whether nothing is missing between the position that was
// asked for and Start.
func (r Resumption) Recovered() bool { return len(r.Gaps) == 0 }

// Continues reports whether the log goes on from a position with nothing missing.
func (l *Log) Continues(at protocol.Position) bool {
	return at.Epoch == l.Epoch && at.Offset <= l.Top && at.Offset+1 >= l.First
}

// Resume judges a position that a client gives. A position without an epoch asks
// for everything above its offset that is kept.
//
// Epochs are compared before offsets: an offset means something in its own epoch
// only. Offsets go on over a roll, so what a client had before the end of an old
// epoch is below what it gets next.
func (l *Log) Resume(at protocol.Position) Resumption {
	var r Resumption
	if at.Epoch == "" && at.Offset > l.Top {
		at.Epoch = l.Epoch // it has more than the log, whatever epoch it means
	}
	switch end, known := l.end(at.Epoch); {
	case at.Epoch == "":
		r.Start = max(at.Offset, l.First-1)
		if at.Offset > 0 && at.Offset < r.Start {
			r.trimmed(l, at.Offset)
		}
		return r
	case at.Epoch == l.Epoch && at.Offset > l.Top:
		r.Start = l.Top
		r.Gaps = []protocol.Gap{{Epoch: l.Epoch, From: l.Top + 1, To: at.Offset, Reason: protocol.GapAhead, Next: l.position(l.Top)}}
		return r
	case at.Epoch == l.Epoch:
		r.Start = at.Offset
	case !known:
		// An epoch this log never had, or forgot: all that is kept may be new.
		r.Start = l.First - 1
		r.Gaps = []protocol.Gap{{Epoch: at.Epoch, From: at.Offset + 1, Reason: protocol.GapHistory, Next: l.position(r.Start)}}
		r.rolled(l, len(l.Rolls))
		if r.Start > 0 {
			r.trimmed(l, 0) // acknowledged in the present epoch, and dropped before this client came
		}
		return r
	default:
		r.Start = min(at.Offset, end)
		r.Gaps = []protocol.Gap{{Epoch: at.Epoch, From: end + 1, Reason: protocol.GapHistory, Next: l.position(r.Start)}}
		if at.Offset > end {
			// That it has these is no reason to say less: more may have been above them.
			r.Gaps = append(r.Gaps, protocol.Gap{
				Epoch: at.Epoch, From: end + 1, To: at.Offset, Reason: protocol.GapAhead, Next: l.position(r.Start),
			})
		}
		r.rolled(l, slices.IndexFunc(l.Rolls, func(p protocol.Position) bool { return p.Epoch == at.Epoch }))
	}
	if r.Start+1 < l.First {
		r.trimmed(l, r.Start)
	}
	return r
}

// rolled names the end of each epoch that came after the one so many rolls ago: what was acknowledged behind it is lost, and nobody
// else tells.
func (r *Resumption) rolled(l *Log, ago int) {
	for i := ago - 1; i >= 0; i-- {
		end, _ := l.end(l.Rolls[i].Epoch)
		r.Gaps = append(r.Gaps, protocol.Gap{Epoch: l.Rolls[i].Epoch, From: end + 1, Reason: protocol.GapHistory, Next: l.position(r.Start)})
	}
}

func (r *Resumption) trimmed(l *Log, from uint64) {
	r.Start = l.First - 1
	r.Gaps = append(r.Gaps, protocol.Gap{Epoch: l.Epoch, From: from + 1, To: r.Start, Reason: protocol.GapTrimmed, Next: l.position(r.Start)})
}

func (l *Log) position(offset uint64) protocol.Position {
	return protocol.Position{Epoch: l.Epoch, Offset: offset}
}

// end returns where an earlier epoch ended, as far as what followed still tells:
// a later roll may have lost more than the epoch's own end.
func (l *Log) end(epoch string) (uint64, bool) {
	least := l.Top
	for _, roll := range l.Rolls {
		least = min(least, roll.Offset)
		if roll.Epoch == epoch {
			return least, true
		}
	}
	return 0, false
}
