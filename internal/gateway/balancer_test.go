package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

const testDeadline = 10 * time.Second

// greeter is a backend that says its name and then echoes lines until its peer stops sending, and says bye.
type greeter struct {
	listener net.Listener
	conns    sync.WaitGroup
}

func startGreeter(t *testing.T, name, addr string) *greeter {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	g := &greeter{listener: listener}
	g.conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			g.conns.Go(func() {
				defer conn.Close()
				fmt.Fprintln(conn, name)
				_, _ = io.Copy(conn, conn)
				fmt.Fprintln(conn, "bye")
			})
		}
	})
	t.Cleanup(g.stop)
	return g
}

func (g *greeter) addr() string { return g.listener.Addr().String() }

// stop takes no more connections; those that are there live on.
func (g *greeter) stop() { g.listener.Close() }

type runningBalancer struct {
	addr string
	stop context.CancelFunc
	done chan error
}

func startBalancer(t *testing.T, backends ...string) *runningBalancer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &runningBalancer{addr: listener.Addr().String(), stop: cancel, done: make(chan error, 1)}
	b := NewBalancer(listener, backends, slog.New(slog.DiscardHandler))
	go func() { r.done <- b.Run(ctx) }()
	t.Cleanup(cancel)
	return r
}

func (r *runningBalancer) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-r.done:
		if err != nil {
			t.Errorf("the balancer ended with %v", err)
		}
	case <-time.After(testDeadline):
		t.Fatal("the balancer did not end")
	}
}

type balancedConn struct {
	net.Conn
	lines *bufio.Reader
}

func dialBalancer(t *testing.T, addr string) *balancedConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testDeadline)); err != nil {
		t.Fatal(err)
	}
	return &balancedConn{conn, bufio.NewReader(conn)}
}

func (c *balancedConn) line(t *testing.T) string {
	t.Helper()
	line, err := c.lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestBalancerGoesRoundAllBackends(t *testing.T) {
	a, b := startGreeter(t, "a", "127.0.0.1:0"), startGreeter(t, "b", "127.0.0.1:0")
	balancer := startBalancer(t, a.addr(), b.addr())
	var got []string
	for range 6 {
		got = append(got, dialBalancer(t, balancer.addr).line(t))
	}
	if s := strings.Join(got, ""); s != "ababab" && s != "bababa" {
		t.Errorf("connections went to %s", s)
	}
}

// Both directions carry bytes as they are, and the end of one does not cut the other short.
func TestBalancerPassesBytesAndTheirEnd(t *testing.T) {
	balancer := startBalancer(t, startGreeter(t, "a", "127.0.0.1:0").addr())
	conn := dialBalancer(t, balancer.addr)
	conn.line(t)
	payload := strings.Repeat("0123456789abcdef", 1<<16)
	go func() {
		_, _ = io.WriteString(conn, payload)
		_ = conn.Conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn.lines)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != payload+"bye\n" {
		t.Errorf("%d bytes came back, want %d and the farewell", len(got), len(payload))
	}
}

// One gateway of three is stopped: every connection still reaches one, and when it is back it gets its share again.
func TestBalancerSkipsABackendThatRefuses(t *testing.T) {
	a, b := startGreeter(t, "a", "127.0.0.1:0"), startGreeter(t, "b", "127.0.0.1:0")
	addr := b.addr()
	balancer := startBalancer(t, a.addr(), addr)
	b.stop()
	for range 10 {
		if got := dialBalancer(t, balancer.addr).line(t); got != "a" {
			t.Fatalf("greeted by %s", got)
		}
	}
	startGreeter(t, "again", addr)
	for deadline := time.After(testDeadline); ; {
		conn := dialBalancer(t, balancer.addr)
		if conn.line(t) == "again" {
			break
		}
		conn.Close()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatal("the backend that came back gets no connection")
		}
	}
}

// All were away, so all rest; the first connection after one is back need not wait for the rest to pass.
func TestBalancerTriesRestingBackendsWhenNoOtherIsLeft(t *testing.T) {
	a := startGreeter(t, "a", "127.0.0.1:0")
	addr := a.addr()
	balancer := startBalancer(t, addr)
	a.stop()
	if _, err := dialBalancer(t, balancer.addr).lines.ReadByte(); err == nil {
		t.Fatal("something answered for a stopped backend")
	}
	startGreeter(t, "again", addr)
	if got := dialBalancer(t, balancer.addr).line(t); got != "again" {
		t.Errorf("greeted by %s", got)
	}
}

// Run returns when its goroutines have: connections in both states, talking and silent, are cut.
func TestBalancerEndsWithItsContext(t *testing.T) {
	a := startGreeter(t, "a", "127.0.0.1:0")
	balancer := startBalancer(t, a.addr())
	silent, talking := dialBalancer(t, balancer.addr), dialBalancer(t, balancer.addr)
	silent.line(t)
	talking.line(t)
	talk := make(chan struct{})
	go func() {
		defer close(talk)
		for {
			if _, err := io.WriteString(talking, "hello\n"); err != nil {
				return
			}
		}
	}()
	balancer.stop()
	balancer.wait(t)
	if _, err := silent.lines.ReadByte(); err == nil {
		t.Error("a connection outlived the balancer")
	}
	talking.Close()
	<-talk
	if conn, err := net.Dial("tcp", balancer.addr); err == nil {
		conn.Close()
		t.Error("the balancer still listens")
	}
	a.stop()
	a.conns.Wait() // the backend's side has ended too
}

func TestBalancerReportsABrokenListener(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := NewBalancer(listener, nil, slog.New(slog.DiscardHandler))
	listener.Close()
	if err := b.Run(t.Context()); err == nil {
		t.Error("no error")
	}
}
