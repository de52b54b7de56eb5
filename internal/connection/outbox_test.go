package connection

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

func TestTextHeaderIsTheShortestForm(t *testing.T) {
	for n, want := range map[int]string{
		0: "\x81\x00", 125: "\x81\x7d", 126: "\x81\x7e\x00\x7e", 65535: "\x81\x7e\xff\xff", 65536: "\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
	} {
		if got := string(AppendTextHeader(nil, n)); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
		if got := textHeaderLen(n); got != len(want) {
			t.Errorf("%d bytes: header of %d, want %d", n, got, len(want))
		}
	}
}

// Producers append; nothing is sent before the one flush, and then all of it, in order. Afterwards the outbox holds no memory.
func TestFlushSendsWhatWasAppended(t *testing.T) {
	g := newGate(t, nil)
	c, ws := g.dial()
	before := g.m.Stats().BytesOut
	for i := range 100 {
		if !c.Append(fmt.Appendf(nil, "message %d", i)) {
			t.Fatal("not taken")
		}
	}
	frame := append(AppendTextHeader(nil, 4), "last"...)
	if !c.AppendFrame(frame) {
		t.Fatal("not taken")
	}
	if n := g.m.Stats().BytesOut - before; n != 0 {
		t.Fatalf("%d bytes went out before the flush", n)
	}
	c.Flush()
	if s := g.m.Stats(); s.FramesOut != 101 || s.Writers != 0 {
		t.Errorf("%d frames out by %d writers, want 101 by the flush itself", s.FramesOut, s.Writers)
	}
	if c.pending != nil || c.current != nil {
		t.Error("memory is held at rest")
	}
	for i := range 100 {
		wantText(t, ws, fmt.Sprintf("message %d", i))
	}
	wantText(t, ws, "last")
}

// A batch of five times the outbox, for a client that reads: the limits are about what is not taken, so it all arrives.
func TestFullOutboxIsFlushedBeforeItIsJudged(t *testing.T) {
	g := newGate(t, nil)
	c, ws := g.dial()
	const n = 5000
	for i := range n {
		if !c.Append(fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", 50))) {
			t.Fatalf("frame %d was not taken", i)
		}
	}
	c.Flush()
	for i := range n {
		wantText(t, ws, fmt.Sprintf("%d %s", i, strings.Repeat("x", 50)))
	}
	g.wantAlive(c)
}

// The socket is full, the client slow: a writer goroutine takes over, nobody waits, and when the client has read everything the
// goroutine and the memory are gone.
func TestSlowReaderGetsEverythingInOrder(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxBytes, cfg.OutboxFrames = 0, 0 })
	c, r := g.rawDial(4096)
	body := strings.Repeat("x", 1000)
	n := 0
	for ; g.m.Stats().Writers == 0 || n%100 != 0; n++ {
		if !c.Send([]byte(body)) {
			t.Fatal("not taken")
		}
	}
	c.appendPong("in between")
	for range 100 {
		c.Send([]byte(body))
	}
	n += 100
	for seen := 0; seen < n; {
		first, p, err := r.frame()
		switch {
		case err != nil:
			t.Fatalf("after %d frames: %v", seen, err)
		case first == opText && string(p) == body:
			seen++
		case first != opPong:
			t.Fatalf("got frame %#x %.20q", first, p)
		}
	}
	poll(t, "the writer goroutine is gone", func() bool { return g.m.Stats().Writers == 0 })
	poll(t, "the outbox is empty", func() bool { return c.held() == 0 })
	c.Send([]byte("afterwards"))
	r.wantFrame(opText, "afterwards")
	g.wantAlive(c)
}

// One client never reads; its neighbour gets the same messages. The slow one is closed, with at most twice the outbox held on
// the way, and the neighbour waits for nothing.
func TestSlowConsumerIsClosedAndItsNeighbourIsNotDelayed(t *testing.T) {
	g := newGate(t, nil)
	slow, _ := g.rawDial(4096)
	fast, ws := g.dial()
	body := []byte(strings.Repeat("x", 1000))
	var worst time.Duration
	most := 0
	begin := time.Now()
	for slow.Append(body) {
		sent := time.Now()
		slow.Flush()
		most = max(most, slow.held())
		if !fast.Send(body) {
			t.Fatal("the neighbour's frame was not taken")
		}
		wantText(t, ws, string(body))
		worst = max(worst, time.Since(sent))
		if time.Since(begin) > patience {
			t.Fatal("still not closed")
		}
	}
	g.wantEnd(slow, KindSlowConsumer, protocol.CloseSlowConsumer)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("closed after %s", took)
	}
	if limit := 2 * g.cfg.OutboxBytes; most > limit {
		t.Errorf("held %d bytes, want at most %d", most, limit)
	}
	if worst > time.Second {
		t.Errorf("the neighbour waited %s", worst)
	}
	if n := slow.held(); n != 0 {
		t.Errorf("%d bytes held after the end", n)
	}
	s := g.m.Stats()
	if s.SlowConsumers() != 1 || s.Refused == 0 || s.Discarded == 0 {
		t.Errorf("counted %d slow consumers, %d refused, %d discarded frames", s.SlowConsumers(), s.Refused, s.Discarded)
	}
	g.wantAlive(fast)
}

