package gatewaytest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Person is a good client over any number of connections: it comes back, resumes behind what it has, and repeats what was
// not acknowledged.
type Person struct {
	// Immutable after Join.
	Name     string
	Device   string   // its deviceId; empty: it has none
	rooms    []string // in which it is
	byCursor bool     // it doesn't say where it goes on
	ledger   *Ledger
	fields   []any
	stop     chan struct{} // closed: go home
	done     chan struct{} // closed when it has gone
	poke     chan struct{} // capacity 1: something was asked of it
	stopOnce sync.Once

	// Owned by run.
	dice *rand.Rand
	next time.Time // when the next message is due

	mu      sync.Mutex        // guards the rest
	gateway int               // where it is, or goes next
	conn    int               // how many connections it has had
	client  *Client           // the present one
	here    bool              // registered on it
	settled bool              // and in all its rooms
	absent  bool              // told to stay away
	gone    error             // why it will never come back
	logs    map[string]*inbox // what it reads, by room; the own one is ""
	shown   int
	talk    Talk
	sent    []*Letter
	waiting []*Letter // of sent, those without a final answer, in the order sent
	heard   []Heard
	stays   []Stay
	ends    map[int]int // by close code
}

// Talk is what a person has to say.
type Talk struct {
	To     []string // one after the other: users, and rooms as room:NAME
	Copies int      // one of so many is sent with copy; 0: none
	Rate   float64  // messages a second; 0: as fast as the answers come
	Window int      // messages without an answer at a time; 0: 1
	Count  int      // 0: until told to hush
	Pad    int      // bytes added to each content
}

// Letter is a message as its sender knows it.
type Letter struct {
	ID, From, To, Content string
	Device                string // of the sender
	Copy                  bool   // the sender keeps one, too
	N                     int    // counts the sender's messages
	Tries                 []Try
	Acks                  []Ack
	Refusals              []Refusal
}

// Refusal is an error that answered a letter.
type Refusal struct {
	Code  string
	After time.Duration // since the last try
}

// Try is one sending of a letter.
type Try struct {
	At   time.Time
	Conn int
}

// Ack is one answer to a letter.
type Ack struct {
	At     time.Time
	Conn   int
	Status string
	Pos    Position
}

// Stay is the time a person was registered somewhere. To is zero while it lasts.
type Stay struct {
	From, To time.Time
	Gateway  string
}

// Record is what a person wrote down. Who has two devices is two persons of one name.
type Record struct {
	Name     string
	Device   string
	Rooms    []string
	ByCursor bool // see inbox

	Sent  []Letter
	Heard []Heard
	Stays []Stay
	Ends  map[int]int // connections ended by the other side, by close code
	Gone  error       // it was sent away for good
}

// Record returns a copy of what the person wrote down so far.
func (p *Person) Record() Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := Record{
		Name: p.Name, Device: p.Device, Rooms: p.rooms, ByCursor: p.byCursor,
		Heard: slices.Clone(p.heard), Stays: slices.Clone(p.stays), Ends: make(map[int]int), Gone: p.gone,
	}
	r.Sent = make([]Letter, len(p.sent))
	for i, m := range p.sent {
		r.Sent[i] = *m
		// The slices only grow, so the copy may share them.
	}
	for code, n := range p.ends {
		r.Ends[code] = n
	}
	return r
}

// Talk begins to send, or goes on differently.
func (p *Person) Talk(talk Talk) {
	talk.Window = max(talk.Window, 1)
	p.mu.Lock()
	p.talk = talk
	p.mu.Unlock()
	p.nudge()
}

// Hush ends the talk. What was sent is still repeated until it is answered.
func (p *Person) Hush() { p.Talk(Talk{}) }

// Leave cuts the connection and stays away until Return.
func (p *Person) Leave() { p.move(true, -1) }

// Return lets a person who left come back.
func (p *Person) Return() { p.move(false, -1) }

// Move cuts the connection and goes to another gateway at once.
func (p *Person) Move(gateway int) { p.move(false, gateway) }

func (p *Person) move(absent bool, gateway int) {
	p.mu.Lock()
	c := p.client
	if p.absent == absent && gateway < 0 {
		c = nil
	}
	p.absent = absent
	if gateway >= 0 {
		p.gateway = gateway
	}
	if c != nil {
		p.leave()
	}
	p.mu.Unlock()
	if c != nil {
		c.Cut()
	}
	p.nudge()
}

func (p *Person) nudge() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// open counts the messages without a final answer.
func (p *Person) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting)
}

// label names a person, and one of several devices.
func label(name, device string) string {
	if device == "" {
		return name
	}
	return name + "/" + device
}

