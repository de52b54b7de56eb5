package connection

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"chatgate/internal/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// A gate is a server whose connections the test holds in its hands.
type gate struct {
	t      testing.TB
	cfg    *Config
	m      *Manager
	srv    *httptest.Server
	clock  *fakeClock // of the rules; nil: the real one
	handle func(*Connection, []byte)
	toll   func(*Connection) // nil: control frames cost nothing

	upgraded chan *Connection
	serving  sync.WaitGroup

	mu     sync.Mutex
	causes map[*Connection]chan Cause
}

// fakeClock is the time of the sweep's rules.
type fakeClock struct{ nanos atomic.Int64 }

func (f *fakeClock) now() time.Time          { return origin.Add(time.Duration(f.nanos.Load())) }
func (f *fakeClock) advance(d time.Duration) { f.nanos.Add(int64(d)) }
func (f *fakeClock) stand(cfg *Config)       { f.nanos.Store(int64(time.Hour)); cfg.Now = f.now }

// newGate starts a server with the default figures, changed by tune; its handler echoes unless handle is set before the first message.
func newGate(t testing.TB, tune func(*Config)) *gate {
	t.Helper()
	g := prepareGate(t, tune)
	g.srv.Start()
	return g
}

// newTLSGate is the same behind TLS.
func newTLSGate(t testing.TB, tune func(*Config)) *gate {
	t.Helper()
	g := prepareGate(t, tune)
	g.srv.StartTLS()
	return g
}

func prepareGate(t testing.TB, tune func(*Config)) *gate {
	cfg := DefaultConfig()
	cfg.CloseWait = patience // a test that does not answer a close frame says so
	g := &gate{t: t, cfg: &cfg, upgraded: make(chan *Connection, 64), causes: map[*Connection]chan Cause{}}
	if tune != nil {
		tune(&cfg)
	}
	g.m = NewManager(&cfg)
	g.handle = func(c *Connection, b []byte) { c.Send(b) }
	g.srv = httptest.NewUnstartedServer(http.HandlerFunc(g.serveHTTP))
	t.Cleanup(g.stop)
	return g
}

func (g *gate) serveHTTP(w http.ResponseWriter, r *http.Request) {
	id := protocol.ConnID("c" + strconv.FormatUint(nextID.Add(1), 10))
	c, err := Upgrade(w, r, &websocket.Upgrader{Subprotocols: []string{protocol.Subprotocol}}, id, g.cfg)
	if err != nil {
		return
	}
	if err := g.m.Add(c); err != nil {
		c.Close(Cause{Kind: KindDraining})
	}
	cause := make(chan Cause, 1)
	g.mu.Lock()
	g.causes[c] = cause
	g.mu.Unlock()
	g.serving.Add(1)
	go func() {
		defer g.serving.Done()
		defer g.m.Remove(c)
		cause <- c.Run(func(b []byte) { g.handle(c, b) }, g.tollOf(c))
	}()
	g.upgraded <- c
}

var nextID atomic.Uint64

func (g *gate) tollOf(c *Connection) func() {
	if g.toll == nil {
		return nil
	}
	return func() { g.toll(c) }
}

// stop ends what the test left open and verifies the invariants.
func (g *gate) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.m.Check(); err != nil { // the clients have just gone: connections may still be leaving
		g.t.Errorf("invariants at the end of the test: %v", err)
	}
	g.m.ForEach(func(c *Connection) bool {
		_ = c.nc.SetDeadline(expired) // no test waits for its forgotten clients
		return true
	})
	if err := g.m.Close(ctx); err != nil {
		g.t.Errorf("manager: close: %v", err)
	}
	if n := g.m.Count(); n != 0 {
		g.t.Errorf("%d connections after Close", n)
	}
	if err := g.m.check(); err != nil {
		g.t.Errorf("invariants after Close: %v", err)
	}
	if w := g.m.Stats().Writers; w != 0 {
		g.t.Errorf("%d writer goroutines after Close", w)
	}
	g.serving.Wait()
	g.srv.Close()
}

// dial connects a gorilla client; the test sees both ends.
func (g *gate) dial() (*Connection, *websocket.Conn) {
	g.t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(g.srv.URL, "http"), nil)
	if err != nil {
		g.t.Fatalf("dial: %v", err)
	}
	resp.Body.Close()
	g.t.Cleanup(func() { ws.Close() })
	return <-g.upgraded, ws
}

// rawDial connects a client that speaks bytes. With recvBuffer > 0 its kernel takes few of them.
func (g *gate) rawDial(recvBuffer int) (*Connection, *rawClient) {
	g.t.Helper()
	d := net.Dialer{}
	if recvBuffer > 0 {
		d.Control = func(_, _ string, rc syscall.RawConn) error {
			var err error
			if cerr := rc.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, recvBuffer)
			}); cerr != nil {
				return cerr
			}
			return err
		}
	}
	nc, err := d.Dial("tcp", g.srv.Listener.Addr().String())
	if err != nil {
		g.t.Fatalf("dial: %v", err)
	}
	if g.srv.TLS != nil {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
	}
	g.t.Cleanup(func() { nc.Close() })
	r := &rawClient{t: g.t, nc: nc, br: bufio.NewReader(nc)}
	r.write([]byte(handshake))
	resp, err := http.ReadResponse(r.br, nil)
	if err != nil {
		g.t.Fatalf("handshake: %v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		g.t.Fatalf("handshake: %s", resp.Status)
	}
	return <-g.upgraded, r
}

