//go:build !race

package gatewaytest_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// hall is the room of a roomLoad.
const hall = "hall"

// roomLoad drives one room. Its first member speaks, and everybody, the speaker too, wants each message once and in the order of
// the offsets. A member whose gateway is lost goes on at the next one, where it was.
type roomLoad struct {
	// Immutable after connect.
	args    roomArgs
	members []*roomMember

	// Any goroutine.
	running, closed           atomic.Bool
	sent, answered, delivered atomic.Uint64
	resumed                   atomic.Uint64
	flights                   [1 << 12]flight // of message n, at n modulo its length
	strange                   atomic.Pointer[string]

	// Owned by the goroutine that answers calls.
	halt    chan struct{} // closed to end the pacing, nil without one
	ended   chan error    // its end
	readers sync.WaitGroup

	mu      sync.Mutex
	pace    roomPace  // guarded by mu
	latency histogram // guarded by mu: from sending to the last member's
}

// flight is a message on its way.
type flight struct {
	sentAt  atomic.Int64
	arrived atomic.Int64
}

// roomMember is owned by its reader, but for w, which is replaced by the reader only and written to by the speaker.
type roomMember struct {
	load *roomLoad
	name string
	at   int // index of its gateway's address
	w    *wire
	last uint64 // offset, which is the number of the message: there is one speaker, and nothing is refused
}

type roomArgs struct {
	Addrs   []string // of the gateways; member i begins at i modulo their number
	Members int
}

// roomPace is how the speaker speaks: one of the three.
type roomPace struct {
	InFlight  int // messages that not everybody has yet
	Burst     int // at once, when everybody has those before
	PerSecond int // whatever becomes of them
}

func (l *roomLoad) connect(args roomArgs) (nothing, error) {
	l.args, l.members = args, make([]*roomMember, args.Members)
	const connecting = 64
	var next atomic.Int64
	failed := make(chan error, connecting)
	for range connecting {
		go func() {
			for i := int(next.Add(1) - 1); i < args.Members; i = int(next.Add(1) - 1) {
				m := &roomMember{load: l, name: fmt.Sprintf("member%d", i), at: i % len(args.Addrs)}
				if err := m.enter(""); err != nil {
					failed <- err
					return
				}
				l.members[i] = m
			}
			failed <- nil
		}()
	}
	var errs []error
	for range connecting {
		errs = append(errs, <-failed)
	}
	if err := errors.Join(errs...); err != nil {
		return nothing{}, err
	}
	for _, m := range l.members {
		l.readers.Go(m.read)
	}
	return nothing{}, nil
}

// close ends everything that is done for the members, once the load has stopped.
func (l *roomLoad) close() {
	l.closed.Store(true)
	for _, m := range l.members {
		_ = m.w.nc.Close()
	}
	l.readers.Wait()
}

// roomBuffer holds the names that one push of a room's members may have.
const roomBuffer = 8 << 10

// membersHead begins what everybody in a room is told of who comes and goes.
var membersHead = []byte(`{"type":"members","room":"`)

var joinedHead = []byte(`{"type":"joined","room":"` + hall + `",`)

// enter connects and is in the room, behind the position (JSON), which may be empty.
func (m *roomMember) enter(position string) error {
	w, err := dialWire(m.load.args.Addrs[m.at], roomBuffer)
	if err != nil {
		return err
	}
	if position == "" {
		position = "null"
	}
	register := `{"type":"register","userId":"` + m.name + `","rooms":{"` + hall + `":` + position + `}}`
	if err := w.write(appendFrame(nil, opText, []byte(register))); err != nil {
		return err
	}
	for _, want := range [][]byte{[]byte(`{"type":"registered",`), joinedHead} {
		frame, err := w.next()
		if err == nil && (!bytes.HasPrefix(frame, want) || !bytes.Contains(frame, []byte(`"recovered":true`))) {
			err = fmt.Errorf("%s got %s", m.name, frame)
		}
		if err != nil {
			_ = w.nc.Close()
			return fmt.Errorf("entering: %w", err)
		}
	}
	m.w = w
	return nil
}

