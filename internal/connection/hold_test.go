package connection

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"
)

// newMetered returns a connection whose reader notes what came with each message, and with control frames.
func newMetered(t *testing.T, start func(testing.TB, func(*Config)) *gate, hold time.Duration) (g *gate, messages, controls chan Came) {
	g = start(t, nil)
	messages, controls = make(chan Came, 64), make(chan Came, 64)
	g.handle = func(c *Connection, b []byte) { messages <- c.Came(); c.Send(b) }
	g.toll = func(c *Connection) {
		controls <- c.Came()
		if hold > 0 {
			c.Hold(hold)
		}
	}
	return g, messages, controls
}

// Every frame is counted, with its header, once: with the message it is, or came before; or, when only control frames came, before more
// is read.
func TestWhatCameIsCounted(t *testing.T) {
	for name, start := range map[string]func(testing.TB, func(*Config)) *gate{"bare": newGate, "TLS": newTLSGate} {
		t.Run(name, func(t *testing.T) {
			g, messages, controls := newMetered(t, start, 0)
			_, r := g.rawDial(0)
			long := strings.Repeat("x", 60_000)
			var all Came
			want := func(what string, frames int, bytes int64) {
				t.Helper()
				poll(t, what, func() bool {
					for {
						select {
						case came := <-messages:
							all.Frames, all.Bytes = all.Frames+came.Frames, all.Bytes+came.Bytes
						case came := <-controls:
							all.Frames, all.Bytes = all.Frames+came.Frames, all.Bytes+came.Bytes
						default:
							return all.Frames == frames && all.Bytes == bytes
						}
					}
				})
			}
			r.send(opText, "x")
			want("a message", 1, 7)
			r.write(append(clientFrame(opText, "a"), clientFrame(opText, "bc")...))
			want("two at once", 3, 22)
			r.send(opText, long)
			want("a long one", 4, 22+60_008)
			// A message in two fragments with a ping between them is two frames.
			r.write(clientFrame(0x1, "ab"))
			r.send(opPing, "p")
			r.send(0x80, "cd")
			want("fragments", 6, 60_030+8+7+8)
			r.send(opPong, "")
			r.send(opPing, "")
			r.send(opText, "end")
			want("a pong, a ping, a message", 9, 60_053+6+6+9)
		})
	}
}

// Control frames alone are paid for before more is read: what is sent behind them waits.
func TestControlFramesHoldTheReader(t *testing.T) {
	for name, start := range map[string]func(testing.TB, func(*Config)) *gate{"bare": newGate, "TLS": newTLSGate} {
		t.Run(name, func(t *testing.T) {
			g, _, controls := newMetered(t, start, time.Hour)
			c, r := g.rawDial(0)
			r.send(opPing, "p")
			r.wantFrame(opPong, "p")
			r.send(opText, "x")
			poll(t, "the reader is held", c.waiting.Load)
			if came := <-controls; came.Frames != 1 || came.Bytes != 7 {
				t.Errorf("held for %+v", came)
			}
			g.m.CheckHealth(time.Now().Add(DefaultConfig().PongWait - time.Second))
			g.wantAlive(c)
			c.Close(Cause{Kind: KindDraining})
			r.wantClosing(KindDraining.Code())
			r.send(opClose, "\x0f\xa0")
			g.wantEnd(c, KindDraining, KindDraining.Code())
		})
	}
}

// A message may come in fragments that are empty, as many as one likes: they are paid for before it ends, if ever it does. It must end in
// time all the same.
func TestAMessageWithoutEndHoldsTheReader(t *testing.T) {
	for name, start := range map[string]func(testing.TB, func(*Config)) *gate{"bare": newGate, "TLS": newTLSGate} {
		t.Run(name, func(t *testing.T) {
			g, _, controls := newMetered(t, start, time.Hour)
			c, r := g.rawDial(0)
			g.identify(c, "alice")
			const plenty = 2 * 64 << 10
			r.write(clientFrame(0x1, "x"))
			r.write(bytes.Repeat(clientFrame(0x0, ""), (plenty+1000)/6))
			poll(t, "the reader is held", c.waiting.Load)
			if came := <-controls; came.Frames != 0 || came.Bytes <= plenty || came.Bytes > plenty+7 {
				t.Errorf("held for %+v, want just over %d bytes", came, plenty)
			}
			g.m.CheckHealth(time.Now().Add(DefaultConfig().MessageTimeout))
			r.wantClosing(KindMessageTimeout.Code())
			r.nc.Close()
			g.wantEnd(c, KindMessageTimeout, KindMessageTimeout.Code())
		})
	}
}

// A held reader goes on when the time is over, and not before: answers that come meanwhile are nothing to it.
func TestHoldLastsAsLongAsItSays(t *testing.T) {
	const hold = 60 * time.Millisecond
	g := newGate(t, nil)
	lasted := make(chan time.Duration, 1)
	g.handle = func(c *Connection, _ []byte) {
		if !c.Acquire() {
			t.Error("no place")
		}
		letGo := make(chan struct{})
		go func() {
			defer close(letGo)
			for until := time.Now().Add(patience); !c.waiting.Load() && time.Now().Before(until); {
				runtime.Gosched()
			}
			c.Release()
		}()
		began := time.Now()
		if !c.Hold(hold) {
			t.Error("the hold was ended")
		}
		<-letGo
		lasted <- time.Since(began)
	}
	_, r := g.rawDial(0)
	r.send(opText, "x")
	if d := <-lasted; d < hold {
		t.Errorf("held for %v, want %v", d, hold)
	}
}

// Whoever floods with pings is held, but not heard: he has to register and to send heartbeats in time like anybody.
func TestAPingFloodStopsNoClock(t *testing.T) {
	g := newTimedGate(t, nil)
	g.toll = func(c *Connection) { c.Hold(time.Hour) }
	c, r := g.rawDial(0)
	r.send(opPing, "p")
	r.wantFrame(opPong, "p")
	r.send(opPing, "q") // nothing more is read, for which the first is paid before
	poll(t, "the reader is held", c.waiting.Load)
	g.after(DefaultConfig().RegisterTimeout)
	r.wantClosing(KindRegisterTimeout.Code())
	r.send(opClose, "\x11\x94")
	g.wantEnd(c, KindRegisterTimeout, KindRegisterTimeout.Code())
}

// Nor does whoever floods with frames of any kind stop the clock, as long as it isn't known who he is.
func TestAFloodBeforeRegisterStopsNoClock(t *testing.T) {
	g := newTimedGate(t, nil)
	g.handle = func(c *Connection, _ []byte) { c.Hold(time.Hour) }
	c, r := g.rawDial(0)
	r.send(opText, "x")
	poll(t, "the reader is held", c.waiting.Load)
	g.after(DefaultConfig().RegisterTimeout - time.Second)
	g.wantAlive(c)
	g.after(time.Second)
	r.wantClosing(KindRegisterTimeout.Code())
	r.send(opClose, "\x11\x94")
	g.wantEnd(c, KindRegisterTimeout, KindRegisterTimeout.Code())
}
