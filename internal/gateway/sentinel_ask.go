package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// question is one question to all Sentinels: which master do you name?
//
// A majority is of all that are known, by their own ids: those of redis.url, and
// those they tell of. One with two addresses is one, and one that doesn't answer
// counts too.
type question struct {
	least int           // how many Sentinels there are at least; immutable
	done  chan struct{} // closed when it is settled

	// Owned by its goroutine until done is closed.
	seen   map[string]string // id of a Sentinel → its address
	votes  map[string]string // id → the master it names
	master string            // what a majority names
	err    error             // why there is none
}

// answer is what one Sentinel says.
type answer struct {
	addr   string
	id     string            // "": it did not answer
	master string            // "": it names none
	others map[string]string // the further ones it knows, id → address
	err    error
}

// ask begins a question, unless one is under way, and returns it.
func (s *sentinels) ask() *question {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking != nil {
		return s.asking
	}
	q := &question{least: s.seats, done: make(chan struct{}), seen: make(map[string]string), votes: make(map[string]string)}
	if s.closed {
		q.err = net.ErrClosed
		close(q.done)
		return q
	}
	s.asking = q
	known := s.known
	s.running.Go(func() {
		q.err = s.put(q, known)
		s.settle(q)
		close(q.done)
	})
	return q
}

// put asks everyone, those it hears of meanwhile too, until a majority names one
// address. Who is slower than that ends in the background.
func (s *sentinels) put(q *question, known []string) error {
	answers, enough := make(chan answer), make(chan struct{})
	defer close(enough)
	asked, pending := make(map[string]bool), 0
	visit := func(addr string) {
		if asked[addr] {
			return
		}
		asked[addr] = true
		pending++
		s.running.Go(func() {
			a := s.askOne(addr)
			select {
			case answers <- a:
			case <-enough:
			}
		})
	}
	for _, addr := range known {
		visit(addr)
	}
	var errs []error
	for ; pending > 0; pending-- {
		a := <-answers
		if a.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.addr, a.err))
		}
		if q.count(a) {
			return nil
		}
		for _, addr := range a.others {
			visit(addr)
		}
	}
	return errors.Join(append([]error{q.verdict(s.name)}, errs...)...)
}

// count takes an answer, and reports whether a majority names one address.
func (q *question) count(a answer) bool {
	if a.id == "" {
		return false
	}
	q.seen[a.id] = a.addr
	for id, addr := range a.others {
		if q.seen[id] == "" {
			q.seen[id] = addr
		}
	}
	if a.master == "" {
		return false
	}
	q.votes[a.id] = a.master
	n := 0
	for _, master := range q.votes {
		if master == a.master {
			n++
		}
	}
	if 2*n <= q.seats() {
		return false
	}
	q.master = a.master
	return true
}

// seats is how many Sentinels a majority is of.
func (q *question) seats() int { return max(q.least, len(q.seen)) }

// verdict says why there is no majority.
func (q *question) verdict(name string) error {
	var named []string
	for _, master := range q.votes {
		named = append(named, master)
	}
	slices.Sort(named)
	return fmt.Errorf("of %d sentinels no majority names a master %q, only [%s]", q.seats(), name, strings.Join(named, " "))
}

// addresses are those of redis.url and of every other Sentinel seen.
func (q *question) addresses(configured []string) []string {
	all := slices.Clone(configured)
	for _, addr := range q.seen {
		if !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	return all
}

// askOne asks one Sentinel over a connection of its own: nothing of an outage
// before stands in its way, and a name is looked up again.
func (s *sentinels) askOne(addr string) answer {
	ctx, cancel := context.WithTimeout(s.ctx, sentinelDeadline)
	defer cancel()
	o := s.options
	o.Addr = addr
	c := redis.NewClient(&o)
	defer c.Close()
	pipe := c.Pipeline()
	named := pipe.Do(ctx, "sentinel", "get-master-addr-by-name", s.name)
	self := pipe.Do(ctx, "sentinel", "myid")
	others := pipe.Do(ctx, "sentinel", "sentinels", s.name)
	a := answer{addr: addr, others: make(map[string]string)}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		a.err = err
	}
	var err error
	if a.id, err = self.Text(); err != nil {
		return a
	}
	list, err := others.Slice()
	if err != nil {
		return a // without its word on how many there are its vote might decide alone
	}
	for _, one := range list {
		fields := pairs(one)
		if id, ip, port := fields["runid"], fields["ip"], fields["port"]; id != "" && ip != "" && port != "" {
			a.others[id] = net.JoinHostPort(ip, port)
		}
	}
	if pair, err := named.StringSlice(); err == nil && len(pair) == 2 {
		a.master = net.JoinHostPort(pair[0], pair[1])
	}
	return a
}

// pairs makes a map of a list of name, value, name, value.
func pairs(list any) map[string]string {
	fields := make(map[string]string)
	all, _ := list.([]any)
	for i := 0; i+1 < len(all); i += 2 {
		fields[fmt.Sprint(all[i])] = fmt.Sprint(all[i+1])
	}
	return fields
}
