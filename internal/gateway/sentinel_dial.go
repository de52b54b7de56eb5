package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// errDemoted says that a connection was made to a server that is not the master any more.
var errDemoted = errors.New("the sentinels name another master")

// link is an open connection to the server at addr.
type link struct {
	*net.TCPConn
	addr string
	of   *sentinels
}

func (l *link) Close() error {
	l.of.mu.Lock()
	delete(l.of.links, l)
	l.of.mu.Unlock()
	return l.TCPConn.Close()
}

// dial connects to the master. Every error is a dial's: a lane must know that
// nothing was sent.
func (s *sentinels) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	c, err := s.connect(ctx)
	if err == nil {
		return c, nil
	}
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" {
		err = &net.OpError{Op: "dial", Net: network, Err: err}
	}
	return nil, err
}

func (s *sentinels) connect(ctx context.Context) (net.Conn, error) {
	addr, err := s.find(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := s.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l := &link{TCPConn: raw.(*net.TCPConn), addr: addr, of: s}
	if err := s.add(l); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	if s.tls == nil {
		return l, nil
	}
	cfg := s.tls.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	secure := tls.Client(l, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return secure, nil
}

// find asks for the master. When the Sentinels take long to answer the last one is
// good enough: whoever can't reach them may still reach Redis.
func (s *sentinels) find(ctx context.Context) (string, error) {
	s.mu.Lock()
	last := s.master
	s.mu.Unlock()
	q := s.ask()
	var enough <-chan time.Time
	if last != "" {
		t := time.NewTimer(sentinelPatience)
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-q.done:
	case <-enough:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.master == "" {
		return "", q.err // only the first question leaves none, and it was waited for
	}
	return s.master, nil
}

// add counts a link among the open ones, unless the master is another by now.
func (s *sentinels) add(l *link) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return net.ErrClosed
	case l.addr != s.master:
		return errDemoted
	}
	s.links[l] = struct{}{}
	return nil
}
