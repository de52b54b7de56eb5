package connection

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

func TestMessagesComeWholeAndInOrder(t *testing.T) {
	g := newGate(t, nil)
	_, ws := g.dial()
	long := strings.Repeat("ü", 20000)
	for _, s := range []string{"a", "", "b", long, `{"type":"heartbeat"}`} {
		sendText(t, ws, s)
		wantText(t, ws, s)
	}
}

// A client that writes many frames into one segment gets them all handled, from one buffer.
func TestPipelinedMessagesAreAllHandled(t *testing.T) {
	g := newGate(t, nil)
	_, r := g.rawDial(0)
	var all []byte
	for i := range 200 {
		all = append(all, clientFrame(opText, strings.Repeat("x", i*7))...)
	}
	r.write(all)
	for i := range 200 {
		r.wantFrame(opText, strings.Repeat("x", i*7))
	}
}

func TestFragmentsWithAPingBetweenThem(t *testing.T) {
	g := newGate(t, nil)
	_, r := g.rawDial(0)
	r.send(0x1, "one ")
	r.send(opPing, "are you there")
	for _, s := range []string{"t", "w", "o", ""} {
		r.send(0x0, s)
	}
	r.send(0x80, " three")
	r.wantFrame(opPong, "are you there")
	r.wantFrame(opText, "one two three")
}

// The read buffer is held while a message is under way, and given back when the reader comes to rest.
func TestReaderAtRestHoldsNoBuffer(t *testing.T) {
	c := &Connection{cfg: &Config{}, nc: emptyConn{}}
	c.rbuf = readBuffers.Get().(*readBuffer)
	c.inMessage = true
	_, _ = (*socket)(c).Read(nil)
	if c.rbuf == nil {
		t.Error("the buffer went in the middle of a message")
	}
	c.inMessage = false
	_, _ = (*socket)(c).Read(nil)
	if c.rbuf != nil {
		t.Error("the buffer stayed at rest")
	}
}

// What a client may not send, and what it is told: the closing frame, the close frame, the end. A neighbour notices nothing.
func TestBadInputIsClosedWithItsCode(t *testing.T) {
	const limit = 64 << 10
	announced := func(n uint64) []byte {
		b := binary.BigEndian.AppendUint64([]byte{opText, 0x80 | 127}, n)
		return append(b, 0, 0, 0, 0)
	}
	closeFrame := func(code uint16, reason string) []byte {
		return clientFrame(opClose, string(binary.BigEndian.AppendUint16(nil, code))+reason)
	}
	for name, tc := range map[string]struct {
		send []byte
		kind Kind
		code protocol.CloseCode
	}{
		"binary":                       {clientFrame(0x82, "x"), KindBadData, protocol.CloseUnsupportedData},
		"text that is not UTF-8":       {clientFrame(opText, "a\xffb"), KindBadData, protocol.CloseInvalidPayload},
		"UTF-8 that ends early":        {clientFrame(opText, "a\xe2\x82"), KindBadData, protocol.CloseInvalidPayload},
		"surrogate in UTF-8":           {clientFrame(opText, "\xed\xa0\x80"), KindBadData, protocol.CloseInvalidPayload},
		"fragments that are no UTF-8":  {append(clientFrame(0x1, "\xe2\x82"), clientFrame(0x80, "x")...), KindBadData, protocol.CloseInvalidPayload},
		"one byte over the limit":      {clientFrame(opText, strings.Repeat("x", limit+1)), KindTooLarge, protocol.CloseTooBig},
		"over the limit in fragments":  {append(clientFrame(0x1, strings.Repeat("x", limit)), clientFrame(0x80, "x")...), KindTooLarge, protocol.CloseTooBig},
		"a gigabyte announced":         {announced(1 << 30), KindTooLarge, protocol.CloseTooBig},
		"length with the top bit":      {announced(1 << 63), KindTooLarge, protocol.CloseTooBig},
		"unmasked":                     {[]byte{opText, 1, 'x'}, KindProtocol, protocol.CloseProtocolError},
		"reserved bit":                 {clientFrame(opText|0x40, "x"), KindProtocol, protocol.CloseProtocolError},
		"unknown opcode":               {clientFrame(0x83, "x"), KindProtocol, protocol.CloseProtocolError},
		"continuation of nothing":      {clientFrame(0x80, "x"), KindProtocol, protocol.CloseProtocolError},
		"text inside of a message":     {append(clientFrame(0x1, "x"), clientFrame(opText, "y")...), KindProtocol, protocol.CloseProtocolError},
		"fragmented ping":              {clientFrame(0x9, "x"), KindProtocol, protocol.CloseProtocolError},
		"ping of 126 bytes":            {clientFrame(opPing, strings.Repeat("x", 126)), KindProtocol, protocol.CloseProtocolError},
		"close code 0":                 {closeFrame(0, ""), KindProtocol, protocol.CloseProtocolError},
		"close code 999":               {closeFrame(999, ""), KindProtocol, protocol.CloseProtocolError},
		"close code 1005":              {closeFrame(1005, ""), KindProtocol, protocol.CloseProtocolError},
		"close code 1015":              {closeFrame(1015, ""), KindProtocol, protocol.CloseProtocolError},
		"close code 2999":              {closeFrame(2999, ""), KindProtocol, protocol.CloseProtocolError},
		"close frame of one byte":      {clientFrame(opClose, "x"), KindProtocol, protocol.CloseProtocolError},
		"the same inside of a message": {append(clientFrame(0x1, "x"), clientFrame(opClose, "x")...), KindProtocol, protocol.CloseProtocolError},
		"close reason not UTF-8":       {closeFrame(1000, "\xff"), KindProtocol, protocol.CloseProtocolError},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, nil)
			_, neighbour := g.dial()
			c, r := g.rawDial(0)
			r.write(tc.send)
			r.wantClosing(tc.code)
			r.send(opClose, "")
			r.nc.Close()
			g.wantEnd(c, tc.kind, tc.code)
			sendText(t, neighbour, "still here")
			wantText(t, neighbour, "still here")
			if got := g.m.Stats().Ends[tc.kind]; got != 1 {
				t.Errorf("counted %d ends by %s, want 1", got, tc.kind)
			}
		})
	}
}

