package router

import (
	"strings"

	"chatgate/internal/connection"
	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

// Pub/Sub is only the fast path; the log is the truth. A feed that notices a hole
// or another epoch reads its log. A channel that missed a number, was subscribed
// anew, or whose Redis tells another history has all its feeds compared with
// their logs, and the states of the users watched here read.

// repair reads the log for a feed's live members, one read in flight. What
// arrives meanwhile waits.
func (d *deliverer) repair(a protocol.Address, f *feed) {
	if f.repairing != nil || !f.lives() {
		return
	}
	w := &waiting{}
	f.repairing = w
	d.router.counts.repairs.Add(1)
	at := f.position()
	d.router.spawn(func() {
		for d.router.repairStep(a, w, &at) {
		}
	})
}

// repairStep reads one page and has it delivered; false when the feed is whole.
// The waiting is that of the repair it belongs to: another may have begun since.
func (r *Router) repairStep(a protocol.Address, w *waiting, at *protocol.Position) bool {
	page, err := r.readAfter(a, at.Offset)
	if err != nil {
		return r.rest(r.cfg.Probe)
	}
	return !r.ask(a, command{kind: commandRepair, address: a, repairing: w, at: *at, page: &page, next: at})
}

// repaired delivers what was read for a feed. It answers true when the feed is
// whole; otherwise next is where reading goes on.
func (d *deliverer) repaired(f *feed, cmd command) bool {
	if f == nil || f.repairing == nil || f.repairing != cmd.repairing {
		return true
	}
	if cmd.at != f.position() {
		// Everybody left and somebody came while the page was read.
		*cmd.next = f.position()
		return false
	}
	page := cmd.page
	if !page.Continues(cmd.at) {
		d.announce(cmd.address, f, page)
	}
	if f.offset != cmd.at.Offset {
		*cmd.next = f.position()
		return false // what was read is not what comes next
	}
	for i := range page.Messages {
		m := &page.Messages[i]
		f.offset = m.Offset
		d.fanOut(f, page.Epoch, m.Offset, m.Frame)
	}
	if !page.More {
		// Nothing is above: what is not there any more can't come.
		f.offset = page.Top
	}
	*cmd.next = f.position()
	if page.More {
		return false
	}
	rest, ok := f.repairing.joins(f.position())
	if !ok {
		// What waits goes beyond what was read, or was too much: read on.
		*f.repairing = waiting{}
		return false
	}
	for i := range rest {
		f.offset = rest[i].offset
		d.fanOut(f, rest[i].epoch, rest[i].offset, rest[i].frame)
	}
	f.repairing = nil
	return true
}

// announce tells live members of what they will not get, and moves the feed to
// where it goes on.
func (d *deliverer) announce(a protocol.Address, f *feed, page *history.Page) {
	old := f.position()
	s := page.Resume(old)
	f.epoch, f.offset = strings.Clone(page.Epoch), s.Start
	shared := gapFrames(a, s.Gaps)
	for i := range f.members {
		m := &f.members[i]
		gaps := shared
		if m.after != 0 {
			// A member that came later started behind its own position.
			own := page.Resume(protocol.Position{Epoch: old.Epoch, Offset: m.after})
			gaps, m.after = gapFrames(a, own.Gaps), own.Start
		}
		if m.waiting != nil {
			continue // it reads for itself
		}
		for _, frame := range gaps {
			d.router.counts.gaps.Add(1)
			d.out.Append(m.conn, frame)
		}
	}
}

func gapFrames(a protocol.Address, gaps []protocol.Gap) [][]byte {
	var frames [][]byte
	for i := range gaps {
		frames = append(frames, protocol.AppendGap(nil, gapFor(a, &gaps[i])))
	}
	return frames
}

// fanOut hands a stored message to the live members. The frame is built once.
func (d *deliverer) fanOut(f *feed, epoch string, offset uint64, head string) {
	var wire []byte
	to := 0
	for i := range f.members {
		m := &f.members[i]
		if m.waiting != nil {
			continue
		}
		if m.after != 0 {
			if offset <= m.after {
				continue
			}
			m.after = 0
		}
		if wire == nil {
			wire = d.frame(epoch, offset, head)
		}
		if d.out.AppendFrame(m.conn, wire) {
			d.router.counts.delivered.Add(1)
			to++
		}
	}
	if len(f.members) > 0 {
		d.router.traces.arrived(protocol.TraceDelivered, "", f.members[0].stay.address, f, epoch, offset, head, to)
	}
}

// checkBatch is how many logs one call looks at.
const checkBatch = 64

// check compares all feeds of the group with their logs, and reads the states of
// those who are watched, in the background and paced by its own round trips. A
// check that is asked for while one runs comes after it.
//
// Who is about to go live is not compared: what waits for him is forgotten, so
// that he reads the log once more.
func (d *deliverer) check() {
	d.doubtAll()
	for _, f := range d.feeds {
		f.distrust()
	}
	if d.checking {
		d.checkAgain = true
		return
	}
	addresses := make([]protocol.Address, 0, len(d.feeds))
	for a, f := range d.feeds {
		if f.lives() {
			addresses = append(addresses, a)
		}
	}
	if len(addresses) == 0 {
		return
	}
	d.checking = true
	d.router.counts.checks.Add(1)
	d.router.spawn(func() { d.router.checkAll(d, addresses) })
}

func (r *Router) checkAll(d *deliverer, addresses []protocol.Address) {
	for len(addresses) > 0 {
		// On Cluster a group is one partition, elsewhere everything is one group.
		some := addresses[:min(checkBatch, len(addresses))]
		heads, err := r.cfg.History.Heads(r.ctx, some...)
		if err != nil {
			if !r.rest(r.cfg.Probe) {
				return
			}
			continue
		}
		addresses = addresses[len(some):]
		cmd := command{kind: commandHeads, addresses: some, heads: heads}
		select {
		case d.commands <- cmd:
		case <-d.stopped:
			return
		}
	}
	select {
	case d.commands <- command{kind: commandHeads}: // the end
	case <-d.stopped:
	}
}

// compare repairs the feeds that are behind their logs. No addresses: that was all.
func (d *deliverer) compare(addresses []protocol.Address, heads []history.Log) {
	for i, a := range addresses {
		d.reach(a, protocol.Position{Epoch: heads[i].Epoch, Offset: heads[i].Top})
	}
	if len(addresses) == 0 {
		d.checking = false
		if d.checkAgain {
			d.checkAgain = false
			d.check()
		}
	}
}

// reach repairs a feed that is behind where its log was seen to stand.
func (d *deliverer) reach(a protocol.Address, at protocol.Position) {
	f := d.feeds[a]
	if f != nil {
		f.distrust()
	}
	switch {
	case a.Kind() == 'w':
		if u := protocol.UserID(a.Name()); d.watched[u] != nil {
			d.doubt(u)
		}
	case f == nil || !f.lives() || at.Epoch == f.epoch && at.Offset <= f.offset:
	case f.repairing != nil:
		// The read under way may be older than what was just seen: it goes on.
		f.repairing.drop()
	default:
		d.repair(a, f)
	}
}

// wireOverhead is more than what appendWire puts around a message.
const wireOverhead = 10 + 96

// appendWire builds the WebSocket frame of a message at its position.
func appendWire(dst []byte, epoch string, offset uint64, head string) []byte {
	var tail [96]byte
	t := protocol.AppendMessageTail(tail[:0], epoch, offset)
	dst = connection.AppendTextHeader(dst, len(head)+len(t))
	dst = append(dst, head...)
	return append(dst, t...)
}
