package connection

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"chatgate/internal/protocol"
)

// A timed gate has a clock that stands until it is moved, and a sweep that runs when told.
func newTimedGate(t *testing.T, tune func(*Config)) *gate {
	t.Helper()
	return newTimed(t, newGate, tune)
}

func newTimed(t *testing.T, start func(testing.TB, func(*Config)) *gate, tune func(*Config)) *gate {
	t.Helper()
	clock := new(fakeClock)
	g := start(t, func(cfg *Config) {
		clock.stand(cfg)
		if tune != nil {
			tune(cfg)
		}
	})
	g.clock = clock
	return g
}

// after moves the clock and sweeps.
func (g *gate) after(d time.Duration) {
	g.clock.advance(d)
	g.m.CheckHealth(g.clock.now())
}

// Quiet for 20 s: a ping. Its pong is a sign of life, and 20 s later comes the next.
func TestQuietClientIsPingedAndAnswers(t *testing.T) {
	g := newTimedGate(t, func(cfg *Config) { cfg.SilenceTimeout = 0 })
	c, r := g.rawDial(0)
	g.identify(c, "alice")
	for range 20 {
		g.after(19 * time.Second)
		if n := c.held(); n != 0 || c.pingSent.Load() > c.lastByte.Load() {
			t.Fatal("pinged too early")
		}
		g.after(time.Second)
		r.wantFrame(opPing, "")
		g.after(9 * time.Second)
		g.wantAlive(c)
		r.send(opPong, "")
		poll(t, "the pong was read", func() bool { return c.lastByte.Load() >= c.pingSent.Load() })
	}
	if n := g.m.Stats().Pings; n != 20 {
		t.Errorf("%d pings, want 20", n)
	}
}

// The cable is pulled. 20 s until the ping, 10 s for an answer; the closing frame is tried.
func TestUnansweredPingEndsTheConnection(t *testing.T) {
	g := newTimedGate(t, nil)
	c, r := g.rawDial(0)
	g.identify(c, "alice")
	g.after(20 * time.Second)
	r.wantFrame(opPing, "")
	g.after(9999 * time.Millisecond)
	g.wantAlive(c)
	if n := g.m.Stats().Pings; n != 1 {
		t.Errorf("%d pings while one is unanswered", n)
	}
	g.after(time.Millisecond)
	r.wantClosing(protocol.ClosePingTimeout)
	r.nc.Close()
	g.wantEnd(c, KindPingTimeout, protocol.ClosePingTimeout)
}

// A pong refreshes no presence: 90 s without a text frame, however many pongs came.
func TestSilenceEndsTheConnectionThoughPongsCome(t *testing.T) {
	g := newTimedGate(t, nil)
	c, r := g.rawDial(0)
	g.identify(c, "alice")
	for range 4 {
		g.after(20 * time.Second)
		r.wantFrame(opPing, "")
		r.send(opPong, "")
		poll(t, "the pong was read", func() bool { return c.lastByte.Load() >= c.pingSent.Load() })
	}
	g.after(9 * time.Second)
	g.wantAlive(c)
	g.after(time.Second)
	r.wantClosing(protocol.CloseHeartbeatTimeout)
	r.nc.Close()
	g.wantEnd(c, KindHeartbeatTimeout, protocol.CloseHeartbeatTimeout)
}

func TestTextFramesKeepTheConnection(t *testing.T) {
	g := newTimedGate(t, func(cfg *Config) { cfg.PingAfter = 0 })
	c, ws := g.dial()
	g.identify(c, "alice")
	for range 10 {
		g.after(89 * time.Second)
		g.wantAlive(c)
		sendText(t, ws, "heartbeat")
		wantText(t, ws, "heartbeat")
		poll(t, "the clock was set", func() bool { return c.lastPing.Load() == c.cfg.now() })
	}
}

// The reader waits for the router: the client may be talking all the while, so neither rule of silence applies, nor right afterwards.
func TestHeldReaderIsNotSilent(t *testing.T) {
	g := newTimedGate(t, func(cfg *Config) { cfg.InFlight = 1 })
	g.handle = func(c *Connection, _ []byte) { c.Acquire() }
	c, ws := g.dial()
	g.identify(c, "alice")
	sendText(t, ws, "1")
	sendText(t, ws, "2")
	poll(t, "the reader is held", c.waiting.Load)
	for range 10 {
		g.after(time.Minute)
	}
	g.wantAlive(c)
	if n := g.m.Stats().Pings; n != 0 {
		t.Errorf("%d pings to a client that was not listened to", n)
	}
	c.Release()
	poll(t, "the reader reads", func() bool { return !c.waiting.Load() && !c.busy.Load() })
	g.after(0)
	g.wantAlive(c)
	if n := g.m.Stats().Pings; n != 0 {
		t.Errorf("%d pings right after it was let go", n)
	}
}

