package gatewaytest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Position is a place in a log.
type Position struct {
	Epoch  string `json:"epoch"`
	Offset uint64 `json:"offset"`
}

func (p Position) String() string { return p.Epoch + ":" + strconv.FormatUint(p.Offset, 10) }

// Heard is a frame that says something about a log, as it came: registered, joined, message or gap.
type Heard struct {
	Type string
	Room string // whose log; empty: the own one
	Conn int    // which of a person's connections brought it, from 1
	At   time.Time
	// Pos is the position of a message, the one that registered or joined gave, or the one at which it goes on behind a gap.
	Pos               Position
	Recovered         bool   // of registered and joined
	From, ID, To      string // of a message; to a room as room:NAME
	Content           string // of a message
	Own               bool   // of a message: the sender's copy
	Reason            string // of a gap
	Epoch             string // of a gap: whose offsets are missing
	FirstGone, ToGone uint64 // of a gap: both included; ToGone 0: the end is not known
}

// hear takes from a frame what concerns a log; false when there is nothing.
func hear(f *Frame, conn int) (Heard, bool) {
	h := Heard{Type: f.Type, Room: f.Room, Conn: conn, At: f.At, Pos: Position{f.Epoch, f.Offset}}
	switch {
	case f.Type == "registered" || f.Type == "joined":
		h.Recovered = f.Recovered
	case f.Type == "message" && !f.Ephemeral:
		h.From, h.ID, h.To, h.Content, h.Own = f.Sender(), f.ID, text(f.To), string(f.Content), f.Own
		if f.Room != "" {
			h.To = roomPrefix + f.Room
		}
		if f.Own {
			h.Room = "" // a copy has a position in the own log, also of what was said in a room
		}
	case f.Type == "gap":
		h.Reason, h.Epoch, h.Pos = f.Reason, f.Epoch, Position{}
		h.FirstGone, _ = strconv.ParseUint(text(f.From), 10, 64)
		h.ToGone, _ = strconv.ParseUint(text(f.To), 10, 64)
		_ = json.Unmarshal(f.Next, &h.Pos) // a gap that leads nowhere is found by what follows it
	default:
		return h, false
	}
	return h, true
}

// roomPrefix marks the address of a room; any other is a user's.
const roomPrefix = "room:"

// announces reports whether a gap says that the message of this position may be missing.
func (h *Heard) announces(at Position) bool {
	return h.Type == "gap" && h.Epoch == at.Epoch && at.Offset >= h.FirstGone && (h.ToGone == 0 || at.Offset <= h.ToGone)
}

// rolls reports whether this tells of another history.
func (h *Heard) rolls() bool {
	return h.Type == "gap" && (h.Reason == "history" || h.Reason == "ahead")
}

// A letter is known by who sent it and the id it was given.
type letterKey struct{ from, id string }

// What becomes of something heard.
type fate uint8

const (
	moved    fate = iota // no message: it moved the position, or didn't
	shown                // a person sees it
	old                  // its offset is not above the last one of its epoch: dropped
	repeated             // so too, but a device that goes on by its cursor has asked for it
	again                // its (from, id) is here already: dropped
)

// inbox applies the rules that docs/protocol.md gives to clients, and so decides what a person is shown.
type inbox struct {
	known bool // there is a position
	at    Position
	gapOf string // epoch of the gap that led here, while nothing else has come; what else is told of it leads to the same place
	// byCursor is the way of a device that doesn't say where it goes on: what it has kept since its cursor was written comes
	// again. back is the next offset of that, 0: none. The cursor may be of an earlier epoch, whose gap comes again too.
	byCursor bool
	back     uint64
	epochs   map[string]bool // in which it has been
	has      map[letterKey]bool
}

// take applies the rules to the next thing heard. The complaint says where something is missing and nobody said so.
func (in *inbox) take(h *Heard) (f fate, complaint string) {
	if h.Type == "gap" {
		return moved, in.gap(h)
	}
	in.gapOf = ""
	if h.Type == "registered" || h.Type == "joined" {
		return moved, in.registered(h)
	}
	switch {
	case h.Pos.Epoch == in.at.Epoch && h.Pos.Offset <= in.at.Offset && h.Pos.Offset == in.back:
		in.back++
		return repeated, ""
	case h.Pos.Epoch == in.at.Epoch && h.Pos.Offset <= in.at.Offset:
		return old, ""
	case h.Pos.Epoch != in.at.Epoch:
		complaint = fmt.Sprintf("%v follows %v, another epoch without a gap", h.Pos, in.at)
	case h.Pos.Offset != in.at.Offset+1:
		complaint = fmt.Sprintf("%v follows %v, a hole without a gap", h.Pos, in.at)
	}
	in.known, in.at = true, h.Pos
	key := letterKey{h.From, h.ID}
	if in.has[key] {
		return again, complaint
	}
	if in.has == nil {
		in.has = make(map[letterKey]bool)
	}
	in.has[key] = true
	return shown, complaint
}

// registered takes the position that was given, unless gaps follow: then it is theirs to move it, since a client whose
// connection breaks before they come must ask from the old position again, or it would never hear of them.
func (in *inbox) registered(h *Heard) (complaint string) {
	in.back = 0
	switch {
	case !in.known:
		in.known, in.at = true, h.Pos
		return ""
	case !h.Recovered:
		return ""
	case h.Pos.Epoch != in.at.Epoch || h.Pos.Offset > in.at.Offset:
		complaint = fmt.Sprintf("%s at %v as if nothing lay between it and %v", h.Type, h.Pos, in.at)
		in.at = h.Pos
	case in.byCursor:
		in.back = h.Pos.Offset + 1
	}
	return complaint
}

func (in *inbox) gap(h *Heard) (complaint string) {
	before, second := in.at, in.gapOf != "" && h.Pos == in.at
	in.known, in.at, in.gapOf = true, h.Pos, h.Epoch
	if in.epochs == nil {
		in.epochs = make(map[string]bool)
	}
	in.epochs[before.Epoch] = true
	switch {
	case in.byCursor && h.Reason == "history" && in.epochs[h.Epoch] && h.Epoch != before.Epoch:
	case second: // it says more of what the first one led over
	case h.Epoch != before.Epoch:
		return fmt.Sprintf("a gap in epoch %s at %v", h.Epoch, before)
	case h.FirstGone > before.Offset+1 && h.Pos.Offset > before.Offset:
		return fmt.Sprintf("a gap that begins at %d behind %v and goes on at %v", h.FirstGone, before, h.Pos)
	case h.Reason == "trimmed" && h.ToGone != h.Pos.Offset:
		return fmt.Sprintf("a gap to %d that goes on at %v", h.ToGone, h.Pos)
	}
	return ""
}