// What a full socket has left over counts against the limit together with what is pending.
func TestUnwrittenRestCountsAgainstTheLimit(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxFrames = 0 })
	c, _ := g.rawDial(4096)
	big, small := []byte(strings.Repeat("x", 60_000)), []byte(strings.Repeat("x", 1000))
	for !c.stuck() {
		for range 4 {
			c.Append(big)
		}
		c.Flush()
	}
	unwritten := 0
	for c.Append(small) {
		c.mu.Lock()
		unwritten = len(c.pending.b)
		if c.current != nil {
			unwritten += len(c.current.rest())
		}
		c.mu.Unlock()
		if unwritten > g.cfg.OutboxBytes {
			t.Fatalf("%d bytes unwritten", unwritten)
		}
	}
	g.wantEnd(c, KindSlowConsumer, protocol.CloseSlowConsumer)
}

// The write deadline of the writer goroutine does not outlive it: it would fail the next flush.
func TestWriterTakesItsDeadlineBack(t *testing.T) {
	nc := &recorder{}
	c := &Connection{cfg: &Config{WriteTimeout: time.Second}, nc: nc}
	for _, s := range []string{"one", "two"} {
		c.Send([]byte(s))
		c.writers.Wait()
		if !nc.deadline.IsZero() {
			t.Error("a deadline was left")
		}
	}
	if got := nc.written.String(); got != "\x81\x03one\x81\x03two" {
		t.Errorf("wrote %q", got)
	}
	if nc.deadlines != 4 {
		t.Errorf("the deadline was set %d times, want once for each piece and back", nc.deadlines)
	}
}

// recorder is a socket that takes everything.
type recorder struct {
	emptyConn
	written   bytes.Buffer
	deadline  time.Time
	deadlines int
}

func (r *recorder) Write(b []byte) (int, error) { return r.written.Write(b) }

func (r *recorder) SetWriteDeadline(t time.Time) error {
	r.deadline = t
	r.deadlines++
	return nil
}

// The connection gave up between an attempt and what the attempt left over: no writer goroutine is started that nobody would join.
func TestNoWriterStartsAfterTheEnd(t *testing.T) {
	c := &Connection{cfg: &Config{}, nc: emptyConn{}}
	ch := c.pend()
	ch.b = append(ch.b, "rest"...)
	c.take()
	c.abort()
	c.startWriter(ch)
	if c.writer != nil || c.current != nil {
		t.Error("a writer was started")
	}
	c.writers.Wait()
}

// The close frame is the last one, also when an answer to a ping is still owed.
func TestNothingFollowsTheCloseFrame(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxBytes, cfg.OutboxFrames = 0, 0 })
	c, r := g.rawDial(4096)
	fill(c)
	r.send(opPing, "first")
	r.send(opPing, "second")
	poll(t, "the second is remembered", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.owedPong == "second"
	})
	c.Close(Cause{Kind: KindDraining})
	r.wantClosing(protocol.CloseDraining)
	r.send(opClose, "\x03\xe8")
	r.wantEOF()
	g.wantEnd(c, KindDraining, protocol.CloseDraining)
}

// Too little to fill the outbox, and still nobody reads it.
func TestWriteTimeoutEndsAClientThatStoppedReading(t *testing.T) {
	g := newGate(t, func(cfg *Config) {
		cfg.OutboxBytes, cfg.OutboxFrames = 0, 0
		cfg.WriteTimeout = 50 * time.Millisecond
	})
	c, _ := g.rawDial(4096)
	body := []byte(strings.Repeat("x", 10_000))
	for g.m.Stats().Writers == 0 {
		c.Send(body)
	}
	g.wantEnd(c, KindSlowConsumer, protocol.CloseSlowConsumer)
}