// The same while a message is handled, however long that takes: nobody reads meanwhile.
func TestClientIsNotSilentWhileItsMessageIsHandled(t *testing.T) {
	g := newTimedGate(t, nil)
	letGo := make(chan struct{})
	g.handle = func(*Connection, []byte) { <-letGo }
	c, ws := g.dial()
	sendText(t, ws, "register, say")
	poll(t, "the message is handled", c.busy.Load)
	for range 10 {
		g.after(time.Minute)
	}
	g.wantAlive(c)
	close(letGo)
	poll(t, "the reader reads", func() bool { return !c.busy.Load() })
	if n := g.m.Stats().Pings; n != 0 {
		t.Errorf("%d pings to a client that was not listened to", n)
	}
}

func TestUnregisteredIsClosed(t *testing.T) {
	g := newTimedGate(t, nil)
	c, ws := g.dial()
	g.after(9 * time.Second)
	sendText(t, ws, "not a register")
	wantText(t, ws, "not a register")
	poll(t, "the frame is handled", func() bool { return !c.busy.Load() })
	g.wantAlive(c)
	g.after(time.Second)
	if f := wantClosing(t, ws, protocol.CloseRegisterTimeout); f.Reconnect {
		t.Error("told to come back")
	}
	g.wantEnd(c, KindRegisterTimeout, protocol.CloseRegisterTimeout)
}

// Redis was away when the client registered: its 10 s start again.
func TestRegisterTimeoutCanStartAgain(t *testing.T) {
	g := newTimedGate(t, func(cfg *Config) { cfg.PingAfter = 0 })
	c, ws := g.dial()
	g.after(9 * time.Second)
	c.ResetRegisterTimeout()
	g.after(9 * time.Second)
	g.wantAlive(c)
	g.after(time.Second)
	wantClosing(t, ws, protocol.CloseRegisterTimeout)
	g.wantEnd(c, KindRegisterTimeout, protocol.CloseRegisterTimeout)
}

func TestMaxAge(t *testing.T) {
	g := newTimedGate(t, func(cfg *Config) { *cfg = Config{CloseWait: patience, MaxAge: time.Hour, Now: cfg.Now} })
	c, ws := g.dial()
	g.after(59 * time.Minute)
	g.wantAlive(c)
	g.after(time.Minute)
	if f := wantClosing(t, ws, protocol.CloseMaxAge); !f.Reconnect {
		t.Error("not told to come back")
	}
	g.wantEnd(c, KindMaxAge, protocol.CloseMaxAge)
}

// Empty continuation frames without end: bytes come all the time, a message never does. gorilla reads on by itself, the sweep ends it.
func TestEndlessContinuationsEnd(t *testing.T) {
	g := newTimedGate(t, nil)
	c, r := g.rawDial(0)
	g.identify(c, "alice")
	r.send(0x1, "")
	go func() {
		frames := bytes.Repeat(clientFrame(0x0, ""), 100)
		for {
			if _, err := r.nc.Write(frames); err != nil {
				return
			}
		}
	}()
	poll(t, "the message has begun", func() bool { return c.messageBegan.Load() != 0 })
	g.after(9 * time.Second)
	g.wantAlive(c)
	g.after(time.Second)
	r.wantClosing(protocol.CloseHeartbeatTimeout)
	r.nc.Close()
	g.wantEnd(c, KindMessageTimeout, protocol.CloseHeartbeatTimeout)
}

// A message in fragments, each in time, the whole not.
func TestMessageMustEnd(t *testing.T) {
	g := newTimedGate(t, nil)
	c, r := g.rawDial(0)
	g.identify(c, "alice")
	r.send(0x1, "begun ")
	poll(t, "the message has begun", func() bool { return c.messageBegan.Load() != 0 })
	g.after(5 * time.Second)
	r.send(0x80, "and ended")
	r.wantFrame(opText, "begun and ended")
	g.after(9 * time.Second)
	g.wantAlive(c)
	r.send(0x1, "never ended")
	poll(t, "the message has begun", func() bool { return c.messageBegan.Load() != 0 })
	g.after(10 * time.Second)
	r.wantClosing(protocol.CloseHeartbeatTimeout)
	r.nc.Close()
	g.wantEnd(c, KindMessageTimeout, protocol.CloseHeartbeatTimeout)
}