func TestMessageOfExactlyTheLimitIsTaken(t *testing.T) {
	g := newGate(t, nil)
	_, ws := g.dial()
	s := strings.Repeat("x", int(g.cfg.MaxFrameBytes))
	sendText(t, ws, s)
	wantText(t, ws, s)
}

// A client whose frame was refused, and who goes on sending, still gets to see why: the socket is not reset under the close frame, and
// it is not listened to longer than CloseWait.
func TestRefusedClientThatGoesOnSendingSeesTheCloseFrame(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.CloseWait = time.Second })
	c, r := g.rawDial(0)
	r.send(opText, strings.Repeat("x", 1<<20))
	r.wantClosing(protocol.CloseTooBig)
	r.wantEOF()
	g.wantEnd(c, KindTooLarge, protocol.CloseTooBig)
}

// RFC 6455 §5.5.1: the echo has the code that came. No closing frame goes before it: the client knows.
func TestClientsCloseIsEchoed(t *testing.T) {
	for name, tc := range map[string]struct {
		payload string
		echo    string
		code    protocol.CloseCode
		reason  string
	}{
		"normal":          {"\x03\xe8", "\x03\xe8", 1000, ""},
		"with a reason":   {"\x03\xe9going home", "\x03\xe9", 1001, "going home"},
		"without a code":  {"", "", 1005, ""},
		"of a library":    {"\x0b\xb8", "\x0b\xb8", 3000, ""},
		"the highest one": {"\x13\x87", "\x13\x87", 4999, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, nil)
			c, r := g.rawDial(0)
			r.send(opClose, tc.payload)
			r.wantFrame(opClose, tc.echo)
			r.wantEOF()
			if cause := g.wantEnd(c, KindClientClose, tc.code); cause.Reason != tc.reason {
				t.Errorf("reason %q, want %q", cause.Reason, tc.reason)
			}
		})
	}
}

// The client closes while megabytes for it are still here: it gets them, and the echo after them.
func TestClientsCloseIsEchoedAfterWhatIsQueued(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxBytes, cfg.OutboxFrames = 0, 0 })
	c, r := g.rawDial(4096)
	fill(c)
	r.send(opClose, "\x03\xe8")
	poll(t, "the close is seen", c.closing)
	for {
		first, p, err := r.frame()
		if err != nil {
			t.Fatal(err)
		}
		if first == opClose {
			if string(p) != "\x03\xe8" {
				t.Errorf("echoed %q", p)
			}
			break
		}
	}
	r.wantEOF()
	g.wantEnd(c, KindClientClose, protocol.CloseNormal)
}

func TestEndWithoutCloseFrameIsTheNetwork(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"between messages":  nil,
		"in a header":       {opText},
		"in a message":      clientFrame(opText, "hello")[:8],
		"between fragments": clientFrame(0x1, "hello"),
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, nil)
			c, r := g.rawDial(0)
			r.write(bytes)
			r.nc.Close()
			g.wantEnd(c, KindNetwork, protocol.CloseAbnormal)
		})
	}
}

