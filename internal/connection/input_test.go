package connection

import (
	"context"
	"encoding/binary"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// veiled gives a short frame another mask than zero.
func veiled(frame []byte) []byte {
	mask := "k\x00e\xff"
	copy(frame[2:], mask)
	for i := range frame[6:] {
		frame[6+i] ^= mask[i%4]
	}
	return frame
}

// Everything a client may send, cut in every way on its journey: the same is read, in order, and then the reader rests.
func TestArrivalsAreReadHoweverTheyAreCut(t *testing.T) {
	ps, xs, ys := strings.Repeat("p", maxControlBytes), strings.Repeat("x", 126), strings.Repeat("y", 60_000)
	all := slices.Concat(
		clientFrame(opText, "one"),
		clientFrame(opPong, ""), clientFrame(opPong, "unasked"), clientFrame(opPing, ""),
		clientFrame(0x1, "two, "), clientFrame(opPing, "inside"), clientFrame(opPong, "inside"), clientFrame(0x0, ""), clientFrame(0x80, "three"),
		clientFrame(opPing, ps), clientFrame(opText, ""), clientFrame(opText, xs[:125]), clientFrame(opText, xs),
		veiled(clientFrame(opText, "four")), clientFrame(opText, ys),
		clientFrame(opPong, ""), clientFrame(opText, "last"), veiled(clientFrame(opPing, "done")),
	)
	texts := []string{"one", "two, three", "", xs[:125], xs, "four", ys, "last"}
	pings := []string{"", "inside", ps, "done"} // while a pong waits to be written, only the latest ping is answered
	for name, size := range map[string]int{
		"by the byte": 1, "in twos": 2, "in threes": 3, "in sevens": 7, "in elevens": 11, "as long as a control frame": maxMaskedControl,
		"longer than the buffer": inputBytes + 1, "at once": len(all),
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, nil)
			_, r := g.rawDial(0)
			var sent sync.WaitGroup
			sent.Go(func() {
				for piece := range slices.Chunk(all, size) {
					if _, err := r.nc.Write(piece); err != nil {
						t.Error(err)
						return
					}
					runtime.Gosched()
				}
			})
			var gotTexts, gotPongs []string
			for len(gotPongs) == 0 || gotPongs[len(gotPongs)-1] != "done" {
				first, payload, err := r.frame()
				switch {
				case err != nil:
					t.Fatalf("after %d texts and %d pongs: %v", len(gotTexts), len(gotPongs), err)
				case first == opText:
					gotTexts = append(gotTexts, string(payload))
				case first == opPong:
					gotPongs = append(gotPongs, string(payload))
				}
			}
			sent.Wait()
			if !slices.Equal(gotTexts, texts) {
				t.Errorf("got texts %.90q", gotTexts)
			}
			at := 0
			for _, p := range gotPongs {
				n := slices.Index(pings[at:], p)
				if n < 0 {
					t.Fatalf("got pongs %.90q", gotPongs)
				}
				at += n + 1
			}
			poll(t, "the reader rests", g.rests)
		})
	}
}

// rests reports whether no reader has a stack.
func (g *gate) rests() bool {
	g.m.stacks.mu.Lock()
	defer g.m.stacks.mu.Unlock()
	return g.m.stacks.lent == 0
}