// From the first byte of anything the rest has ten seconds, in however many pieces it comes and whatever comes between: a header, a
// control frame, a fragment. Over TLS, too, where gorilla waits for it.
func TestWhatBeganMustEndInTime(t *testing.T) {
	long, ping := clientFrame(opText, strings.Repeat("x", 60_000)), clientFrame(opPing, "are you there?")
	for name, pieces := range map[string][][]byte{
		"a header, byte by byte":      {long[:1], long[1:2], long[2:3]},
		"a message, byte by byte":     {long[:15], long[15:16], long[16:17]},
		"a ping, byte by byte":        {ping[:1], ping[1:3], ping[3:10]},
		"behind a message":            {append(clientFrame(opText, ""), opText), {0x80 | 10}, {0, 0, 0}},
		"behind a ping":               {append(ping, opText), {0x80 | 10}, {0, 0, 0}},
		"fragments and pings":         {clientFrame(beginText, "x"), append(ping, clientFrame(goOn, "x")...), append(ping, goOn)},
		"fragments without a payload": {clientFrame(beginText, ""), clientFrame(goOn, ""), clientFrame(goOn, "")},
	} {
		for over, start := range map[string]func(testing.TB, func(*Config)) *gate{"tcp": newGate, "tls": newTLSGate} {
			t.Run(name+" over "+over, func(t *testing.T) {
				g := newTimed(t, start, func(cfg *Config) { cfg.RegisterTimeout, cfg.PingAfter = 0, 0 })
				c, r := g.dialAs(t)
				sent := uint64(0)
				for i, piece := range pieces {
					r.write(piece)
					sent += uint64(len(piece))
					poll(t, "it was read", func() bool {
						// What was read is noted a moment before what it began is.
						return g.m.Stats().BytesIn == sent && c.messageBegan.Load() != 0
					})
					g.after([]time.Duration{4 * time.Second, 5 * time.Second, 2 * time.Second}[i])
					if i < 2 {
						g.wantAlive(c)
					}
				}
				r.wantClosing(protocol.CloseHeartbeatTimeout)
				r.nc.Close()
				g.wantEnd(c, KindMessageTimeout, protocol.CloseHeartbeatTimeout)
			})
		}
	}
}

// Between frames nothing has begun, whatever they were and however they were cut.
func TestNothingIsBegunBetweenFrames(t *testing.T) {
	ping, pong, text := clientFrame(opPing, "hello"), clientFrame(opPong, "hello"), clientFrame(opText, "hello")
	for over, start := range map[string]func(testing.TB, func(*Config)) *gate{"tcp": newGate, "tls": newTLSGate} {
		t.Run(over, func(t *testing.T) {
			g := newTimed(t, start, func(cfg *Config) { cfg.RegisterTimeout, cfg.PingAfter, cfg.SilenceTimeout = 0, 0, 0 })
			c, r := g.dialAs(t)
			sent := uint64(0)
			for name, frame := range map[string][]byte{
				"ping": ping, "pong": pong, "text": text, "fragments": append(clientFrame(beginText, "a"), clientFrame(opCont, "b")...),
			} {
				for at := range frame {
					r.write(frame[at : at+1])
					sent++
					poll(t, "it was read", func() bool { return g.m.Stats().BytesIn == sent })
				}
				poll(t, "nothing is begun after a "+name, func() bool { return c.messageBegan.Load() == 0 })
				g.after(time.Minute)
				g.wantAlive(c)
			}
		})
	}
}

// With every limit off nothing ever happens.
func TestZeroMeansOff(t *testing.T) {
	g := newTimedGate(t, func(cfg *Config) { *cfg = Config{CloseWait: patience, Now: cfg.Now} })
	c, _ := g.dial()
	g.after(1000 * time.Hour)
	g.wantAlive(c)
	if n := g.m.Stats().Pings; n != 0 {
		t.Errorf("%d pings", n)
	}
}

