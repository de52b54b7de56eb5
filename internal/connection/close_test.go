package connection

import (
	"encoding/binary"
	"errors"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"chatgate/internal/protocol"
)

// What was queued goes first, then the closing frame with everything it can say, then the close frame.
func TestCloseTellsTheClient(t *testing.T) {
	g := newGate(t, nil)
	c, ws := g.dial()
	c.Append([]byte("the last word"))
	c.Close(Cause{Kind: KindDraining, AfterMs: 100, WindowMs: 5000, By: "operator"})
	wantText(t, ws, "the last word")
	got := wantClosing(t, ws, protocol.CloseDraining)
	want := closingFrame{"closing", 4000, "draining", true, 100, 5000, "operator"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	g.wantEnd(c, KindDraining, protocol.CloseDraining)
	if c.Append([]byte("too late")) || c.AppendFrame([]byte("too late")) || c.Send([]byte("too late")) {
		t.Error("a frame was taken after the close")
	}
	if n := g.m.Stats().Refused; n != 3 {
		t.Errorf("counted %d refused frames, want 3", n)
	}
}

func TestEveryKindHasItsNameAndCode(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Kinds() {
		if k.String() == "" || names[k.String()] || k.Code() == 0 {
			t.Errorf("kind %d: name %q, code %d", k, k, k.Code())
		}
		names[k.String()] = true
		if k.Code().Name() == "other" {
			t.Errorf("%s: code %d is not in the table of codes", k, k.Code())
		}
	}
	if got := (Cause{}).complete(); got.Kind != KindInternal || got.Code != protocol.CloseInternalError {
		t.Errorf("a cause without kind is %+v", got)
	}
	if got := Kind(200); got.String() != "unknown" || got.Code() != protocol.CloseInternalError {
		t.Errorf("a kind that does not exist is %s, %d", got, got.Code())
	}
	err := errors.New("broken pipe")
	if cause := (Cause{Kind: KindNetwork, Err: err}).complete(); !errors.Is(cause, err) {
		t.Errorf("%v does not wrap what it was caused by", cause)
	}
}

// A code and reason of the caller's, as in the mark of a kick, and a reason too long for a close frame: the closing frame has all of it.
func TestLongReasonIsCutBetweenCharacters(t *testing.T) {
	g := newGate(t, nil)
	c, r := g.rawDial(0)
	reason := strings.Repeat("é", 100)
	c.Close(Cause{Kind: KindKicked, Code: protocol.CloseRevoked, Reason: reason})
	_, p, err := r.frame()
	if err != nil {
		t.Fatal(err)
	}
	if f := decodeClosing(t, p); f.Reason != reason || f.Code != 4504 {
		t.Errorf("closing frame: %+v", f)
	}
	first, p, err := r.frame()
	if err != nil || first != opClose || binary.BigEndian.Uint16(p) != 4504 {
		t.Fatalf("close frame: %#x %q, %v", first, p, err)
	}
	if got := string(p[2:]); len(got) != 122 || !utf8.ValidString(got) || !strings.HasPrefix(reason, got) {
		t.Errorf("reason of %d bytes: %q", len(got), got)
	}
	r.nc.Close()
	g.wantEnd(c, KindKicked, protocol.CloseRevoked)
}

func TestFirstCauseWins(t *testing.T) {
	for range 20 {
		g := newGate(t, nil)
		c, ws := g.dial()
		var wg sync.WaitGroup
		for _, k := range []Kind{KindKicked, KindReplaced, KindDraining, KindMaxAge} {
			wg.Go(func() { c.Close(Cause{Kind: k}) })
		}
		wg.Wait()
		cause, _ := c.Cause()
		wantClosing(t, ws, cause.Code)
		g.wantEnd(c, cause.Kind, cause.Code)
		if got := g.m.Stats().Ends[cause.Kind]; got != 1 {
			t.Errorf("counted %d ends", got)
		}
	}
}

// The client never answers the close frame.
func TestCloseWaitsNoLongerThanCloseWait(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.CloseWait = 100 * time.Millisecond })
	c, r := g.rawDial(0)
	begin := time.Now()
	c.Close(Cause{Kind: KindSuperseded})
	g.wantEnd(c, KindSuperseded, protocol.CloseSuperseded)
	if took := time.Since(begin); took < 100*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	r.wantClosing(protocol.CloseSuperseded)
	r.wantEOF()
}

// The client's socket is full and it is kicked: it had its chance, and the memory comes back.
func TestCloseOfAFullSocketEnds(t *testing.T) {
	g := newGate(t, func(cfg *Config) {
		cfg.OutboxBytes, cfg.OutboxFrames = 0, 0
		cfg.CloseWait = 100 * time.Millisecond
	})
	c, _ := g.rawDial(4096)
	for g.m.Stats().Writers == 0 {
		c.Send([]byte(strings.Repeat("x", 10_000)))
	}
	c.Close(Cause{Kind: KindKicked})
	g.wantEnd(c, KindKicked, protocol.CloseKicked)
	if n := c.held(); n != 0 {
		t.Errorf("%d bytes held after the end", n)
	}
	if g.m.Stats().Writers != 0 {
		t.Error("the writer goroutine was not joined")
	}
}

