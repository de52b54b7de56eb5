package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// How long a backend that refused is left alone, and how long one may take to answer.
const (
	backendRest = time.Second
	backendDial = 2 * time.Second
)

// Balancer spreads TCP connections over the gateways of `gateway dev`, each in turn. It adds nothing to what passes through,
// so gateways see its address as the client's. A backend that refuses is skipped for a second.
type Balancer struct {
	// Immutable after NewBalancer.
	listener net.Listener
	backends []*target
	log      *slog.Logger

	// Any goroutine.
	next atomic.Uint64
	work sync.WaitGroup // one for each connection, and the one that closes them

	mu     sync.Mutex
	open   map[net.Conn]struct{} // both ends of each connection
	closed bool
}

type target struct {
	addr      string
	restUntil atomic.Int64 // Unix nanoseconds; 0 = up
}

// NewBalancer makes a balancer that owns listener. Run must be called, and closes it.
func NewBalancer(listener net.Listener, backends []string, log *slog.Logger) *Balancer {
	b := &Balancer{listener: listener, log: log, open: make(map[net.Conn]struct{})}
	for _, addr := range backends {
		b.backends = append(b.backends, &target{addr: addr})
	}
	return b
}

// Run accepts and carries connections until ctx ends. Then it closes all of them and returns nil, when its goroutines have
// ended. An error means that the listener broke.
func (b *Balancer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	b.work.Go(func() {
		<-ctx.Done()
		b.close()
	})
	err := b.accept(ctx)
	cancel()
	b.work.Wait()
	return err
}

func (b *Balancer) accept(ctx context.Context) error {
	for {
		client, err := b.listener.Accept()
		switch {
		case err == nil:
			b.work.Go(func() { b.carry(ctx, client) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Out of file descriptors, most likely: connections that end make room.
			b.log.Warn("balancer cannot accept", "err", err)
			pause(ctx, 100*time.Millisecond)
		}
	}
}

// carry is the life of one connection.
func (b *Balancer) carry(ctx context.Context, client net.Conn) {
	if !b.track(client) {
		return
	}
	defer b.untrack(client)
	server := b.dial(ctx)
	if server == nil {
		b.log.Warn("balancer found no gateway", "backends", len(b.backends))
		return
	}
	if !b.track(server) {
		return
	}
	defer b.untrack(server)

	back := make(chan struct{})
	go func() { // joined below
		defer close(back)
		pipe(client, server)
	}()
	pipe(server, client)
	<-back
}

// pipe copies until from has ended, and passes the end on. After an error both directions are over.
func pipe(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // already closed is as good
	}
}

// dial connects to the next backend that takes it: first those that are up, then, since nothing is lost, those that rest.
func (b *Balancer) dial(ctx context.Context) net.Conn {
	dialer := net.Dialer{Timeout: backendDial}
	first := b.next.Add(1) - 1
	for _, resting := range [2]bool{false, true} {
		for i := range uint64(len(b.backends)) {
			target := b.backends[(first+i)%uint64(len(b.backends))]
			until := target.restUntil.Load()
			if now := time.Now().UnixNano(); (now < until) != resting {
				continue
			}
			conn, err := dialer.DialContext(ctx, "tcp", target.addr)
			if err == nil {
				if until != 0 {
					target.restUntil.Store(0)
				}
				return conn
			}
			if ctx.Err() != nil {
				return nil
			}
			target.restUntil.Store(time.Now().Add(backendRest).UnixNano())
		}
	}
	return nil
}

// track takes conn among those that close closes, or closes it when that has happened.
func (b *Balancer) track(conn net.Conn) bool {
	b.mu.Lock()
	closed := b.closed
	if !closed {
		b.open[conn] = struct{}{}
	}
	b.mu.Unlock()
	if closed {
		conn.Close()
	}
	return !closed
}

func (b *Balancer) untrack(conn net.Conn) {
	b.mu.Lock()
	delete(b.open, conn)
	b.mu.Unlock()
	conn.Close()
}

// close ends everything: no connection is tracked after it.
func (b *Balancer) close() {
	b.listener.Close()
	b.mu.Lock()
	b.closed = true
	conns := make([]net.Conn, 0, len(b.open))
	for conn := range b.open {
		conns = append(conns, conn)
	}
	b.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
	}
}
