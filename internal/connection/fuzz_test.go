package connection

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

// FuzzWire sends any bytes behind a handshake, in pieces, and then nothing more. gorilla alone, given the same bytes at once, is the
// reference: every message that is handed on is the next of those that gorilla reads; where ours finds nothing wrong, all of them are; and
// where gorilla finds something wrong, so does ours. The connection ends by itself, whatever came.
func FuzzWire(f *testing.F) {
	hello := string(clientFrame(opText, "hello"))
	for _, seed := range []string{
		"", hello, hello[:5], hello + hello, string(clientFrame(opPing, "p")) + hello, string(clientFrame(0x1, "he")) + string(clientFrame(opPong, "")) + string(clientFrame(0x80, "llo")),
		string(clientFrame(opClose, "\x03\xe8")) + hello, string(clientFrame(opClose, "\x03")), string(clientFrame(0x82, "bin")), string(clientFrame(opText, "\xff")),
		string(clientFrame(opText, strings.Repeat("x", 126))), string(clientFrame(opPing, strings.Repeat("x", 126))), "\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
		"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", "\xc1\x80\x00\x00\x00\x00", "\x81\x05hello", "\x80\x80\x00\x00\x00\x00", "\x09\x80\x00\x00\x00\x00", "GET / HTTP/1.1\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(0), false)
		f.Add([]byte(seed), uint8(1), true)
	}
	g := newGate(f, nil)
	var got []string // owned by the one connection there is at a time
	g.handle = func(_ *Connection, b []byte) { got = append(got, string(b)) }
	f.Fuzz(func(t *testing.T, sent []byte, piece uint8, more bool) {
		got = nil
		// gorilla judges the first bytes of a header before the rest has come, ours the whole. In the end there is no difference.
		if more {
			sent = append(bytes.Clone(sent), make([]byte, 14)...)
		}
		want, wrong := gorillaReads(t, sent)
		cause := g.feedAndLeave(t, sent, int(piece))
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("read %.300q, and gorilla %.300q", got, want)
		}
		if cause.Code == protocol.CloseAbnormal && len(got) < len(want) {
			t.Fatalf("read %.300q and found nothing wrong (%v), and gorilla read %.300q", got, cause, want)
		}
		if wrong && more && (cause.Code == protocol.CloseAbnormal || cause.Code == protocol.CloseNormal) {
			t.Fatalf("ended by %s %d, and gorilla found a breach of the protocol", cause.Kind, cause.Code)
		}
	})
}

// feedAndLeave is a client that shakes hands, sends all in pieces of that size (0: at once), and waits for the end.
func (g *gate) feedAndLeave(t *testing.T, all []byte, size int) Cause {
	t.Helper()
	nc, err := net.Dial("tcp", g.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tcp := nc.(*net.TCPConn)
	defer tcp.Close()
	_ = tcp.SetLinger(0)                              // no port is left waiting
	_ = tcp.SetDeadline(time.Now().Add(6 * patience)) // it may run on what others leave of the machine
	if _, err := io.WriteString(tcp, handshake); err != nil {
		t.Fatal(err)
	}
	if _, err := http.ReadResponse(bufio.NewReader(tcp), nil); err != nil {
		t.Fatal(err)
	}
	c := <-g.upgraded
	if size == 0 || len(all)/size > 64 {
		size = len(all)/64 + 1
	}
	for b := range slices.Chunk(all, size) {
		if _, err := tcp.Write(b); err != nil {
			break // it was refused already
		}
	}
	_ = tcp.CloseWrite()
	g.mu.Lock()
	ended := g.causes[c]
	delete(g.causes, c)
	g.mu.Unlock()
	select {
	case cause := <-ended:
		return cause
	case <-time.After(6 * patience):
		t.Fatal("it does not end")
		return Cause{}
	}
}

// gorillaReads is what gorilla makes of the bytes, and whether it says that they break the protocol.
func gorillaReads(t *testing.T, sent []byte) (messages []string, wrong bool) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
	} {
		r.Header.Set(name, value)
	}
	upgrader := websocket.Upgrader{}
	ws, err := upgrader.Upgrade(&hijacked{header: http.Header{}, nc: deafConn{r: bytes.NewReader(sent)}}, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	for {
		kind, b, err := ws.ReadMessage()
		if _, closed := errors.AsType[*websocket.CloseError](err); err != nil {
			return messages, !closed && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF)
		}
		if kind == websocket.BinaryMessage {
			return messages, true // we take none
		}
		messages = append(messages, string(b))
	}
}

// hijacked is a request's connection that reads from memory.
type hijacked struct {
	header http.Header
	nc     deafConn
}

func (h *hijacked) Header() http.Header         { return h.header }
func (h *hijacked) Write(b []byte) (int, error) { return len(b), nil }
func (h *hijacked) WriteHeader(int)             {}
func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.nc, bufio.NewReadWriter(bufio.NewReader(strings.NewReader("")), bufio.NewWriter(io.Discard)), nil
}

// deafConn has an end, and throws away what is written to it.
type deafConn struct {
	net.Conn
	r *bytes.Reader
}

func (d deafConn) Read(b []byte) (int, error)       { return d.r.Read(b) }
func (d deafConn) Write(b []byte) (int, error)      { return len(b), nil }
func (d deafConn) Close() error                     { return nil }
func (d deafConn) SetDeadline(time.Time) error      { return nil }
func (d deafConn) SetReadDeadline(time.Time) error  { return nil }
func (d deafConn) SetWriteDeadline(time.Time) error { return nil }