// The sweep by itself, on the real clock.
func TestRunSweeps(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.RegisterTimeout = 50 * time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.m.Run(ctx) }()
	c, ws := g.dial()
	wantClosing(t, ws, protocol.CloseRegisterTimeout)
	g.wantEnd(c, KindRegisterTimeout, protocol.CloseRegisterTimeout)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSweepIntervalFollowsTheShortestLimit(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		want time.Duration
	}{
		"all off":    {Config{}, time.Second},
		"default":    {DefaultConfig(), time.Second},
		"short":      {Config{PingAfter: time.Second, PongWait: 2 * time.Second}, 100 * time.Millisecond},
		"very short": {Config{RegisterTimeout: time.Millisecond}, 10 * time.Millisecond},
	} {
		if got := NewManager(&tc.cfg).interval(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// After a pause of this process (a jump of the clock between two sweeps) nobody is judged at first: what clients sent is still unread.
func TestPauseOfTheProcessIsNotTheClientsSilence(t *testing.T) {
	g := newTimedGate(t, nil)
	c, ws := g.dial()
	g.identify(c, "alice")
	last := g.m.cfg.now()
	g.clock.advance(100 * time.Second)
	now := g.m.cfg.now()
	g.m.sweep(last, now, time.Second)
	g.wantAlive(c)
	last = now
	g.clock.advance(time.Second)
	g.m.sweep(last, g.m.cfg.now(), time.Second)
	wantClosing(t, ws, protocol.CloseHeartbeatTimeout)
	g.wantEnd(c, KindHeartbeatTimeout, protocol.CloseHeartbeatTimeout)
}

func TestLogValueNamesTheConnection(t *testing.T) {
	g := newGate(t, nil)
	c, ws := g.dial()
	g.identify(c, "alice")
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	c.Close(Cause{Kind: KindKicked})
	wantClosing(t, ws, protocol.CloseKicked)
	log.Info("ended", "c", c)
	for _, want := range []string{"c.conn=" + string(c.ID()), "c.remote=" + c.RemoteAddr(), "c.user=alice", "c.cause=kicked"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
	if age := time.Since(c.Since()); age < 0 || age > patience {
		t.Errorf("since %s", c.Since())
	}
}

// A process that was paused beyond the end of a token, or is late with its sweep, takes nothing more from who showed it. A later end counts.
func TestNothingIsHandledBehindTheEndOfAToken(t *testing.T) {
	var clock fakeClock
	g := newGate(t, func(cfg *Config) { clock.stand(cfg) })
	c, ws := g.dial()
	g.identify(c, "alice")
	c.ExpireAt(clock.now().Add(time.Minute))
	c.ExpireAt(clock.now().Add(time.Hour))
	clock.advance(59 * time.Minute)
	sendText(t, ws, "in time")
	wantText(t, ws, "in time")
	clock.advance(2 * time.Minute)
	sendText(t, ws, "late")
	wantClosing(t, ws, protocol.CloseTokenExpired)
	_ = ws.Close()
	g.wantEnd(c, KindTokenExpired, protocol.CloseTokenExpired)
}

// The machine was suspended: its monotonic clock stood still meanwhile, and the token ran out all the same.
func TestATokenRunsOutWhileTheMachineIsSuspended(t *testing.T) {
	var clock, wall fakeClock
	suspended := func(cfg *Config) {
		clock.stand(cfg)
		wall.stand(cfg)
		cfg.Now, cfg.Wall = clock.now, wall.now
	}
	g := newGate(t, suspended)
	swept, first := g.dial()
	g.identify(swept, "alice")
	reads, second := g.dial()
	g.identify(reads, "bob")
	for _, c := range []*Connection{swept, reads} {
		c.ExpireAt(wall.now().Add(time.Minute))
	}
	wall.advance(59 * time.Second)
	g.m.CheckHealth(clock.now())
	sendText(t, second, "in time")
	wantText(t, second, "in time")
	wall.advance(time.Second)
	sendText(t, second, "late")
	wantClosing(t, second, protocol.CloseTokenExpired)
	g.m.CheckHealth(clock.now())
	wantClosing(t, first, protocol.CloseTokenExpired)
	_, _ = first.Close(), second.Close()
	g.wantEnd(swept, KindTokenExpired, protocol.CloseTokenExpired)
	g.wantEnd(reads, KindTokenExpired, protocol.CloseTokenExpired)
}