// Two places: the third Acquire holds the reader until one is released, from another goroutine.
func TestReaderIsHeldAboveTheWindow(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.InFlight = 2 })
	got := make(chan string, 10)
	g.handle = func(c *Connection, b []byte) {
		if c.Acquire() {
			got <- string(b)
		}
	}
	c, ws := g.dial()
	for _, s := range []string{"1", "2", "3", "4"} {
		sendText(t, ws, s)
	}
	poll(t, "the reader is held", c.waiting.Load)
	if len(got) != 2 {
		t.Fatalf("%d got through, want 2", len(got))
	}
	for n := 3; n <= 4; n++ {
		c.Release()
		poll(t, "the next got through", func() bool { return len(got) == n })
	}
	for _, want := range []string{"1", "2", "3", "4"} {
		if s := <-got; s != want {
			t.Fatalf("got %s, want %s", s, want)
		}
	}
}

func TestClosingWakesAHeldReader(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.InFlight = 1 })
	refused := make(chan struct{})
	g.handle = func(c *Connection, b []byte) {
		if !c.Acquire() {
			close(refused)
		}
	}
	c, ws := g.dial()
	sendText(t, ws, "1")
	sendText(t, ws, "2")
	poll(t, "the reader is held", c.waiting.Load)
	c.Close(Cause{Kind: KindKicked})
	<-refused
	wantClosing(t, ws, protocol.CloseKicked)
	g.wantEnd(c, KindKicked, protocol.CloseKicked)
}

// Acquire and Release from two sides, with one place, so that every Release is the one that is waited for, and with all kinds of delay
// between them, so that it comes at every point of the next Acquire.
func TestNoWakeUpIsLost(t *testing.T) {
	c := &Connection{cfg: &Config{InFlight: 1}}
	const rounds = 20_000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range rounds {
			for c.inFlight.Load() == 0 {
				runtime.Gosched()
			}
			c.Release()
		}
	}()
	for i := range rounds {
		if !c.Acquire() {
			t.Fatal("not closing, and refused")
		}
		for range i % 128 {
			c.inFlight.Load()
		}
	}
	<-done
}

// What happened between the reader's first look and its announcement wakes nobody: it must see it by itself.
func TestReaderLooksAgainBeforeItWaits(t *testing.T) {
	c := &Connection{cfg: &Config{InFlight: 1}}
	c.hold(1) // the only place was given back
	c.inFlight.Store(1)
	c.cause.Store(&Cause{Kind: KindKicked}) // closed by a Close that saw nobody waiting
	c.hold(1)
	if c.Acquire() {
		t.Error("acquired while closing")
	}
}

func TestReleaseWithoutAcquirePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	(&Connection{cfg: &Config{}}).Release()
}

// A frame in the same segment as the request came before the 101. The connection is cut, and nobody has to run it.
func TestFramesBeforeTheHandshakeAreRefused(t *testing.T) {
	failed := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cfg := DefaultConfig()
		_, err := Upgrade(w, r, &websocket.Upgrader{}, "c", &cfg)
		failed <- err
	}))
	defer srv.Close()
	nc, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Write(append([]byte(handshake), clientFrame(opText, "early")...)); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("upgraded")
	}
	r := &rawClient{t: t, nc: nc, br: bufio.NewReader(nc)}
	r.wantEOF()
}

// Whatever is no handshake gets a reply, and no connection.
func TestBadHandshakeIsAnswered(t *testing.T) {
	for name, tc := range map[string]struct {
		method string
		header http.Header
		status int
	}{
		"plain GET":     {"GET", nil, 400},
		"POST":          {"POST", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}}, 405},
		"wrong version": {"GET", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"8"}}, 400},
		"bad key": {"GET", http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key": {"x"},
		}, 400},
		"no hijacking": {"GET", http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		}, 500},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			w := httptest.NewRecorder()
			r := httptest.NewRequest(tc.method, "/", nil)
			r.Header = tc.header
			if _, err := Upgrade(w, r, &websocket.Upgrader{}, "c", &cfg); err == nil {
				t.Error("upgraded")
			}
			if w.Code != tc.status {
				t.Errorf("status %d, want %d", w.Code, tc.status)
			}
		})
	}
}

// A panic in handle goes on to whoever runs the connection, which is ended properly first.
func TestPanicInHandleEndsTheConnection(t *testing.T) {
	cfg := DefaultConfig()
	recovered := make(chan any, 1)
	conns := make(chan *Connection, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r, &websocket.Upgrader{}, "c", &cfg)
		if err != nil {
			return
		}
		conns <- c
		go func() {
			defer func() { recovered <- recover() }()
			c.Run(func([]byte) { panic("a mistake") }, nil)
		}()
	}))
	defer srv.Close()
	ws, _, err := websocket.DefaultDialer.DialContext(context.Background(), "ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	sendText(t, ws, "x")
	wantClosing(t, ws, protocol.CloseInternalError)
	if r := <-recovered; r != "a mistake" {
		t.Errorf("recovered %v", r)
	}
	if cause, _ := (<-conns).Cause(); cause.Kind != KindInternal {
		t.Errorf("cause %s", cause.Kind)
	}
}
