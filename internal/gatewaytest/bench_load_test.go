//go:build !race

package gatewaytest_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"chatgate/internal/gatewaytest"
)

// drainLimit is how long a message may take before it counts as lost.
const drainLimit = 10 * time.Second

// bodyBytes is the length of a message's content.
const bodyBytes = 100

// messageLoad drives messages: each pair is a sender and a receiver, and the sender keeps a fixed number of messages unanswered. With an
// echo the two are one connection, and what comes back is both the message and its answer.
type messageLoad struct {
	// Owned by the goroutine that answers calls.
	all []*pair

	// Any goroutine.
	running   atomic.Bool
	ephemeral atomic.Bool
	strange   atomic.Pointer[string] // the first thing that came and should not have
}

// pair is one sender and its receiver.
type pair struct {
	// Immutable after connect.
	load             *messageLoad
	to               string
	sender, receiver *wire
	echo             bool

	// Guarded by mu: the sending.
	mu             sync.Mutex
	message, frame []byte

	// Any goroutine.
	sent, answered, delivered, repeated atomic.Uint64
	sentAt                              [1 << 12]atomic.Int64 // of message n, at n modulo its length

	// Owned by the receiver's reader while messages are on their way, by the goroutine that answers calls otherwise.
	seen    []uint64 // a bit for each message number
	latency histogram
}

type messageArgs struct {
	Senders, Receivers string // addresses; no receivers: the senders' is an echo
	Count              int
}

// counted is what a load did since it was connected; the latencies since its last start, known when it has stopped.
type counted struct {
	Sent, Answered, Delivered, Repeated uint64
	Receivers                           uint64 // of each message; 0: one
	P50, P99                            time.Duration
}

func (c counted) each() uint64 { return max(1, c.Receivers) }

// complete reports whether everything that was sent was answered, and has arrived everywhere.
func (c counted) complete() bool { return c.Answered == c.Sent && c.Delivered == c.Sent*c.each() }

func (l *messageLoad) connect(args messageArgs) (nothing, error) {
	for i := range args.Count {
		p := &pair{load: l, to: fmt.Sprintf("receiver%d", i), echo: args.Receivers == ""}
		l.all = append(l.all, p)
		var err error
		if p.sender, err = dialWire(args.Senders, 16<<10); err != nil {
			return nothing{}, err
		}
		if p.echo {
			go l.read(p.sender, p.echoed)
			continue
		}
		if p.receiver, err = dialWire(args.Receivers, 16<<10); err != nil {
			return nothing{}, err
		}
		if err := errors.Join(enter(p.sender, fmt.Sprintf("sender%d", i)), enter(p.receiver, p.to)); err != nil {
			return nothing{}, err
		}
		go l.read(p.sender, p.ack)
		go l.read(p.receiver, p.deliver)
	}
	return nothing{}, nil
}

// enter registers a connection. An echo's answer is the frame itself.
func enter(w *wire, user string) error {
	frame := []byte(`{"type":"register","userId":"` + user + `"}`)
	if err := w.write(appendFrame(nil, opText, frame)); err != nil {
		return err
	}
	answer, err := w.next()
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if !bytes.HasPrefix(answer, []byte(`{"type":"registered",`)) && !bytes.Equal(answer, frame) {
		return fmt.Errorf("register was answered %s", answer)
	}
	return nil
}

// read hands each frame to its taker, until the process ends.
func (l *messageLoad) read(w *wire, take func(frame []byte) error) {
	for {
		frame, err := w.next()
		if err == nil {
			err = take(frame)
		}
		if err != nil {
			text := err.Error()
			l.strange.CompareAndSwap(nil, &text)
			return
		}
	}
}

// The frames that a load knows begin like this: what is to be compared must not depend on the speed of a JSON parser here.
var (
	messageHead = []byte(`{"type":"message","id":"`)
	ackHead     = []byte(`{"type":"ack","id":"`)
	routed      = []byte(`"status":"routed"`)
)

// number reads the message number that follows the head.
func number(frame, head []byte) (uint64, bool) {
	if !bytes.HasPrefix(frame, head) {
		return 0, false
	}
	digits, _, _ := bytes.Cut(frame[len(head):], []byte{'"'})
	n, err := strconv.ParseUint(string(digits), 10, 64)
	return n, err == nil
}

func (p *pair) deliver(frame []byte) error {
	n, ok := number(frame, messageHead)
	if !ok {
		return fmt.Errorf("a receiver got %s", frame)
	}
	p.latency.add(time.Duration(time.Now().UnixNano() - p.sentAt[n%uint64(len(p.sentAt))].Load()))
	for n/64 >= uint64(len(p.seen)) {
		p.seen = append(p.seen, 0)
	}
	if bit := uint64(1) << (n % 64); p.seen[n/64]&bit == 0 {
		p.seen[n/64] |= bit
		p.delivered.Add(1)
	} else {
		p.repeated.Add(1)
	}
	return nil
}

func (p *pair) ack(frame []byte) error {
	if _, ok := number(frame, ackHead); !ok || !bytes.Contains(frame, routed) {
		return fmt.Errorf("a sender got %s", frame)
	}
	p.answered.Add(1)
	return p.next()
}

func (p *pair) echoed(frame []byte) error {
	if err := p.deliver(frame); err != nil {
		return err
	}
	p.answered.Add(1)
	return p.next()
}

