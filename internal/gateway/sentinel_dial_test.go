//go:build !secondpass

package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// lonely makes sentinels of nobody, whose last master was at addr.
func lonely(t *testing.T, addr string, cfg *tls.Config) *sentinels {
	t.Helper()
	s := newSentinels(&redis.UniversalOptions{MasterName: "m", TLSConfig: cfg, DialTimeout: 5 * time.Second}, slog.New(slog.DiscardHandler))
	s.master = addr
	t.Cleanup(s.close)
	return s
}

// A connection that was under way while the Sentinels named another master is not used.
func TestConnectionThatComesTooLateIsClosed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	s := lonely(t, l.Addr().String(), nil)
	raw, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer raw.Close()
	late := &link{TCPConn: raw.(*net.TCPConn), addr: l.Addr().String(), of: s}
	s.settle(&question{master: "127.0.0.1:1", done: make(chan struct{})})
	if err := s.add(late); !errors.Is(err, errDemoted) {
		t.Errorf("%v, want %v", err, errDemoted)
	}
}

// With rediss:// the master is spoken to by TLS, its certificate is checked for the address the Sentinels name, and what is dropped is
// dropped below it. A failure is one of dialing: nothing was sent.
func TestTheMasterIsSpokenToByTLS(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	s := lonely(t, server.Listener.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots})
	c, err := s.dial(context.Background(), "tcp", "")
	must(t, err)
	if _, ok := c.(*tls.Conn); !ok || len(s.links) != 1 {
		t.Errorf("%T, %d links", c, len(s.links))
	}
	s.settle(&question{master: "127.0.0.1:1", done: make(chan struct{})})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v, want a closed connection", err)
	}
	doubting := lonely(t, server.Listener.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS12})
	_, err = doubting.dial(context.Background(), "tcp", "")
	if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" || len(doubting.links) != 0 {
		t.Errorf("%v, %d links", err, len(doubting.links))
	}
}
