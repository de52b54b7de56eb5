package gatewaytest

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// Ledger is people who chat over real gateways, as good clients do, and write down what they sent, what was acknowledged,
// what they received, and what they were told is missing. Check compares it all.
//
//	l := NewLedger(t, a.WS(), b.WS())
//	alice, bob := l.Join("alice"), l.Join("bob")
//	alice.Talk(Talk{To: []string{"bob"}, Rate: 50, Window: 8})
//	… faults …
//	l.Settle(30 * time.Second)
//	l.Check().Want(t)
type Ledger struct {
	// Immutable after the first Join.
	t    testing.TB
	urls []string
	// Patience is how long a person waits for a sign of its gateway before it goes to another.
	Patience time.Duration
	// Backoff bounds the jitter before a person comes back; its first bound is an eighth of it.
	Backoff time.Duration
	// Heartbeat is how often people say that they are alive. Zero: as often as their gateway asks for, and then Patience
	// must be longer than that.
	Heartbeat time.Duration
	// Grace is a little less than that of the gateways (--cluster.grace): nobody who was away for less may be seen offline.
	Grace time.Duration
	// Forgetful is a Redis that may lose everything, with the names of the epochs there were: whoever was away while one came and went
	// hears only that his own has ended, by a gap without an end.
	Forgetful bool
	// Seed makes the people's dice fall the same way again, as far as time does.
	Seed uint64

	mu       sync.Mutex // guards the rest
	people   []*Person
	observer *observer
}

// NewLedger prepares a ledger over gateways, given by their addresses for WebSockets. People come to the first, the second, …
// in turn, and go to any other when theirs fails them.
func NewLedger(t testing.TB, urls ...string) *Ledger {
	t.Helper()
	l := &Ledger{
		t: t, urls: urls, Patience: 2 * Deadline, Backoff: time.Second, Heartbeat: time.Second, Grace: 5 * time.Second, Seed: rand.Uint64(),
	}
	t.Cleanup(l.Close)
	return l
}

// Close sends everyone away. It is called at the end of the test.
func (l *Ledger) Close() {
	people, o := l.everyone()
	if o != nil {
		o.close()
	}
	for _, p := range people {
		p.stopOnce.Do(func() { close(p.stop) })
	}
	for _, p := range people {
		<-p.done
	}
}

func (l *Ledger) everyone() ([]*Person, *observer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.people), l.observer
}

// Join lets a person come, and returns when it has registered. The fields go into each register: "deviceId", "phone", … The
// field rooms is the names ([]string) of those it is in; the field byCursor (true) makes a device trust in what the gateways
// know of it, where others say themselves where they go on. A name that comes again is another device of the same user.
func (l *Ledger) Join(name string, fields ...any) *Person {
	l.t.Helper()
	p := l.Invite(name, fields...)
	if err := p.WaitPresent(startDeadline); err != nil {
		l.t.Fatal(err)
	}
	return p
}

// Invite is Join without waiting.
func (l *Ledger) Invite(name string, fields ...any) *Person {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &Person{
		Name: name, ledger: l, logs: make(map[string]*inbox),
		stop: make(chan struct{}), done: make(chan struct{}), poke: make(chan struct{}, 1),
		gateway: len(l.people) % len(l.urls), ends: make(map[int]int),
	}
	for i := 0; i+1 < len(fields); i += 2 {
		switch fields[i] {
		case "rooms":
			p.rooms = fields[i+1].([]string)
			continue
		case "byCursor":
			p.byCursor = fields[i+1].(bool)
			continue
		case "deviceId":
			p.Device = fields[i+1].(string)
		}
		p.fields = append(p.fields, fields[i], fields[i+1])
	}
	for _, room := range append([]string{""}, p.rooms...) {
		p.logs[room] = &inbox{byCursor: p.byCursor}
	}
	h := fnv.New64a()
	h.Write([]byte(label(name, p.Device)))
	p.dice = rand.New(rand.NewPCG(l.Seed, h.Sum64()))
	l.people = append(l.people, p)
	go p.run()
	return p
}

// Shown counts the messages that people were shown so far.
func (l *Ledger) Shown() (n int) {
	people, _ := l.everyone()
	for _, p := range people {
		p.mu.Lock()
		n += p.shown
		p.mu.Unlock()
	}
	return n
}

// WaitShown returns when people were shown so many more messages.
func (l *Ledger) WaitShown(more int, within time.Duration) error {
	want := l.Shown() + more
	return Poll(within, func() error {
		if n := l.Shown(); n < want {
			return fmt.Errorf("%d messages were shown, want %d", n, want)
		}
		return nil
	})
}

// Hush ends all talk, and returns when each message that was begun has its answer.
func (l *Ledger) Hush(within time.Duration) error {
	people, _ := l.everyone()
	for _, p := range people {
		p.Hush()
	}
	return Poll(within, func() error {
		var errs []error
		for _, p := range people {
			if n := p.open(); n > 0 {
				errs = append(errs, fmt.Errorf("%s has %d messages without an answer", label(p.Name, p.Device), n))
			}
		}
		return errors.Join(errs...)
	})
}

// Settle ends all talk, and returns when everything that was acknowledged was shown, or was announced as missing, and
// everybody is there. What is wrong after that is for Check to say: an error here says only that time was not enough.
func (l *Ledger) Settle(within time.Duration) error {
	deadline := time.Now().Add(within)
	if err := l.Hush(within); err != nil {
		return err
	}
	return Poll(time.Until(deadline), func() error {
		people, _ := l.everyone()
		for _, p := range people {
			if err := p.present(); err != nil {
				return err
			}
		}
		if v := l.Check(); v.Count(LostSilently) > 0 {
			return fmt.Errorf("%d messages are still missing: %v", v.Count(LostSilently), v.List(LostSilently)[0])
		}
		return nil
	})
}

// Records returns what everybody wrote down so far.
func (l *Ledger) Records() []Record {
	people, _ := l.everyone()
	records := make([]Record, len(people))
	for i, p := range people {
		records[i] = p.Record()
	}
	return records
}

// Check compares everything written down so far. While people still talk, what is under way counts as lost.
func (l *Ledger) Check() *Verdict {
	v := compare(l.Records(), l.Forgetful)
	if _, o := l.everyone(); o != nil {
		records := l.Records()
		v.judgePresence(records, o.seen(), l.Grace)
		v.judgeTold(records, o.heard(), l.Grace)
	}
	return v
}
