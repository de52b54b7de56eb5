package router

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/connection"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// deliverer hands what arrives on one group's channel to local connections. It
// never waits for a socket: it appends to outboxes, and flushes each touched
// connection once.
type deliverer struct {
	// Immutable after New.
	router   *Router
	group    keyspace.Group
	payloads chan string   // never closed
	commands chan command  // never closed
	stopped  chan struct{} // closed when run ends

	// Any goroutine.
	pulsed     atomic.Int64 // when the last pulse came, ns of Router.clock; 0: none
	subscribed atomic.Bool  // Redis has confirmed the subscription, and it is not lost
	listening  atomic.Pointer[redis.PubSub]

	// Owned by run.
	feeds  map[protocol.Address]*feed
	number uint64 // last number seen on the channel, when heard
	heard  bool   // a number was seen: what comes next is known
	// rumours are who joined and left rooms in this window, due those of the one before
	// that are still to be told, tellAt when it goes on.
	rumours map[protocol.Address]*rumour
	due     []told
	tellAt  *time.Timer
	wire    []byte // one frame with its WebSocket header, built once for all members
	// pulseNumber is the number Redis gave with the last pulse, expected the same
	// while it has to come yet, line the history line.
	pulseNumber, expected uint64
	line                  string
	unheard               int // pulses in a row that nobody heard
	// checking is true while all feeds are compared with their logs, checkAgain
	// that it has to be done once more.
	checking, checkAgain bool
	// watched are the users whom connections here watch. Of those in doubt the
	// state has to be read, of those who miss it again with the next pulse; reading
	// is true while some are.
	watched          map[protocol.UserID]*watched
	doubted, missing map[protocol.UserID]struct{}
	reading          bool
	news             []news // noted, and not yet appended
	out              connection.Batch
}

const (
	// payloadQueue is how many envelopes may wait for the deliverer. When it is
	// full the receiver stops reading and Redis holds the rest.
	payloadQueue = 1024
	// commandQueue lets a burst of registrations go on while the deliverer works.
	commandQueue = 256
	// flushEvery bounds how many envelopes share one flush.
	flushEvery = 16
)

func newDeliverer(r *Router, g keyspace.Group) *deliverer {
	return &deliverer{
		router: r, group: g, feeds: make(map[protocol.Address]*feed), watched: make(map[protocol.UserID]*watched),
		doubted: make(map[protocol.UserID]struct{}), missing: make(map[protocol.UserID]struct{}),
		rumours: make(map[protocol.Address]*rumour), tellAt: stoppedTimer(),
		payloads: make(chan string, payloadQueue), commands: make(chan command, commandQueue), stopped: make(chan struct{}),
	}
}

// offer hands over an ephemeral envelope for local connections; false when the
// deliverer is too busy, which for ephemeral messages means dropped.
func (d *deliverer) offer(payload string) bool {
	select {
	case d.payloads <- payload:
		return true
	default:
		return false
	}
}

func (d *deliverer) run(ctx context.Context) {
	defer close(d.stopped)
	defer d.tellAt.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case cmd := <-d.commands:
			d.do(cmd)
		case p := <-d.payloads:
			d.obey()
			d.open(p)
		case <-d.tellAt.C:
			d.tellMembers()
		}
		d.more()
		d.publish()
		d.out.Flush()
	}
}

// more takes what waits already, so that connections touched by several
// envelopes are flushed once.
func (d *deliverer) more() {
	for range flushEvery {
		select {
		case cmd := <-d.commands:
			d.do(cmd)
		case p := <-d.payloads:
			d.obey()
			d.open(p)
		default:
			return
		}
	}
}

// obey does the commands that wait. It comes before each envelope: what is
// published once a connection is in the registry comes after its Attach, and must
// find it attached.
func (d *deliverer) obey() {
	for {
		select {
		case cmd := <-d.commands:
			d.do(cmd)
		default:
			return
		}
	}
}

// open takes an envelope apart.
func (d *deliverer) open(payload string) {
	d.router.counts.envelopes.Add(1)
	kind, body, err := protocol.OpenEnvelope(payload)
	if err == nil {
		switch kind {
		case protocol.EnvelopeMessages:
			var number uint64
			var records protocol.Records
			if number, records, err = protocol.OpenMessages(body); err == nil {
				d.sequence(number, number-1)
				err = d.deliverAll(records)
			}
		case protocol.EnvelopeEphemeral:
			err = d.deliverAll(protocol.OpenEphemeral(body))
		case protocol.EnvelopePulse:
			var p protocol.Pulse
			if p, err = protocol.OpenPulse(body); err == nil {
				d.sequence(p.Number, p.Number)
				d.pulsed.Store(d.router.clock())
			}
		case protocol.EnvelopeKick:
			var k protocol.Kick
			if k, err = protocol.OpenKick(body); err == nil && d.router.cfg.OnKick != nil {
				d.router.cfg.OnKick(k)
			}
		case protocol.EnvelopeEveryone:
			var frame string
			if frame, err = protocol.OpenEveryone(body); err == nil {
				d.router.everyone.take(frame)
			}
		case protocol.EnvelopeQuestion:
			var q protocol.Question
			if q, err = protocol.OpenQuestion(body); err == nil {
				d.router.questions.take(q)
			}
		case protocol.EnvelopeAnswer:
			var a protocol.Answer
			if a, err = protocol.OpenAnswer(body); err == nil {
				d.router.asks.hear(a)
			}
		case protocol.EnvelopeMembers:
			var c protocol.MembersChange
			if c, err = protocol.OpenMembers(body); err == nil {
				d.hearMembers(c)
			}
		case protocol.EnvelopeState:
			var number uint64
			var s protocol.UserState
			if number, s, err = protocol.OpenState(body); err == nil {
				d.sequence(number, number-1)
				d.hear(s)
			} else {
				d.doubtAll() // of another version: it counts as lost
			}
		}
	}
	if err != nil {
		d.router.counts.unreadable.Add(1)
		d.router.cfg.Log.Warn("envelope not understood", "group", string(d.group), "bytes", len(payload), "err", err)
	}
}

