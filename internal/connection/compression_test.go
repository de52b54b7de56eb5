package connection

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/tls"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

// deflated is a text as a client sends it compressed (RFC 7692 §7.2.1): without the four bytes at the end of a flush.
func deflated(t *testing.T, s string) string {
	t.Helper()
	return strings.TrimSuffix(deflate(t, s, (*flate.Writer).Flush), "\x00\x00\xff\xff")
}

// final is a text compressed with a last block of its own (BFINAL).
func final(t *testing.T, s string) string {
	t.Helper()
	return deflate(t, s, (*flate.Writer).Close)
}

func deflate(t *testing.T, s string, end func(*flate.Writer) error) string {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := end(w); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// dialCompressing connects a client that has offered compression, and says what was agreed to.
func (g *gate) dialCompressing() (c *Connection, ws *websocket.Conn, agreed string) {
	g.t.Helper()
	dialer := websocket.Dialer{EnableCompression: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	ws, resp, err := dialer.Dial("ws"+strings.TrimPrefix(g.srv.URL, "http"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	resp.Body.Close()
	g.t.Cleanup(func() { ws.Close() })
	return <-g.upgraded, ws, resp.Header.Get("Sec-WebSocket-Extensions")
}

// A client may compress where the operator lets it. What it says arrives as it was, in one frame or several and also when it stops compressing;
// the largest message may be what inflates to just that.
func TestClientsMayCompressWhereTheyAreLetTo(t *testing.T) {
	for name, start := range map[string]func(testing.TB, func(*Config)) *gate{"a bare socket": newGate, "TLS": newTLSGate} {
		t.Run(name, func(t *testing.T) {
			g := start(t, func(cfg *Config) { cfg.Compression = true })
			_, ws, agreed := g.dialCompressing()
			if want := "permessage-deflate; server_no_context_takeover; client_no_context_takeover"; agreed != want {
				t.Errorf("agreed to %q, want %q", agreed, want)
			}
			for _, s := range []string{"hello", "", strings.Repeat("x", int(g.cfg.MaxFrameBytes)), "grüße"} {
				for _, compress := range []bool{true, false} {
					ws.EnableWriteCompression(compress)
					sendText(t, ws, s)
					wantText(t, ws, s)
				}
			}
			whole := deflated(t, "in three pieces, and a ping between them")
			for _, piece := range [][]byte{
				clientFrame(opText&0xF|rsv1, whole[:5]), clientFrame(0x0, whole[5:9]), clientFrame(opPing, "x"), clientFrame(0x80, whole[9:]),
			} {
				if _, err := ws.NetConn().Write(piece); err != nil {
					t.Fatal(err)
				}
			}
			wantText(t, ws, "in three pieces, and a ping between them")
		})
	}
}

// What is compressed is held to every rule that holds for the rest, and its size is that of what comes out of it.
func TestBadCompressionIsClosedWithItsCode(t *testing.T) {
	const limit = 64 << 10
	const compressed = opText | rsv1
	for name, tc := range map[string]struct {
		send   []byte
		agreed bool
		kind   Kind
		code   protocol.CloseCode
	}{
		"a bomb":                      {clientFrame(compressed, deflated(t, strings.Repeat("x", 40<<20))), true, KindTooLarge, protocol.CloseTooBig},
		"one byte over the limit":     {clientFrame(compressed, deflated(t, strings.Repeat("x", limit+1))), true, KindTooLarge, protocol.CloseTooBig},
		"too large on the wire":       {clientFrame(compressed, strings.Repeat("x", limit+1)), true, KindTooLarge, protocol.CloseTooBig},
		"no UTF-8 inside":             {clientFrame(compressed, deflated(t, "a\xffb")), true, KindBadData, protocol.CloseInvalidPayload},
		"not compressed at all":       {clientFrame(compressed, "\xff\xff\xff\xff\xff"), true, KindBadData, protocol.CloseInvalidPayload},
		"cut short":                   {clientFrame(compressed, deflated(t, "hello, hello, hello")[:6]), true, KindBadData, protocol.CloseInvalidPayload},
		"ended before its last frame": {append(clientFrame(0x1|rsv1, final(t, "hello")), clientFrame(0x0, "")...), true, KindBadData, protocol.CloseInvalidPayload},
		"a compressed binary message": {clientFrame(0x82|rsv1, deflated(t, "x")), true, KindBadData, protocol.CloseUnsupportedData},
		"a compressed continuation":   {append(clientFrame(0x1|rsv1, "x"), clientFrame(0x80|rsv1, "y")...), true, KindProtocol, protocol.CloseProtocolError},
		"a compressed ping":           {clientFrame(opPing|rsv1, "x"), true, KindProtocol, protocol.CloseProtocolError},
		"a compressed close":          {clientFrame(opClose|rsv1, "\x03\xe8"), true, KindProtocol, protocol.CloseProtocolError},
		"another reserved bit":        {clientFrame(opText|0x20, "x"), true, KindProtocol, protocol.CloseProtocolError},
		"not agreed to":               {clientFrame(compressed, deflated(t, "x")), false, KindProtocol, protocol.CloseProtocolError},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, func(cfg *Config) { cfg.Compression = true })
			_, neighbour, _ := g.dialCompressing()
			var c *Connection
			var r *rawClient
			if tc.agreed {
				var ws *websocket.Conn
				c, ws, _ = g.dialCompressing()
				r = &rawClient{t: t, nc: ws.NetConn(), br: bufio.NewReader(ws.NetConn())}
			} else {
				c, r = g.rawDial(0)
			}
			r.write(tc.send)
			r.wantClosing(tc.code)
			r.send(opClose, "")
			r.nc.Close()
			g.wantEnd(c, tc.kind, tc.code)
			sendText(t, neighbour, "still here")
			wantText(t, neighbour, "still here")
		})
	}
}
