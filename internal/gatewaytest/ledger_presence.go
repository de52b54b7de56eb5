package gatewaytest

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// sighting is what an observer was told of a person.
type sighting struct {
	asked, told    time.Time // somewhere between them it was so
	state, version string
}

// word is what an observer was told of a person whom it watches.
type word struct {
	UserState
	at    time.Time
	watch int  // which of its connections watched
	asked bool // it is the answer to watch
}

// observer asks for everybody's presence again and again, and watches everybody, through whichever gateway answers. It is nobody's
// contact: what it is told is the evidence for false offlines, since a version names one state of one user.
type observer struct {
	ledger *Ledger
	every  time.Duration
	stop   chan struct{}
	done   chan struct{}

	// Owned by run.
	watch int // counts its connections

	mu    sync.Mutex            // guards what follows
	told  map[string][]sighting // only what changed, by person
	words map[string][]word
}

// Watch lets an observer ask for the presence of everybody so often, and watch them, until the end. Check then also finds who was seen
// offline although there.
func (l *Ledger) Watch(every time.Duration) {
	o := &observer{ledger: l, every: every, stop: make(chan struct{}), done: make(chan struct{}), told: make(map[string][]sighting), words: make(map[string][]word)}
	l.mu.Lock()
	l.observer = o
	l.mu.Unlock()
	go o.run()
}

func (o *observer) close() {
	select {
	case <-o.stop:
	default:
		close(o.stop)
	}
	<-o.done
}

func (o *observer) run() {
	defer close(o.done)
	for gateway := 0; o.rest(); gateway++ {
		c, err := dial(o.ledger.urls[gateway%len(o.ledger.urls)], nil, o.ledger.Patience)
		if err != nil {
			continue
		}
		if _, err = c.Register("observer"); err == nil {
			o.watch++
			o.ask(c)
			o.hear(c)
		}
		c.Cut()
	}
}

// ask polls through one gateway until that fails.
func (o *observer) ask(c *Client) {
	watched := 0
	for o.rest() {
		people, _ := o.ledger.everyone()
		var names []string
		for _, p := range people {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
		if most := min(len(names), watches); watched < most {
			if _, err := c.Watch("watch", names[watched:most]...); err == nil {
				watched = most
			} else if c.Ended() != nil {
				return
			}
		}
		for some := range slices.Chunk(names, 500) {
			asked := time.Now()
			states, err := c.Presence(some...)
			if err != nil {
				return
			}
			o.hear(c)
			o.note(asked, time.Now(), states)
		}
	}
}

// watches is how many users a connection may watch by default.
const watches = 1000

// hear notes what came of those who are watched, in its order.
func (o *observer) hear(c *Client) {
	frames, _, _ := c.drain()
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range frames {
		f := &frames[i]
		asked := strings.HasPrefix(f.ID, "watch-")
		if f.Type != "presence" || f.ID != "" && !asked {
			continue
		}
		for name, s := range f.States() {
			o.words[name] = append(o.words[name], word{s, f.At, o.watch, asked})
		}
	}
}

func (o *observer) note(asked, now time.Time, states map[string]UserState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, s := range states {
		if s.State == "unknown" {
			continue // says that nothing is known, which is never false
		}
		told := o.told[name]
		if n := len(told); n == 0 || told[n-1].state != s.State || told[n-1].version != s.Version {
			o.told[name] = append(told, sighting{asked, now, s.State, s.Version})
		}
	}
}

func (o *observer) rest() bool {
	timer := time.NewTimer(o.every)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-o.stop:
		return false
	}
}

func (o *observer) heard() map[string][]word {
	o.mu.Lock()
	defer o.mu.Unlock()
	words := maps.Clone(o.words)
	for name := range words {
		words[name] = slices.Clone(words[name])
	}
	return words
}

func (o *observer) seen() map[string][]sighting {
	o.mu.Lock()
	defer o.mu.Unlock()
	seen := maps.Clone(o.told)
	for name := range seen {
		seen[name] = slices.Clone(seen[name])
	}
	return seen
}