// sequence notes the channel's number. A channel is FIFO, so when the one before
// isn't the last seen, publishes were lost between; a smaller one means that Redis
// lost its count, and who knows what else.
func (d *deliverer) sequence(number, before uint64) {
	if d.heard && before != d.number {
		if before > d.number {
			d.router.counts.missedPublishes.Add(before - d.number)
		} else {
			d.expected = 0 // was of the count before
		}
		d.check()
	}
	d.number, d.heard = number, true
}

// pulse hears from Redis itself, not by the channel, how far the channel should
// be. By the next pulse that much must have come.
func (d *deliverer) pulse(number uint64, line string) {
	if !d.heard {
		// Before the first pulse nobody is held here, so nothing was published for
		// anybody: what comes next is known even when the first publish is lost.
		d.number, d.heard = number, true
	}
	if number < d.pulseNumber {
		// Redis lost its count, and who knows what else.
		d.number, d.expected = number, 0
		d.check()
	}
	d.pulseNumber = number
	if d.expected > d.number {
		d.router.counts.missedPublishes.Add(d.expected - d.number)
		d.number = d.expected
		d.check()
	}
	if d.expected = number; number < d.number {
		d.expected = 0 // the count began anew; the channel will say so
	}
	if d.line != "" && d.line != line {
		d.check()
	}
	d.line = line
	d.readMissing()
}

func (d *deliverer) deliverAll(records protocol.Records) error {
	var rec protocol.Record
	for {
		more, err := records.Next(&rec)
		if !more || err != nil {
			return err
		}
		d.deliverMessage(&rec)
	}
}

// deliverMessage hands one message to the local connections of its address. It
// looks at nothing else and never forwards. The frame is built once; each member
// costs one append.
func (d *deliverer) deliverMessage(rec *protocol.Record) {
	f := d.feeds[rec.Address]
	if f == nil {
		d.router.counts.unheld.Add(1)
		d.trace(rec, nil, "unheld")
		return
	}
	for i := range f.members {
		if w := f.members[i].waiting; w != nil {
			w.keep(rec, d.router.cfg.HeldBytes)
		}
	}
	switch {
	case f.epoch == "":
		d.trace(rec, f, "waiting") // nobody is live yet
	case rec.Epoch == "":
		d.fanOutEphemeral(f, rec)
	case f.repairing != nil:
		f.repairing.keep(rec, d.router.cfg.HeldBytes)
		d.trace(rec, f, "waiting")
	case rec.Epoch == f.epoch && rec.Offset <= f.offset:
		d.router.counts.duplicates.Add(1)
		d.trace(rec, f, "duplicate")
	case rec.Epoch == f.epoch && rec.Offset == f.offset+1:
		f.offset = rec.Offset
		d.fanOut(f, rec.Epoch, rec.Offset, rec.Frame)
	default:
		// A hole, or an epoch that is new here: the log knows.
		d.router.counts.holes.Add(1)
		d.trace(rec, f, "hole")
		if d.repair(rec.Address, f); f.repairing != nil {
			f.repairing.keep(rec, d.router.cfg.HeldBytes)
		}
	}
}

// trace tells of a message that goes no further now.
func (d *deliverer) trace(rec *protocol.Record, f *feed, outcome string) {
	d.router.traces.arrived(protocol.TraceArrived, outcome, rec.Address, f, rec.Epoch, rec.Offset, rec.Frame, 0)
}

// fanOutEphemeral hands a message without position to the live members.
func (d *deliverer) fanOutEphemeral(f *feed, rec *protocol.Record) {
	wire := d.frame("", 0, rec.Frame)
	to := 0
	for i := range f.members {
		if m := &f.members[i]; m.waiting == nil && d.out.AppendFrame(m.conn, wire) {
			d.router.counts.delivered.Add(1)
			to++
		}
	}
	d.router.traces.arrived(protocol.TraceDelivered, "", rec.Address, f, "", 0, rec.Frame, to)
}

// frame builds the WebSocket frame of a message at its position. The result is
// valid until the next call.
func (d *deliverer) frame(epoch string, offset uint64, head string) []byte {
	d.wire = appendWire(d.wire[:0], epoch, offset, head)
	return d.wire
}
