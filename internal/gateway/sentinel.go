package gateway

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// sentinelCheck is how often the Sentinels are asked while nothing happens, and
	// so for how long a master that was demoted may still be spoken to.
	sentinelCheck = 2 * time.Second
	// sentinelDeadline bounds what one of them takes to answer.
	sentinelDeadline = 500 * time.Millisecond
	// sentinelPatience is how long a dial waits for their answer when there is a
	// master to go on with. It leaves time for the dial within one attempt of a lane.
	sentinelPatience = 150 * time.Millisecond
)

// sentinels finds the master for every connection of both clients, and keeps them
// on it. The master is the address that a majority of all known Sentinels names: the
// client library's own way believes the one it is connected to, which may be in a
// minority, and leaves alone what leads to a demoted master.
//
// They are asked before each new connection and every sentinelCheck. Without a
// majority the last master stays: Redis itself may be fine.
type sentinels struct {
	// Immutable after newSentinels.
	name       string        // of the master
	configured []string      // addresses of redis.url
	options    redis.Options // of a client of one Sentinel, but for its address
	tls        *tls.Config   // of the master; nil: none
	dialer     net.Dialer
	log        *slog.Logger
	ctx        context.Context // ends with close
	cancel     context.CancelFunc

	running sync.WaitGroup // questions under way, joined by close
	dropped atomic.Uint64  // connections that led elsewhere

	mu     sync.Mutex
	closed bool               // guarded by mu
	master string             // guarded by mu; the last a majority named; "": none yet
	known  []string           // guarded by mu; addresses of Sentinels, the configured ones first
	seats  int                // guarded by mu; how many Sentinels a majority is of
	asking *question          // guarded by mu; nil: none under way
	links  map[*link]struct{} // guarded by mu; open connections
	astray bool               // guarded by mu; the last question found no majority
}

// newSentinels takes over what o says of the Sentinels, and makes o the options of a
// plain client that is always led to the master.
func newSentinels(o *redis.UniversalOptions, log *slog.Logger) *sentinels {
	ctx, cancel := context.WithCancel(context.Background())
	f := o.Failover()
	s := &sentinels{
		name: f.MasterName, configured: f.SentinelAddrs, tls: f.TLSConfig, log: log, ctx: ctx, cancel: cancel,
		options: redis.Options{
			Username: f.SentinelUsername, Password: f.SentinelPassword, TLSConfig: f.TLSConfig,
			DialTimeout: sentinelDeadline, ReadTimeout: sentinelDeadline, WriteTimeout: sentinelDeadline, ContextTimeoutEnabled: true,
			MaxRetries: -1, DialerRetries: 1, Protocol: 2, DisableIdentity: true,
			MaintNotificationsConfig: o.MaintNotificationsConfig,
		},
		// As the client library dials by itself.
		dialer: net.Dialer{Timeout: f.DialTimeout, KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3,
		}},
		known: f.SentinelAddrs, seats: len(f.SentinelAddrs), links: make(map[*link]struct{}),
	}
	o.Addrs, o.MasterName, o.Dialer = []string{s.name}, "", s.dial
	return s
}

// watch asks every sentinelCheck until ctx ends.
func (s *sentinels) watch(ctx context.Context) error {
	tick := time.NewTicker(sentinelCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.ask()
		}
	}
}

// settle takes the outcome of a question, and drops what leads elsewhere: calls
// under way fail, and whoever made them is led to the master the next time.
func (s *sentinels) settle(q *question) {
	s.mu.Lock()
	before, wasAstray := s.master, s.astray
	s.asking, s.astray = nil, q.err != nil
	var stray []*link
	if q.err == nil {
		s.master, s.known, s.seats = q.master, q.addresses(s.configured), max(len(q.seen), len(s.configured))
		for l := range s.links {
			if l.addr != s.master {
				stray = append(stray, l)
			}
		}
	}
	s.mu.Unlock()
	for _, l := range stray {
		_ = l.Close()
	}
	s.dropped.Add(uint64(len(stray)))
	switch {
	case len(stray) > 0:
		s.log.Warn("the sentinels name another master: dropped what led elsewhere", "master", q.master, "before", before, "connections", len(stray))
	case q.err != nil && !wasAstray && before != "" && s.ctx.Err() == nil:
		s.log.Warn("most sentinels name no master: staying with the last", "master", before, "err", q.err)
	case q.err == nil && wasAstray:
		s.log.Info("most sentinels name a master again", "master", q.master)
	}
}

// close ends every question and joins it. The clients are closed before.
func (s *sentinels) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.running.Wait()
}
