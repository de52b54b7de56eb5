package router

import (
	"encoding/binary"
	"time"

	"chatgate/internal/protocol"
)

// Redis may lose the end of what it acknowledged: a restart without AOF, a
// failover. Every gateway keeps what it had acknowledged lately, and when Redis
// tells another history sends it again before anything newer. What survived is
// known by its dedupe record and not stored twice; what was lost is stored now.

// recent is what a lane had acknowledged in the last HealFor, encoded one behind
// the other. It belongs to the lane's worker.
type recent struct {
	chunks []recentChunk
	bytes  int
	began  time.Time // what the times of records count from
}

type recentChunk struct {
	newest time.Time
	b      []byte
}

const (
	// recentChunkBytes is the step in which memory is taken and given back.
	recentChunkBytes = 64 << 10
	// recentHead is the bytes of a record before address, frame and origin: the three
	// lengths, both hashes, the message's time, and when it was acknowledged.
	recentHead  = recentAcked + 8
	recentTime  = recentAcked - 8
	recentAcked = 3*4 + 16 + 8 + 8
)

// add copies an acknowledged message.
func (k *recent) add(m *Message, now time.Time) {
	if k.began.IsZero() {
		k.began = now
	}
	need := recentHead + len(m.To) + len(m.Frame) + len(m.Origin)
	last := len(k.chunks) - 1
	if last < 0 || len(k.chunks[last].b)+need > cap(k.chunks[last].b) {
		size := max(need, recentChunkBytes)
		k.chunks = append(k.chunks, recentChunk{b: make([]byte, 0, size)})
		k.bytes += size
		last++
	}
	c := &k.chunks[last]
	c.newest = now
	c.b = binary.BigEndian.AppendUint32(c.b, uint32(len(m.To)))
	c.b = binary.BigEndian.AppendUint32(c.b, uint32(len(m.Frame)))
	c.b = binary.BigEndian.AppendUint32(c.b, uint32(len(m.Origin)))
	c.b = append(append(c.b, m.key[:]...), m.content[:]...)
	c.b = binary.BigEndian.AppendUint64(c.b, uint64(m.Ts))
	c.b = binary.BigEndian.AppendUint64(c.b, k.moment(now))
	c.b = append(append(append(c.b, m.To...), m.Frame...), m.Origin...)
}

// moment is a time as a record holds it, ns. Nothing is older than the first record.
func (k *recent) moment(t time.Time) uint64 { return uint64(max(0, t.Sub(k.began))) }

// trim forgets what is older than since, and what is over so many bytes; it
// returns how many chunks had to go for the latter.
func (k *recent) trim(since time.Time, bytes int) (early int) {
	n := 0
	for n < len(k.chunks) {
		old := k.chunks[n].newest.Before(since)
		if !old && k.bytes <= bytes {
			break
		}
		if !old {
			early++
		}
		k.bytes -= cap(k.chunks[n].b)
		n++
	}
	if n > 0 {
		rest := copy(k.chunks, k.chunks[n:])
		clear(k.chunks[rest:])
		k.chunks = k.chunks[:rest]
	}
	return early
}

// each calls f with every record that was acknowledged since then, in that order. A
// chunk may hold older ones: they are surely stored, and what knows a repeat of
// them may be gone.
func (k *recent) each(since time.Time, f func(c *recentChunk, record []byte)) {
	first := k.moment(since)
	for i := range k.chunks {
		for b := k.chunks[i].b; len(b) > 0; {
			to, frame, origin := recentLengths(b)
			size := recentHead + to + frame + origin
			if binary.BigEndian.Uint64(b[recentAcked:]) >= first {
				f(&k.chunks[i], b[:size:size])
			}
			b = b[size:]
		}
	}
}

func recentLengths(b []byte) (to, frame, origin int) {
	return int(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint32(b[4:])), int(binary.BigEndian.Uint32(b[8:]))
}

// renew makes everything acknowledged since then count as acknowledged now.
func (k *recent) renew(since, now time.Time) {
	k.each(since, func(c *recentChunk, b []byte) {
		c.newest = now
		binary.BigEndian.PutUint64(b[recentAcked:], k.moment(now))
	})
}

// messages returns everything acknowledged since then, in that order. Frames and
// origins alias what is kept.
func (k *recent) messages(since time.Time) []*Message {
	var out []*Message
	k.each(since, func(_ *recentChunk, b []byte) {
		to, frame, _ := recentLengths(b)
		rest := b[recentHead:]
		out = append(out, &Message{
			key: [16]byte(b[12:28]), content: [8]byte(b[28:36]), Ts: int64(binary.BigEndian.Uint64(b[recentTime:])),
			To: protocol.Address(rest[:to]), Frame: rest[to : to+frame : to+frame], Origin: rest[to+frame:],
		})
	})
	return out
}

// heal sends again what was acknowledged under the history before, and takes the
// new line for known when all of it is stored.
func (l *lane) heal(line string) error {
	l.mu.Lock()
	alive := l.alive
	l.mu.Unlock()
	// However long Redis was away: what counts is how old it was when Redis was
	// last heard. What is older is surely stored, and its dedupe record may be gone.
	since := alive.Add(-l.router.cfg.HealFor)
	l.recent.trim(since, l.router.cfg.HealBytes)
	all := l.recent.messages(since)
	l.router.cfg.Log.Warn("redis tells another history, sending again", "group", string(l.group), "messages", len(all))
	for len(all) > 0 {
		n, bytes := 0, 0
		for n < len(all) && n < l.router.cfg.BatchMessages && (n == 0 || bytes+all[n].carried() <= l.router.cfg.BatchBytes) {
			bytes += all[n].carried()
			n++
		}
		if _, err := l.attempt(all[:n], line, l.router.cfg.Attempt, false); err != nil {
			return err
		}
		l.router.counts.healed.Add(uint64(n))
		all = all[n:]
	}
	l.line = line
	l.recent.renew(since, time.Now()) // the new history has them since a moment ago
	return nil
}

// hear tells the lane the history line of a pulse: an idle one must heal too.
func (l *lane) hear(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heard == line {
		if !l.stale {
			l.alive = time.Now()
		}
		return
	}
	if l.heard != "" && !l.closed {
		// A worker that is busy, or probing, sees it when it is done.
		l.nudged, l.stale = true, true
		if !l.busy {
			l.busy = true
			l.router.running.Add(1)
			go l.work()
		}
	}
	l.heard = line
}