// read takes what comes until the load is closed, or the process ends.
func (m *roomMember) read() {
	var epoch []byte
	for {
		frame, err := m.w.next()
		if err != nil {
			_ = m.w.nc.Close()
			if m.load.closed.Load() {
				return
			}
			if err = m.comeBack(epoch); err == nil {
				continue
			}
		} else {
			if epoch == nil {
				_, rest, _ := bytes.Cut(frame, []byte(`"epoch":"`))
				epoch, _, _ = bytes.Cut(bytes.Clone(rest), []byte{'"'})
			}
			err = m.take(frame)
		}
		if err != nil {
			text := err.Error()
			m.load.strange.CompareAndSwap(nil, &text)
			return
		}
	}
}

// comeBack goes to the other gateways in turn, as a client behind a balancer does.
func (m *roomMember) comeBack(epoch []byte) error {
	if m == m.load.members[0] {
		return errors.New("the speaker lost its gateway")
	}
	position := ""
	if m.last > 0 {
		position = fmt.Sprintf(`{"epoch":"%s","offset":%d}`, epoch, m.last)
	}
	var err error
	for began := time.Now(); time.Since(began) < drainLimit; time.Sleep(20 * time.Millisecond) {
		m.at = (m.at + 1) % len(m.load.args.Addrs)
		if err = m.enter(position); err == nil {
			m.load.resumed.Add(1)
			return nil
		}
	}
	return err
}

func (m *roomMember) take(frame []byte) error {
	l := m.load
	if _, ok := number(frame, ackHead); ok {
		l.answered.Add(1)
		return nil
	}
	if bytes.HasPrefix(frame, membersHead) {
		return nil
	}
	n, ok := number(frame, messageHead)
	if !ok || n != m.last+1 {
		return fmt.Errorf("%s has message %d and got %s", m.name, m.last, frame)
	}
	m.last = n
	l.delivered.Add(1)
	f := &l.flights[n%uint64(len(l.flights))]
	if f.arrived.Add(1) < int64(len(l.members)) {
		return nil
	}
	took := time.Duration(time.Now().UnixNano() - f.sentAt.Load())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latency.add(took)
	switch p := l.pace; {
	case p.Burst > 0 && n == l.sent.Load():
		return l.say(p.Burst)
	case p.InFlight > 0:
		return l.say(1)
	}
	return nil
}

// say sends so many messages in one write, unless the load is to stop. Called with mu held.
func (l *roomLoad) say(count int) error {
	if !l.running.Load() {
		return nil
	}
	var frames []byte
	for range count {
		n := l.sent.Add(1)
		message := strconv.AppendUint(bytes.Clone(messageHead), n, 10)
		message = append(message, `","room":"`+hall+`","content":"`+body+`"}`...)
		frames = appendFrame(frames, opText, message)
		f := &l.flights[n%uint64(len(l.flights))]
		f.arrived.Store(0)
		f.sentAt.Store(time.Now().UnixNano())
	}
	return l.members[0].w.write(frames)
}

func (l *roomLoad) start(pace roomPace) (nothing, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pace, l.latency = pace, histogram{}
	l.running.Store(true)
	if pace.PerSecond > 0 {
		l.halt, l.ended = make(chan struct{}), make(chan error, 1)
		go func() { l.ended <- l.speak(pace.PerSecond) }()
		return nothing{}, nil
	}
	for range pace.InFlight {
		if err := l.say(1); err != nil {
			return nothing{}, err
		}
	}
	return nothing{}, l.say(pace.Burst)
}

// speak sends in an open loop.
func (l *roomLoad) speak(perSecond int) error {
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.mu.Lock()
			err := l.say(1)
			l.mu.Unlock()
			if err != nil {
				return err
			}
		case <-l.halt:
			return nil
		}
	}
}

func (l *roomLoad) count(nothing) (counted, error) {
	c := counted{
		Sent: l.sent.Load(), Answered: l.answered.Load(), Delivered: l.delivered.Load(), Receivers: uint64(len(l.members)),
	}
	if text := l.strange.Load(); text != nil {
		return c, errors.New(*text)
	}
	return c, nil
}

// stop lets what is on its way arrive.
func (l *roomLoad) stop(nothing) (counted, error) {
	l.running.Store(false)
	if l.halt != nil {
		close(l.halt)
		l.halt = nil
		if err := <-l.ended; err != nil {
			return counted{}, err
		}
	}
	c, err := drain(l.count, counted.complete)
	l.mu.Lock()
	defer l.mu.Unlock()
	c.P50, c.P99 = l.latency.quantile(0.5), l.latency.quantile(0.99)
	return c, err
}
