package gatewaytest

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Wire is a TCP proxy before a server that can be made slow, deaf, or be cut at a chosen moment.
type Wire struct {
	// Immutable after StartWire.
	Addr     string
	server   string
	listener net.Listener
	all      sync.WaitGroup

	mu    sync.Mutex // guards the rest
	pairs map[*wirePair]bool
	delay time.Duration
	held  chan struct{} // not nil: nothing passes until it is closed
	cut   *wireCut
	ended bool
}

type wirePair struct{ client, server net.Conn }

// wireCut waits for a request.
type wireCut struct {
	pattern []byte
	then    func()
}

// StartWire starts a proxy before the server at an address. It ends with the test.
func StartWire(t testing.TB, server string) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{Addr: l.Addr().String(), server: server, listener: l, pairs: make(map[*wirePair]bool)}
	w.all.Go(w.accept)
	t.Cleanup(w.close)
	return w
}

// Through returns the same Redis, reached through a wire: for one server only.
func (r *Redis) Through(w *Wire) *Redis {
	other := *r
	other.URL = strings.Replace(r.URL, r.Nodes[0].Addr, w.Addr, 1)
	return &other
}

func (w *Wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return // closed
		}
		server, err := net.Dial("tcp", w.server)
		if err != nil {
			client.Close()
			continue
		}
		p := &wirePair{client, server}
		w.mu.Lock()
		if w.ended {
			p.close()
		}
		w.pairs[p] = true
		w.mu.Unlock()
		w.all.Go(func() { w.carry(p, server, client, true) })
		w.all.Go(func() { w.carry(p, client, server, false) })
	}
}

func (p *wirePair) close() {
	p.client.Close()
	p.server.Close()
}

// carry copies one direction until it ends. Bytes arrive later by the delay, and no slower.
func (w *Wire) carry(p *wirePair, to, from net.Conn, request bool) {
	type piece struct {
		due   time.Time
		bytes []byte
	}
	pieces := make(chan piece, 1024)
	var writer sync.WaitGroup
	writer.Go(func() {
		for piece := range pieces {
			if wait := time.Until(piece.due); wait > 0 {
				time.Sleep(wait)
			}
			w.wait()
			then := func() {}
			if request {
				then = w.cutFor(piece.bytes)
			}
			if _, err := to.Write(piece.bytes); err != nil {
				p.close()
			}
			then()
		}
	})
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			w.mu.Lock()
			due := time.Now().Add(w.delay)
			w.mu.Unlock()
			pieces <- piece{due, bytes.Clone(buffer[:n])}
		}
		if err != nil {
			close(pieces)
			writer.Wait()
			p.close()
			w.mu.Lock()
			delete(w.pairs, p)
			w.mu.Unlock()
			return
		}
	}
}

// wait returns when something may pass.
func (w *Wire) wait() {
	w.mu.Lock()
	held := w.held
	w.mu.Unlock()
	if held != nil {
		<-held
	}
}

// cutFor holds everything else when this is the request that a cut waits for, and returns what is to be done when it has
// reached the server.
func (w *Wire) cutFor(request []byte) (then func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut == nil || !bytes.Contains(request, w.cut.pattern) {
		return func() {}
	}
	then, w.cut = w.cut.then, nil
	if w.held == nil {
		w.held = make(chan struct{})
	}
	return then
}

// Delay lets everything arrive that much later, in each direction.
func (w *Wire) Delay(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = d
}

// Hold lets nothing pass, and drops nothing, until Release.
func (w *Wire) Hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = make(chan struct{})
	}
}

// Release lets everything pass again.
func (w *Wire) Release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held != nil {
		close(w.held)
		w.held = nil
	}
}

// Reset breaks all connections at once (RST); new ones may be made.
func (w *Wire) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.pairs {
		for _, c := range []net.Conn{p.client, p.server} {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		p.close()
	}
}

// CutAfter lets the next request with these bytes reach the server, but not its answer, nor anything else from then on
// until Release, and calls then. Bytes that two reads tear apart are not found.
func (w *Wire) CutAfter(pattern string, then func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = &wireCut{[]byte(pattern), then}
}

func (w *Wire) close() {
	w.Release()
	w.listener.Close()
	w.mu.Lock()
	w.ended = true
	for p := range w.pairs {
		p.close()
	}
	w.mu.Unlock()
	w.all.Wait()
}