// A client that pings and doesn't read: one pong is on its way, the latest ping is remembered, and nothing grows.
func TestPingFloodIsBounded(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxBytes, cfg.OutboxFrames = 0, 0 })
	c, r := g.rawDial(4096)
	fill(c)
	c.appendPong("on its way")
	before := c.held()
	var flood []byte
	for i := range 10_000 {
		flood = append(flood, clientFrame(opPing, fmt.Sprintf("%05d", i))...)
	}
	in := g.m.Stats().BytesIn
	r.write(flood)
	poll(t, "the flood was read", func() bool { return g.m.Stats().BytesIn-in == uint64(len(flood)) })
	poll(t, "the last ping is remembered", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.owedPong == "09999"
	})
	if grown := c.held() - before; grown > 200 {
		t.Errorf("the outbox grew by %d bytes", grown)
	}
	// When the client reads at last, the pong for its latest ping is the last one.
	for last := ""; last != "09999"; {
		first, p, err := r.frame()
		if err != nil {
			t.Fatal(err)
		}
		if first == opPong {
			last = string(p)
		}
	}
}

// stuck reports whether the socket was found full, and a writer goroutine is at work.
func (c *Connection) stuck() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writer != nil
}

// fill sends until the kernel takes no more of it, with a good deal left over.
func fill(c *Connection) {
	body := []byte(strings.Repeat("x", 10_000))
	for c.held() < 2<<20 {
		c.Send(body)
	}
}

// Frames appended by many goroutines arrive whole, each goroutine's in its order, while the socket is now full, now free.
func TestConcurrentAppendersKeepTheirOrder(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxBytes, cfg.OutboxFrames = 0, 0 })
	c, r := g.rawDial(16 << 10)
	const writers, each = 8, 2000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				c.Append(fmt.Appendf(nil, "%d %d %s", w, i, strings.Repeat("x", i%300)))
				if i%3 == 0 {
					c.Flush()
				}
			}
			c.Flush()
		})
	}
	var next [writers]int
	for range writers * each {
		_, p, err := r.frame()
		if err != nil {
			t.Fatal(err)
		}
		var w, i int
		if _, err := fmt.Sscan(string(p), &w, &i); err != nil {
			t.Fatalf("%q: %v", p, err)
		}
		if next[w] != i {
			t.Fatalf("goroutine %d: got %d, want %d", w, i, next[w])
		}
		next[w]++
	}
	wg.Wait()
	poll(t, "the outbox is empty", func() bool { return c.held() == 0 })
}

// Between us and the socket stands TLS: the writer goroutine does all writing, and everything else is as ever.
func TestOverTLS(t *testing.T) {
	cfg := DefaultConfig()
	m := NewManager(&cfg)
	conns := make(chan *Connection, 1)
	done := make(chan Cause, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r, &websocket.Upgrader{}, "tls", &cfg)
		if err != nil {
			return
		}
		if err := m.Add(c); err != nil {
			t.Error(err)
		}
		conns <- c
		go func() {
			defer m.Remove(c)
			done <- c.Run(func(b []byte) { c.Send(b) }, nil)
		}()
	}))
	defer srv.Close()
	// gorilla sends its handshake over TLS itself.
	d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
	ws, _, err := d.Dial("wss"+strings.TrimPrefix(srv.URL, "https"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	c := <-conns
	for i := range 200 {
		s := strings.Repeat("x", i*100)
		sendText(t, ws, s)
		wantText(t, ws, s)
	}
	for i := range 500 {
		c.Send(fmt.Appendf(nil, "%d", i))
	}
	for i := range 500 {
		wantText(t, ws, fmt.Sprint(i))
	}
	c.Close(Cause{Kind: KindDraining})
	wantClosing(t, ws, protocol.CloseDraining)
	if cause := <-done; cause.Kind != KindDraining {
		t.Errorf("ended by %s", cause.Kind)
	}
	poll(t, "no writer goroutine", func() bool { return m.Stats().Writers == 0 })
	if err := m.check(); err != nil {
		t.Error(err)
	}
}

// The same, for a client that doesn't read: neither Close nor the end waits for TLS' own last record.
func TestSlowConsumerOverTLSIsCut(t *testing.T) {
	cfg := DefaultConfig()
	conns := make(chan *Connection, 1)
	done := make(chan Cause, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r, &websocket.Upgrader{}, "tls", &cfg)
		if err != nil {
			return
		}
		conns <- c
		go func() { done <- c.Run(func([]byte) {}, nil) }()
	}))
	defer srv.Close()
	nc, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
	if _, err := tc.Write([]byte(handshake)); err != nil {
		t.Fatal(err)
	}
	c := <-conns
	body := []byte(strings.Repeat("x", 10_000))
	for c.Send(body) {
	}
	select {
	case cause := <-done:
		if cause.Kind != KindSlowConsumer {
			t.Errorf("ended by %s", cause.Kind)
		}
	case <-time.After(patience):
		t.Error("still running")
	}
}