// newResting returns a connection whose reader is the test, and its client.
func newResting(t *testing.T) (*Connection, *rawClient) {
	t.Helper()
	cfg := DefaultConfig()
	m := NewManager(&cfg)
	conns := make(chan *Connection, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r, &websocket.Upgrader{}, "c", &cfg)
		if err != nil {
			t.Error(err)
			return
		}
		if err := m.Add(c); err != nil {
			t.Error(err)
		}
		conns <- c
	}))
	t.Cleanup(srv.Close)
	g := &gate{t: t, srv: srv, upgraded: conns}
	c, r := g.rawDial(0)
	_ = c.nc.SetReadDeadline(time.Now().Add(patience)) // for a reader that waits where it should not
	t.Cleanup(func() {
		if !c.closing() { // the test has not called Run
			c.finish()
		}
		m.Remove(c)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return c, r
}

// peeked waits until the kernel has so many bytes of the client.
func peeked(t *testing.T, c *Connection, n int) {
	t.Helper()
	b := make([]byte, n+1)
	poll(t, "the bytes have come", func() bool {
		got := 0
		if err := c.raw.Control(func(fd uintptr) {
			got, _, _ = syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		}); err != nil {
			t.Fatal(err)
		}
		return got == n
	})
}

// What the reader holds when its turn is over: nothing, except the beginning of what it can't hand on yet.
func TestReaderHoldsNothingAfterItsTurn(t *testing.T) {
	ping := clientFrame(opPing, "hello")
	for name, tc := range map[string]struct {
		send    []byte
		handled int
		held    int
	}{
		"a message":                      {clientFrame(opText, "x"), 1, 0},
		"two":                            {slices.Concat(clientFrame(opText, "x"), clientFrame(opText, "y")), 2, 0},
		"a pong":                         {clientFrame(opPong, ""), 0, 0},
		"a message and a pong":           {slices.Concat(clientFrame(opText, "x"), clientFrame(opPong, "")), 1, 0},
		"one byte":                       {[]byte{opText}, 0, 1},
		"a header without its mask":      {clientFrame(opText, "x")[:5], 0, 5},
		"a long header cut short":        {clientFrame(opText, strings.Repeat("x", 1000))[:4], 0, 4},
		"a ping cut short":               {ping[:8], 0, 8},
		"a message and a ping cut short": {slices.Concat(clientFrame(opText, "x"), ping[:8]), 1, 8},
	} {
		t.Run(name, func(t *testing.T) {
			c, r := newResting(t)
			r.write(tc.send)
			peeked(t, c, len(tc.send))
			handled := 0
			if err := c.turn(func([]byte) { handled++ }); err != nil {
				t.Fatal(err)
			}
			if handled != tc.handled {
				t.Errorf("handled %d messages, want %d", handled, tc.handled)
			}
			held := 0
			if c.in != nil {
				held = len(c.in.rest())
			}
			if held != tc.held || (held == 0) != (c.in == nil) || c.rbuf != nil || c.frameLeft != 0 {
				t.Errorf("holds %d bytes (%v), a message %v, %d of a frame left, want %d bytes", held, c.in, c.rbuf, c.frameLeft, tc.held)
			}
		})
	}
}

// A turn in which nothing came after all, as after a false alarm of the poller.
func TestTurnWithoutArrivalsIsNothing(t *testing.T) {
	c, _ := newResting(t)
	if err := c.turn(nil); err != nil || c.in != nil {
		t.Errorf("%v, holds %v", err, c.in)
	}
}

// The poller told of these bytes when nobody waited, and does not tell again.
func TestWhatWasThereBeforeTheReaderCameToRestIsSeen(t *testing.T) {
	c, r := newResting(t)
	r.send(opText, "hello")
	peeked(t, c, len(clientFrame(opText, "hello")))
	// Another event of the same socket is told of after that of the bytes: the room that becomes free in what was full to be written.
	fillKernel(t, c)
	drainClient(r)
	if err := c.raw.Write(func(fd uintptr) bool {
		_, err := syscall.Write(int(fd), []byte("x"))
		return err != syscall.EAGAIN
	}); err != nil {
		t.Fatal(err)
	}
	handled := make(chan string, 1)
	_ = c.read(func(b []byte) {
		handled <- string(b)
		_ = c.nc.SetReadDeadline(expired)
	})
	if len(handled) == 0 {
		t.Fatal("not seen")
	}
}

// fillKernel writes until the socket takes no more.
func fillKernel(t *testing.T, c *Connection) {
	t.Helper()
	b := make([]byte, 64<<10)
	if err := c.raw.Write(func(fd uintptr) bool {
		for {
			if _, err := syscall.Write(int(fd), b); err == syscall.EAGAIN {
				return true
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// Each message is sent when the one before was answered, with all kinds of delay, so that it comes at every point of the reader's way to rest.
func TestNoArrivalIsMissedOnTheWayToRest(t *testing.T) {
	g := newGate(t, nil)
	_, r := g.rawDial(0)
	for i := range 5000 {
		for range i % 128 * 10 {
			g.m.Count()
		}
		r.send(opText, "x")
		r.wantFrame(opText, "x")
	}
}

// Half a message keeps its stack, as half of it is in gorilla's hands; the rest of it is read when it comes, and then the reader rests.
func TestHalfAMessageIsAwaited(t *testing.T) {
	g := newGate(t, nil)
	c, r := g.rawDial(0)
	frame := clientFrame(opText, "hello there")
	r.write(frame[:9])
	poll(t, "the message has begun", func() bool { return c.messageBegan.Load() != 0 })
	if g.rests() {
		t.Error("the reader rests in the middle of a message")
	}
	r.write(frame[9:])
	r.wantFrame(opText, "hello there")
	poll(t, "the reader rests", g.rests)
}

// The end of a connection finds the reader wherever it waits.
func TestEveryEndWakesTheRestingReader(t *testing.T) {
	for name, first := range map[string][]byte{
		"at rest": nil, "with a part of a ping": clientFrame(opPing, "hello")[:8], "in the middle of a message": clientFrame(opText, "hello")[:8],
	} {
		for end, kind := range map[string]Kind{"kicked": KindKicked, "slow": KindSlowConsumer} {
			t.Run(name+", "+end, func(t *testing.T) {
				g := newGate(t, func(cfg *Config) { cfg.CloseWait = 50 * time.Millisecond })
				c, r := g.rawDial(0)
				r.write(first)
				poll(t, "it was read", func() bool { return g.m.Stats().BytesIn == uint64(len(first)) })
				c.Close(Cause{Kind: kind})
				g.wantEnd(c, kind, kind.Code())
				poll(t, "the stack is given back", g.rests)
			})
		}
	}
}

func TestFrameSize(t *testing.T) {
	length := func(short byte, n uint64, bytes int) []byte {
		b := binary.BigEndian.AppendUint64(nil, n)
		return append(append([]byte{opText, 0x80 | short}, b[8-bytes:]...), 0, 0, 0, 0)
	}
	for name, tc := range map[string]struct {
		b    []byte
		size int64 // 0: not known
	}{
		"nothing":                {nil, 0},
		"one byte":               {[]byte{opText}, 0},
		"empty":                  {clientFrame(opText, ""), 6},
		"small":                  {clientFrame(opText, "abc"), 9},
		"without its mask":       {clientFrame(opText, "abc")[:5], 0},
		"its header":             {clientFrame(opText, "abc")[:6], 9},
		"two bytes of length":    {length(126, 1000, 2), 1008},
		"one of them":            {length(126, 1000, 2)[:3], 0},
		"eight bytes of length":  {length(127, 1<<40, 8), 1<<40 + 14},
		"seven of them":          {length(127, 1<<40, 8)[:9], 0},
		"the top bit":            {length(127, 1<<63, 8), math.MaxInt64},
		"nearly the top bit":     {length(127, 1<<63-1, 8), math.MaxInt64},
		"a continuation":         {clientFrame(0x0, "abc"), 9},
		"binary":                 {clientFrame(0x82, "abc"), 9},
		"a close frame":          {clientFrame(opClose, "ab"), 8},
		"unmasked":               {[]byte{opText, 1}, math.MaxInt64},
		"a reserved bit":         {[]byte{opText | 0x10, 0x80}, math.MaxInt64},
		"an unknown opcode":      {[]byte{0x83, 0x80}, math.MaxInt64},
		"an unknown control":     {[]byte{0x8B, 0x80}, math.MaxInt64},
		"a fragmented ping":      {[]byte{0x9, 0x80}, math.MaxInt64},
		"a ping of 126 bytes":    {[]byte{opPing, 0x80 | 126}, math.MaxInt64},
		"a ping of 125 bytes":    {clientFrame(opPing, strings.Repeat("x", 125)), maxMaskedControl},
		"more than one frame":    {append(clientFrame(opText, "abc"), 1, 2, 3), 9},
		"the beginning of a lot": {clientFrame(opText, strings.Repeat("x", 70_000))[:20], 70_014},
	} {
		t.Run(name, func(t *testing.T) {
			size, known := frameSize(tc.b, false)
			if known != (tc.size != 0) || known && size != tc.size {
				t.Errorf("got %d, %v, want %d", size, known, tc.size)
			}
		})
	}
}