const handshake = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// wantEnd waits until the connection's Run has returned.
func (g *gate) wantEnd(c *Connection, kind Kind, code protocol.CloseCode) Cause {
	g.t.Helper()
	g.mu.Lock()
	ch := g.causes[c]
	g.mu.Unlock()
	select {
	case cause := <-ch:
		ch <- cause
		if cause.Kind != kind || cause.Code != code {
			g.t.Fatalf("ended by %s %d (%s, %v), want %s %d", cause.Kind, cause.Code, cause.Reason, cause.Err, kind, code)
		}
		return cause
	case <-time.After(patience):
		g.t.Fatalf("still running, want an end by %s", kind)
		return Cause{}
	}
}

func (g *gate) wantAlive(c *Connection) {
	g.t.Helper()
	if cause, ended := c.Cause(); ended {
		g.t.Fatalf("ended by %s (%s, %v), want it alive", cause.Kind, cause.Reason, cause.Err)
	}
}

// identify gives the connection a user.
func (g *gate) identify(c *Connection, user protocol.UserID) {
	g.t.Helper()
	c.Identify(Identity{User: user})
	if !g.m.Identify(c) {
		g.t.Fatalf("identify %s: not taken", user)
	}
}

func wantText(t *testing.T, ws *websocket.Conn, want string) {
	t.Helper()
	_ = ws.SetReadDeadline(time.Now().Add(patience))
	_, got, err := ws.ReadMessage()
	if err != nil {
		t.Fatalf("read: %v, want %.80q", err, want)
	}
	if string(got) != want {
		t.Fatalf("got %.80q, want %.80q", got, want)
	}
}

func sendText(t *testing.T, ws *websocket.Conn, s string) {
	t.Helper()
	if err := ws.WriteMessage(websocket.TextMessage, []byte(s)); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// closingFrame is the JSON of the frame before every close by the gateway.
type closingFrame struct {
	Type      string
	Code      int
	Reason    string
	Reconnect bool
	AfterMs   int64
	WindowMs  int64
	By        string
}

func decodeClosing(t testing.TB, b []byte) closingFrame {
	t.Helper()
	var f closingFrame
	if err := json.Unmarshal(b, &f); err != nil || f.Type != "closing" {
		t.Fatalf("got %q, want a closing frame (%v)", b, err)
	}
	return f
}

// wantClosing reads the closing frame and the close frame after it.
func wantClosing(t *testing.T, ws *websocket.Conn, code protocol.CloseCode) closingFrame {
	t.Helper()
	_ = ws.SetReadDeadline(time.Now().Add(patience))
	_, b, err := ws.ReadMessage()
	if err != nil {
		t.Fatalf("read: %v, want a closing frame", err)
	}
	f := decodeClosing(t, b)
	_, b, err = ws.ReadMessage()
	var ce *websocket.CloseError
	if !errors.As(err, &ce) {
		t.Fatalf("got %q, %v, want a close frame", b, err)
	}
	if f.Code != int(code) || ce.Code != int(code) {
		t.Fatalf("closing %d, close frame %d, want %d", f.Code, ce.Code, code)
	}
	return f
}

// rawClient speaks WebSocket by the byte.
type rawClient struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func (r *rawClient) write(b []byte) {
	r.t.Helper()
	_ = r.nc.SetWriteDeadline(time.Now().Add(patience))
	if _, err := r.nc.Write(b); err != nil {
		r.t.Fatalf("write: %v", err)
	}
}

// clientFrame is one masked frame; its mask is zero, which leaves the payload legible.
func clientFrame(first byte, payload string) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n <= 125:
		b = append(b, 0x80|byte(n))
	case n <= 0xFFFF:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

func (r *rawClient) send(first byte, payload string) {
	r.t.Helper()
	r.write(clientFrame(first, payload))
}

// frame reads one frame of the server.
func (r *rawClient) frame() (first byte, payload []byte, err error) {
	_ = r.nc.SetReadDeadline(time.Now().Add(patience))
	var head [2]byte
	if _, err = io.ReadFull(r.br, head[:]); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1])
	switch n {
	case 126:
		var b [2]byte
		_, err = io.ReadFull(r.br, b[:])
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		_, err = io.ReadFull(r.br, b[:])
		n = binary.BigEndian.Uint64(b[:])
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r.br, payload)
	return head[0], payload, err
}

func (r *rawClient) wantFrame(first byte, payload string) {
	r.t.Helper()
	f, p, err := r.frame()
	if err != nil || f != first || string(p) != payload {
		r.t.Fatalf("got frame %#x %.80q, %v; want %#x %.80q", f, p, err, first, payload)
	}
}

// wantClosing reads the closing frame and the close frame; what came before them is skipped.
func (r *rawClient) wantClosing(code protocol.CloseCode) {
	r.t.Helper()
	for {
		first, p, err := r.frame()
		if err != nil {
			r.t.Fatalf("read: %v, want a closing frame with %d", err, code)
		}
		if first != opText || !strings.Contains(string(p), `"closing"`) {
			continue
		}
		if f := decodeClosing(r.t, p); f.Code != int(code) {
			r.t.Fatalf("closing %d, want %d", f.Code, code)
		}
		break
	}
	first, p, err := r.frame()
	if err != nil || first != opClose || len(p) < 2 || binary.BigEndian.Uint16(p) != uint16(code) {
		r.t.Fatalf("got frame %#x %q, %v; want a close frame with %d", first, p, err, code)
	}
}

func (r *rawClient) wantEOF() {
	r.t.Helper()
	_ = r.nc.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(r.br)
	if errors.Is(err, os.ErrDeadlineExceeded) || len(rest) > 0 {
		r.t.Fatalf("got %q, %v; want the end", rest, err)
	}
}

// poll waits for a condition.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// emptyConn is a socket from which nothing comes.
type emptyConn struct{ net.Conn }

func (emptyConn) Read([]byte) (int, error) { return 0, nil }

// drainClient reads and forgets.
func drainClient(r *rawClient) { go func() { _, _ = io.Copy(io.Discard, r.nc) }() }
