package connection

import (
	"sync/atomic"
	"time"
)

// Stats is what a Manager has counted since it was made, and two gauges.
type Stats struct {
	Connections int64 // now
	Users       int64 // with a connection, now
	Writers     int64 // writer goroutines, now: sockets that take no more

	Added     uint64
	Ends      [numKinds]uint64 // by Kind
	BytesIn   uint64           // as read from sockets, frame headers and control frames included
	BytesOut  uint64           // as taken by sockets, the same
	FramesIn  uint64           // messages of clients
	FramesOut uint64           // messages written to clients
	Pings     uint64           // sent
	Refused   uint64           // frames that were not taken: the connection was closed, or closed for them
	Discarded uint64           // frames taken and not written before the end
}

// SlowConsumers is the number of connections closed because their client did not read.
func (s *Stats) SlowConsumers() uint64 { return s.Ends[KindSlowConsumer] }

// Stats adds up the counters. The sums are not of one moment.
func (m *Manager) Stats() Stats {
	s := Stats{Connections: m.count.Load(), Users: m.users.Load(), Added: m.added.Load()}
	for i := range m.tallies {
		m.tallies[i].addTo(&s)
	}
	return s
}

// tallyShards is how many sets of counters the connections of a Manager share, so that processors don't fight over them.
const tallyShards = 16

// tally is one set of counters. A nil tally, of a connection that was not added, counts nothing.
type tally struct {
	bytesIn, bytesOut, inFrames, outFrames atomic.Uint64
	pings, refusals, discards              atomic.Uint64
	writers                                atomic.Int64
	ends                                   [numKinds]atomic.Uint64
	_                                      [64]byte // the next set is in another cache line
}

func (t *tally) addTo(s *Stats) {
	s.BytesIn += t.bytesIn.Load()
	s.BytesOut += t.bytesOut.Load()
	s.FramesIn += t.inFrames.Load()
	s.FramesOut += t.outFrames.Load()
	s.Pings += t.pings.Load()
	s.Refused += t.refusals.Load()
	s.Discarded += t.discards.Load()
	s.Writers += t.writers.Load()
	for k := range t.ends {
		s.Ends[k] += t.ends[k].Load()
	}
}

func (t *tally) read(n int) {
	if t != nil && n > 0 {
		t.bytesIn.Add(uint64(n))
	}
}

func (t *tally) wrote(n int) {
	if t != nil && n > 0 {
		t.bytesOut.Add(uint64(n))
	}
}

func (t *tally) frameIn() {
	if t != nil {
		t.inFrames.Add(1)
	}
}

func (t *tally) framesOut(n int) {
	if t != nil && n > 0 {
		t.outFrames.Add(uint64(n))
	}
}

func (t *tally) ping() {
	if t != nil {
		t.pings.Add(1)
	}
}

func (t *tally) refused() {
	if t != nil {
		t.refusals.Add(1)
	}
}

func (t *tally) discarded(n int) {
	if t != nil && n > 0 {
		t.discards.Add(uint64(n))
	}
}

func (t *tally) writer(d int64) {
	if t != nil {
		t.writers.Add(d)
	}
}

func (t *tally) ended(k Kind) {
	if t != nil {
		t.ends[k].Add(1)
	}
}

// Vitals is what one connection is doing.
type Vitals struct {
	Waiting      int           // bytes that the client has not taken yet
	InFlight     int           // messages handed on and not yet answered
	Silent, Idle time.Duration // since the last byte came from the client, and since the last text frame
}

// Vitals looks at the connection as of now.
func (c *Connection) Vitals() Vitals {
	now := c.cfg.now()
	return Vitals{
		Waiting: c.held(), InFlight: int(c.inFlight.Load()),
		Silent: time.Duration(max(0, now-c.lastByte.Load())), Idle: time.Duration(max(0, now-c.lastPing.Load())),
	}
}