// next sends the next message, unless the load is to stop.
func (p *pair) next() error {
	if !p.load.running.Load() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.sent.Add(1)
	p.message = strconv.AppendUint(append(p.message[:0], messageHead...), n, 10)
	p.message = append(append(p.message, `","to":"`...), p.to...)
	p.message = append(append(p.message, `","content":"`...), body...)
	if p.load.ephemeral.Load() {
		p.message = append(p.message, `","ephemeral":true}`...)
	} else {
		p.message = append(p.message, `"}`...)
	}
	p.frame = appendFrame(p.frame[:0], opText, p.message)
	p.sentAt[n%uint64(len(p.sentAt))].Store(time.Now().UnixNano())
	return p.sender.write(p.frame)
}

var body = strings.Repeat("x", bodyBytes)

type startArgs struct {
	InFlight  int // messages of each sender
	Ephemeral bool
}

func (l *messageLoad) start(args startArgs) (nothing, error) {
	l.ephemeral.Store(args.Ephemeral)
	l.running.Store(true)
	for _, p := range l.all {
		p.latency = histogram{}
		for range args.InFlight {
			if err := p.next(); err != nil {
				return nothing{}, err
			}
		}
	}
	return nothing{}, nil
}

func (l *messageLoad) count(nothing) (counted, error) {
	var c counted
	for _, p := range l.all {
		c.Sent += p.sent.Load()
		c.Answered += p.answered.Load()
		c.Delivered += p.delivered.Load()
		c.Repeated += p.repeated.Load()
	}
	if text := l.strange.Load(); text != nil {
		return c, errors.New(*text)
	}
	return c, nil
}

// stop lets what is on its way arrive.
func (l *messageLoad) stop(nothing) (counted, error) {
	l.running.Store(false)
	c, err := drain(l.count, counted.complete)
	if err != nil {
		return c, err
	}
	var all histogram
	for _, p := range l.all {
		all.merge(&p.latency)
	}
	c.P50, c.P99 = all.quantile(0.5), all.quantile(0.99)
	return c, nil
}

// drain counts until everything has arrived, or is taken for lost: the caller compares.
func drain(count func(nothing) (counted, error), complete func(counted) bool) (c counted, err error) {
	_ = gatewaytest.Poll(drainLimit, func() error {
		if c, err = count(nothing{}); err == nil && !complete(c) {
			return errIncomplete
		}
		return nil
	})
	return c, err
}

var errIncomplete = errors.New("something is still on its way")

// connectionLoad drives connections rather than messages: many, of which each does little.
type connectionLoad struct {
	// Owned by the goroutine that answers calls.
	all   []*wire
	halt  chan struct{} // closed to end the pacing
	ended chan error    // its end

	// Any goroutine.
	sent, answered atomic.Uint64
	strange        atomic.Pointer[string]
}

type connectionArgs struct {
	Addr     string
	Prefix   string // of the users' names
	Count    int
	InFlight int // connects at a time
}

// connect opens and registers connections, and keeps them.
func (l *connectionLoad) connect(args connectionArgs) (nothing, error) {
	var next atomic.Int64
	wires := make([]*wire, args.Count)
	failed := make(chan error, args.InFlight)
	for range args.InFlight {
		go func() {
			for i := next.Add(1) - 1; i < int64(args.Count); i = next.Add(1) - 1 {
				w, err := dialWire(args.Addr, smallBuffer)
				if err == nil {
					err = enter(w, args.Prefix+strconv.FormatInt(i, 10))
				}
				if err != nil {
					failed <- fmt.Errorf("connection %d: %w", i, err)
					return
				}
				wires[i] = w
			}
			failed <- nil
		}()
	}
	var errs []error
	for range args.InFlight {
		errs = append(errs, <-failed)
	}
	if err := errors.Join(errs...); err != nil {
		return nothing{}, err
	}
	l.all = append(l.all, wires...)
	for _, w := range wires {
		go l.read(w)
	}
	return nothing{}, nil
}

var heartbeatHead = []byte(`{"type":"heartbeat"`)

// read answers pings and counts heartbeats, until the process ends.
func (l *connectionLoad) read(w *wire) {
	for {
		frame, err := w.next()
		if err == nil && !bytes.HasPrefix(frame, heartbeatHead) {
			err = fmt.Errorf("a connection got %s", frame)
		}
		if err != nil {
			text := err.Error()
			l.strange.CompareAndSwap(nil, &text)
			return
		}
		l.answered.Add(1)
	}
}

type paceArgs struct {
	PerSecond int // heartbeats of all connections together, each in its turn
}

func (l *connectionLoad) start(args paceArgs) (nothing, error) {
	l.halt, l.ended = make(chan struct{}), make(chan error, 1)
	go func() { l.ended <- l.pace(args.PerSecond) }()
	return nothing{}, nil
}

// pace sends heartbeats in an open loop: late ones are made up for.
func (l *connectionLoad) pace(perSecond int) error {
	frame := appendFrame(nil, opText, []byte(`{"type":"heartbeat"}`))
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for done := 0; ; {
		for due := int(time.Since(began).Seconds() * float64(perSecond)); done < due; done++ {
			l.sent.Add(1)
			if err := l.all[done%len(l.all)].write(frame); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-l.halt:
			return nil
		}
	}
}

func (l *connectionLoad) count(nothing) (counted, error) {
	c := counted{Sent: l.sent.Load(), Answered: l.answered.Load()}
	c.Delivered = c.Answered
	if text := l.strange.Load(); text != nil {
		return c, errors.New(*text)
	}
	return c, nil
}

func (l *connectionLoad) stop(nothing) (counted, error) {
	close(l.halt)
	if err := <-l.ended; err != nil {
		return counted{}, err
	}
	return drain(l.count, func(c counted) bool { return c.Answered == c.Sent })
}