// present returns nil while the person is registered and in its rooms, or told to be away.
func (p *Person) present() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone != nil:
		return stop{fmt.Errorf("%s: %w", p.Name, p.gone)}
	case !p.settled && !p.absent:
		return errors.New(label(p.Name, p.Device) + " is not there")
	}
	return nil
}

// WaitPresent returns when the person is registered.
func (p *Person) WaitPresent(within time.Duration) error { return Poll(within, p.present) }

// run is a person's life: one connection after the other.
func (p *Person) run() {
	defer close(p.done)
	for attempt := 0; ; attempt++ {
		wait := time.Duration(0)
		if attempt > 0 {
			bound := min(p.ledger.Backoff, p.ledger.Backoff/8<<min(attempt-1, 10))
			wait = time.Duration(p.dice.Int64N(int64(bound) + 1))
		}
		if !p.rest(wait) {
			return
		}
		hint, registered := p.connection()
		if registered {
			attempt = 0
		}
		if hint > 0 && !p.rest(hint) {
			return
		}
		p.mu.Lock()
		gone := p.gone
		p.mu.Unlock()
		if gone != nil {
			<-p.stop
			return
		}
	}
}

// rest waits, unless something is asked of the person meanwhile, and then for as long as it is to stay away; false when it
// is to go home.
func (p *Person) rest(wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.poke:
	case <-p.stop:
		return false
	}
	for {
		p.mu.Lock()
		absent := p.absent
		p.mu.Unlock()
		if !absent {
			break
		}
		select {
		case <-p.poke:
		case <-p.stop:
			return false
		}
	}
	select {
	case <-p.stop:
		return false
	default:
		return true
	}
}

// connection is the life of one connection. It returns for how long the gateway asked the person to wait.
func (p *Person) connection() (hint time.Duration, registered bool) {
	p.mu.Lock()
	gateway := p.gateway
	p.mu.Unlock()
	c, err := dial(p.ledger.urls[gateway], nil, p.ledger.Patience)
	if err != nil {
		p.elsewhere(gateway)
		return 0, false
	}
	defer c.Cut()
	p.mu.Lock()
	called := p.absent || p.gateway != gateway // meanwhile
	if !called {
		p.conn++
		p.client = c
	}
	v := visit{person: p, client: c, conn: p.conn, outside: make(map[string]bool)}
	for _, room := range p.rooms {
		v.outside[room] = true
	}
	p.mu.Unlock()
	if called {
		return 0, false
	}
	// Whoever is silent for too long is cut off, also while something is being written to it.
	var gaveUp atomic.Bool
	v.silence = time.AfterFunc(p.ledger.Patience, func() {
		gaveUp.Store(true)
		c.conn.Close()
	})
	defer v.silence.Stop()
	if v.register() == nil {
		v.run()
	}
	p.mu.Lock()
	ours := p.client != c // it was we who left
	if !ours {
		p.leave()
		if gaveUp.Load() && v.registered {
			p.stays[len(p.stays)-1].To = v.lastHeard // who knows what was after that
		}
	}
	p.mu.Unlock()
	if ended := c.Ended(); ended != nil && !ours {
		if gaveUp.Load() {
			ended = &Ended{Code: Silence}
		}
		hint = p.ended(ended)
	}
	p.elsewhere(gateway)
	return hint, v.registered
}

// Silence counts as the close code of a connection that a person gave up because nothing came.
const Silence = 0

// leave notes the end of a stay. mu is held.
func (p *Person) leave() {
	p.client, p.settled = nil, false
	if p.here {
		p.here = false
		p.stays[len(p.stays)-1].To = time.Now()
	}
}

// elsewhere chooses another gateway to come back to, unless somebody has chosen one.
func (p *Person) elsewhere(from int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.ledger.urls); p.gateway == from && n > 1 {
		p.gateway = (from + 1 + p.dice.IntN(n-1)) % n
	}
}

// ended notes how a connection ended, and returns for how long to stay away.
func (p *Person) ended(ended *Ended) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends[ended.Code]++
	if ended.Code == 4502 && p.Device != "" {
		// Nobody else is this device: what replaced it is an attempt of its own, given up before it was answered, that a gateway
		// has read since.
		return 0
	}
	if ended.Code >= 4500 || ended.Closing != nil && !ended.Closing.Reconnect {
		p.gone = fmt.Errorf("told not to come back: %v", ended)
	}
	if ended.Closing == nil {
		return 0
	}
	hint := time.Duration(ended.Closing.AfterMs) * time.Millisecond
	if window := ended.Closing.WindowMs; window > 0 {
		hint += time.Duration(p.dice.Int64N(window)) * time.Millisecond
	}
	return hint
}
