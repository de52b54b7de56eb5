package router

import (
	"slices"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// What the registry publishes of a room's members is collected for a window and given to those who are in the room in one frame: who
// reloads a page is not told of, and a room that fills up costs its members two frames a second, not one for each who comes. It is no
// part of any log: what is lost stays lost, and the count tells.

// rumour is what happened in a room during a window.
type rumour struct {
	count   int
	changes map[protocol.UserID]bool // joined, else left; who did both is not in it
	many    bool                     // too many to be named
}

// mostNamed is how many joined and left one frame names.
const mostNamed = 100

// hearMembers takes in one envelope.
func (d *deliverer) hearMembers(c protocol.MembersChange) {
	a := protocol.RoomAddress(c.Room)
	if d.feeds[a] == nil {
		return
	}
	r := d.rumours[a]
	if r == nil {
		r = &rumour{changes: make(map[protocol.UserID]bool)}
		if len(d.rumours) == 0 && len(d.due) == 0 {
			d.tellAt.Reset(d.router.cfg.MemberWindow)
		}
		d.rumours[a] = r
	}
	r.count = c.Count
	if c.Changes == "" || r.many {
		r.many, r.changes = true, nil
		return
	}
	for rest := c.Changes; rest != ""; {
		var user protocol.UserID
		var joined bool
		user, joined, rest, _ = protocol.NextChange(rest)
		if before, ok := r.changes[user]; ok && before != joined {
			delete(r.changes, user)
		} else {
			r.changes[user] = joined
		}
	}
	// Twice as many may cancel each other out yet; more are not kept.
	if len(r.changes) > 2*mostNamed {
		r.many, r.changes = true, nil
	}
}

// told is a rumour that is to be told.
type told struct {
	address protocol.Address
	rumour  *rumour
}

const (
	// toldAtOnce is how many rooms all groups tell of before it is somebody else's turn.
	// Who is in thousands that all change at a time would else be taken for a slow
	// consumer: an outbox holds so many frames, however fast its client reads.
	toldAtOnce = 256
	// tellPause is how long a client has to take those.
	tellPause = 5 * time.Millisecond
)

// tellMembers ends the window, or goes on with what it left.
func (d *deliverer) tellMembers() {
	if len(d.due) == 0 {
		for a, r := range d.rumours {
			d.due = append(d.due, told{a, r})
		}
		clear(d.rumours)
	}
	n := min(len(d.due), max(1, toldAtOnce/len(d.router.deliverers)))
	d.tellOf(d.due[:n])
	clear(d.due[:n])
	switch d.due = d.due[n:]; {
	case len(d.due) > 0:
		d.tellAt.Reset(tellPause)
		return
	case len(d.rumours) > 0:
		d.tellAt.Reset(d.router.cfg.MemberWindow)
	}
	d.due = nil
}

func (d *deliverer) tellOf(some []told) {
	for _, t := range some {
		f := d.feeds[t.address]
		if f == nil {
			continue
		}
		payload := t.rumour.frame(protocol.RoomID(t.address.Name()), d.router.cfg.PushBytes)
		if payload == nil {
			continue
		}
		d.wire = append(connection.AppendTextHeader(d.wire[:0], len(payload)), payload...)
		for i := range f.members {
			// Who still catches up is in the room as well, from his `joined` on.
			if m := &f.members[i]; m.stay.followed.Load() && d.out.AppendFrame(m.conn, d.wire) {
				d.router.counts.memberPushes.Add(1)
			}
		}
	}
}

// frame is what the members are told; nil: nothing.
func (r *rumour) frame(room protocol.RoomID, most int) []byte {
	push := protocol.MembersPush{Room: room, Count: r.count, Named: !r.many && len(r.changes) <= mostNamed}
	if push.Named {
		if len(r.changes) == 0 {
			return nil // all who came have gone, and all who went are back
		}
		for user, joined := range r.changes {
			if joined {
				push.Joined = append(push.Joined, user)
			} else {
				push.Left = append(push.Left, user)
			}
		}
		slices.Sort(push.Joined)
		slices.Sort(push.Left)
	}
	payload := protocol.AppendMembersPush(nil, &push)
	if push.Named && len(payload) > most {
		payload = protocol.AppendMembersPush(nil, &protocol.MembersPush{Room: room, Count: r.count})
	}
	return payload
}

// stoppedTimer is a timer that only Reset starts.
func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}