// Messages that cross the close are not handled: the client was told, and repeats them elsewhere.
func TestMessagesAfterTheCloseAreNotHandled(t *testing.T) {
	g := newGate(t, nil)
	handled := make(chan string, 10)
	g.handle = func(_ *Connection, b []byte) { handled <- string(b) }
	c, r := g.rawDial(0)
	c.Close(Cause{Kind: KindRebalance})
	r.send(opText, "crossed")
	r.send(0x1, "and this")
	r.send(0x80, " one")
	r.send(opClose, "\x03\xe8")
	r.wantClosing(protocol.CloseRebalance)
	r.wantEOF()
	g.wantEnd(c, KindRebalance, protocol.CloseRebalance)
	if len(handled) != 0 {
		t.Errorf("handled %q", <-handled)
	}
}

// A slow consumer whose socket takes bytes after all, because nobody flushed: it is told.
func TestOverflowWithoutAFullSocketSendsTheClosingFrame(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxBytes = 1000 })
	c, r := g.rawDial(0)
	if c.Append([]byte(strings.Repeat("x", 2000))) {
		t.Fatal("a frame larger than the outbox was taken")
	}
	r.wantClosing(protocol.CloseSlowConsumer)
	g.wantEnd(c, KindSlowConsumer, protocol.CloseSlowConsumer)
}

// Appending, flushing, closing and the client's end, all at once: everything is given back, whoever comes first.
func TestEndsRaceWithWriters(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.CloseWait = 20 * time.Millisecond })
	for i := range 60 {
		c, r := g.rawDial(4096)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				body := []byte(strings.Repeat("x", 3000))
				for c.Send(body) {
				}
			})
		}
		switch i % 3 {
		case 0:
			c.Close(Cause{Kind: KindDraining})
		case 1:
			r.nc.Close()
		}
		wg.Wait()
		g.mu.Lock()
		ch := g.causes[c]
		g.mu.Unlock()
		select {
		case <-ch:
		case <-time.After(patience):
			t.Fatal("still running")
		}
		if n := c.held(); n != 0 {
			t.Fatalf("%d bytes held after the end", n)
		}
	}
}

// A person logs out while another goroutine is in the middle of a Flush, sending `registered`, say. The close is answered with the
// client's own code behind what is being written; a reset, which a browser calls 1006 and comes back from, would lose both.
func TestCloseIsAnsweredBehindAFlushUnderWay(t *testing.T) {
	g := newGate(t, nil)
	c, r := g.rawDial(0)
	c.Append([]byte("registered"))
	c.mu.Lock()
	flushing := c.take() // what Flush does first; the socket is written to when the test says so
	c.mu.Unlock()
	r.send(0x80|0x8, "\x03\xe8")
	poll(t, "the client's close to be read", func() bool { _, ended := c.Cause(); return ended })
	c.write(flushing)
	r.wantFrame(0x80|0x1, "registered")
	r.wantFrame(0x80|0x8, "\x03\xe8")
	r.wantEOF()
	g.wantEnd(c, KindClientClose, protocol.CloseNormal)
}

// What an end is to whoever waits for the client: a tab that is closed is no goodbye, and a drained gateway loses nobody.
func TestEndings(t *testing.T) {
	want := map[Ending][]Cause{
		Goodbye: {{Kind: KindClientClose}, {Kind: KindClientClose, Code: 1000}, {Kind: KindClientClose, Code: 1005}, {Kind: KindKicked}, {Kind: KindRevoked}},
		Drop: {
			{Kind: KindClientClose, Code: 1001},
			{Kind: KindClientClose, Code: 3000},
			{Kind: KindNetwork},
			{Kind: KindSlowConsumer},
			{Kind: KindHeartbeatTimeout},
			{Kind: KindPingTimeout},
			{Kind: KindMessageTimeout},
			{Kind: KindTokenExpired},
			{Kind: KindTooManyErrors},
			{Kind: KindTooLarge},
			{Kind: KindBadData},
			{Kind: KindProtocol},
			{Kind: KindInternal},
			{Kind: KindUnauthorized},
			{Kind: KindRegisterTimeout},
			{Kind: KindGatewayLost},
			{Kind: KindAbandoned},
			{},
		},
		Moved: {{Kind: KindReplaced}, {Kind: KindDraining}, {Kind: KindRebalance}, {Kind: KindSuperseded}, {Kind: KindMaxAge}},
	}
	seen := make(map[Kind]bool)
	for ending, causes := range want {
		for _, c := range causes {
			seen[c.Kind] = true
			if got := c.Ending(); got != ending {
				t.Errorf("%v: %s, want %s", c, got, ending)
			}
		}
	}
	for k := range numKinds {
		if !seen[k] {
			t.Errorf("%v has no ending here", k)
		}
	}
}

// docs/events.md lists each cause under its kind.
func TestTheDocumentListsEachCauseUnderItsKind(t *testing.T) {
	text, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	for k := KindUnknown + 1; k < numKinds; k++ {
		if k == KindRegisterTimeout || k == KindUnauthorized {
			continue // no connection that was registered ends so
		}
		ending := Cause{Kind: k}.Ending()
		row := regexp.MustCompile("(?m)^\\| `" + string(ending) + "` \\|.*$").FindString(string(text))
		if !strings.Contains(row, "`"+k.String()+"`") {
			t.Errorf("%s is not listed as a %s", k, ending)
		}
	}
}
