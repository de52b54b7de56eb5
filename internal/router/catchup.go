package router

import (
	"context"
	"time"

	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

const (
	// pageMessages is how many messages one read of a log asks for.
	pageMessages = 64
	// reads bounds the reads of logs and states under way, whoever they are for.
	reads = 16
	// outboxPause is how often a full outbox is looked at again while a backlog
	// waits for it.
	outboxPause = 5 * time.Millisecond
)

// readAfter reads a page above a position, at most so many at a time.
func (r *Router) readAfter(a protocol.Address, offset uint64) (history.Page, error) {
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-r.ctx.Done():
		return history.Page{}, context.Cause(r.ctx)
	}
	r.counts.reads.Add(1)
	return r.cfg.History.After(r.ctx, a, offset, pageMessages)
}

// catchUp reads the log for one connection, in the background, at the pace of its
// outbox, until it is live or gone.
func (r *Router) catchUp(s *Stay, at protocol.Position) {
	r.spawn(func() {
		for r.step(s, &at) {
		}
	})
}

// step delivers one page; false when the member is live or gone.
func (r *Router) step(s *Stay, at *protocol.Position) bool {
	if !r.awaitRoom(s, 0) {
		return false
	}
	page, err := r.readAfter(s.address, at.Offset)
	if err != nil {
		return r.rest(r.cfg.Probe)
	}
	asked := at.Offset
	if !page.Continues(*at) {
		resumed := page.Resume(*at)
		for i := range resumed.Gaps {
			r.counts.gaps.Add(1)
			s.conn.Append(protocol.AppendGap(nil, gapFor(s.address, &resumed.Gaps[i])))
		}
		*at = protocol.Position{Epoch: page.Epoch, Offset: resumed.Start}
		s.conn.Flush()
		if resumed.Start != asked {
			return true
		}
	}
	var wire []byte
	for i := range page.Messages {
		m := &page.Messages[i]
		wire = appendWire(wire[:0], page.Epoch, m.Offset, m.Frame)
		if !r.awaitRoom(s, len(wire)) || !s.append(wire) {
			return false
		}
		r.counts.delivered.Add(1)
		at.Offset = m.Offset
	}
	s.conn.Flush()
	if page.More {
		return true
	}
	// Nothing is above: what is not there any more can't come.
	at.Offset = page.Top
	if r.live(s, *at) {
		s.conn.Flush()
		return false
	}
	return true
}

// awaitRoom waits until the client has taken half of what may wait for it, and a
// frame of that size fits too; false when the connection or its stay ends.
func (r *Router) awaitRoom(s *Stay, size int) bool {
	for {
		if s.over() {
			return false
		}
		if s.conn.Roomy(size) {
			return true
		}
		s.conn.Flush()
		if !r.rest(outboxPause) {
			return false
		}
	}
}

// rest pauses; false when the router ends.
func (r *Router) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

func gapFor(a protocol.Address, g *protocol.Gap) *protocol.Gap {
	if a.Kind() == 'r' {
		g.Room = protocol.RoomID(a.Name())
	}
	return g
}
