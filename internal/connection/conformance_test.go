package connection

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"chatgate/internal/protocol"
)

// The cases of the Autobahn test suite (crossbario/autobahn-testsuite, its numbers), told again for connections of ours: what the suite's
// client sends, byte by byte, and what RFC 6455 has a server that echoes answer. Two reactions are ours, and documented: a binary message
// is refused with 1003, a message over the limit with 1009; the suite's cases of these are here with that reaction. The limit is the
// largest that can be configured.
//
// Where the connection fails, the closing frame of our protocol comes before the close frame.

const conformanceLimit = 1 << 20

// A rfcCase is one of them.
type rfcCase struct {
	id    string
	parts []rfcPart
	end   rfcEnd
}

// A rfcPart is sent, then what it says is heard, then comes the next part.
type rfcPart struct {
	send [][]byte // frames, or pieces of them
	chop int      // so many bytes at a time; 0: all at once; perFrame: frame by frame
	hear []rfcFrame
}

const perFrame = -1

type rfcFrame struct {
	first   byte
	payload string
}

// A rfcEnd is how the connection ends.
type rfcEnd struct {
	who  rfcSide
	code protocol.CloseCode // closeNoStatus: a close frame without one
}

type rfcSide int

const (
	weClose  rfcSide = iota // the case is over: the client closes, and is answered
	answered                // the case has sent a close frame, and is answered
	failed                  // the gateway ends it
)

// Who begins a message, and who goes on with it.
const (
	opCont      = 0x80
	opBinary    = 0x82
	beginText   = 0x1
	beginBinary = 0x2
	goOn        = 0x0
)

// A case's own frames.
func fr(first byte, payload string) []byte {
	mask := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	b := clientFrame(first, payload)
	head := len(b) - len(payload)
	copy(b[head-4:], mask[:])
	for i := range len(payload) {
		b[head+i] ^= mask[i%4]
	}
	return b
}

func closing(code uint16, reason string) []byte {
	return fr(opClose, string(binary.BigEndian.AppendUint16(nil, code))+reason)
}

// fragments is a text or binary message in frames of so many bytes.
func fragments(first byte, payload string, size int) (frames [][]byte) {
	for at := 0; at < len(payload); at += size {
		piece := payload[at:min(at+size, len(payload))]
		op := byte(goOn)
		if at == 0 {
			op = first
		}
		if at+size >= len(payload) {
			op |= 0x80
		}
		frames = append(frames, fr(op, piece))
	}
	return frames
}

func echo(payload string) rfcFrame { return rfcFrame{opText, payload} }
func pong(payload string) rfcFrame { return rfcFrame{opPong, payload} }

func frames(f ...[]byte) [][]byte   { return f }
func hear(f ...rfcFrame) []rfcFrame { return f }

// one is a case of one part.
func one(id string, end rfcEnd, chop int, send [][]byte, hear ...rfcFrame) rfcCase {
	return rfcCase{id, []rfcPart{{send, chop, hear}}, end}
}

var (
	bye      = rfcEnd{weClose, protocol.CloseNormal}
	breaks   = rfcEnd{failed, protocol.CloseProtocolError}
	notUTF8  = rfcEnd{failed, protocol.CloseInvalidPayload}
	isBinary = rfcEnd{failed, protocol.CloseUnsupportedData}
	tooBig   = rfcEnd{failed, protocol.CloseTooBig}
)

func answeredBy(code protocol.CloseCode) rfcEnd { return rfcEnd{answered, code} }

// RFC 6455 is kept to the letter, over bare sockets and over TLS. The table in docs/conformance.md says how many cases that are.
func TestConformance(t *testing.T) {
	tune := func(cfg *Config) {
		cfg.MaxFrameBytes, cfg.OutboxBytes = conformanceLimit, 4*conformanceLimit
		cfg.CloseWait = patience
	}
	gates := map[string]*gate{"tcp": newGate(t, tune), "tls": newTLSGate(t, tune)}
	table := "| Group | Cases | As the suite wants | Refused as documented | Left out | |\n|---|---|---|---|---|---|\n"
	for _, group := range rfcGroups {
		var cases []rfcCase
		if group.cases != nil {
			cases = group.cases()
		}
		own, passed, refused := 0, 0, 0
		for _, tc := range cases {
			if strings.Contains(tc.id, " ") {
				own++
			}
			ok := true
			for _, name := range []string{"tcp", "tls"} {
				g := gates[name]
				ok = t.Run(tc.id+" over "+name, func(t *testing.T) { tc.run(t, g) }) && ok
			}
			switch {
			case !ok || strings.Contains(tc.id, " "):
			case tc.end == isBinary || tc.end == tooBig:
				refused++
			default:
				passed++
			}
		}
		left := group.size
		if group.cases != nil {
			left -= len(cases) - own
		}
		table += fmt.Sprintf("| %d %s | %d | %d | %d | %d | %s |\n", group.number, group.name, group.size, passed, refused, left, group.why)
	}
	t.Logf("RFC 6455, the cases of the Autobahn test suite:\n%s", table)
	if docs, err := os.ReadFile("../../docs/conformance.md"); err != nil || !t.Failed() && !strings.Contains(string(docs), table) {
		t.Errorf("docs/conformance.md does not have this table (%v):\n%s", err, table)
	}
}

func (tc rfcCase) run(t *testing.T, g *gate) {
	c, r := g.dialAs(t)
	defer r.nc.Close()
	for _, part := range tc.parts {
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			// What fails is not read to its end, so writing may fail.
			for _, piece := range part.pieces() {
				if _, err := r.nc.Write(piece); err != nil {
					return
				}
			}
		}()
		for at := 0; at < len(part.hear); at++ {
			want := part.hear[at]
			first, payload, err := r.frame()
			// Over TLS a goroutine writes, and pings that have come meanwhile get one pong, the latest (RFC 6455 §5.5.3).
			if later := slices.Index(part.hear[at:], rfcFrame{first, string(payload)}); later > 0 && first == opPong && g.srv.TLS != nil {
				at += later
				continue
			}
			if err != nil || first != want.first || string(payload) != want.payload {
				t.Fatalf("heard %#x %.60q of %d bytes, %v; want %#x %.60q of %d", first, payload, len(payload), err, want.first, want.payload, len(want.payload))
			}
		}
		if tc.end.who != failed {
			<-sent
		}
	}
	code := binary.BigEndian.AppendUint16(nil, uint16(tc.end.code))
	if tc.end.code == closeNoStatus {
		code = nil
	}
	switch tc.end.who {
	case weClose:
		r.write(fr(opClose, string(code)))
		fallthrough
	case answered:
		r.wantFrame(opClose, string(code))
		r.wantEOF()
		tc.wantCause(t, g, c, KindClientClose)
	case failed:
		first, payload, err := r.frame()
		if err != nil || first != opText {
			t.Fatalf("heard %#x %.60q, %v; want the closing frame", first, payload, err)
		}
		if f := decodeClosing(t, payload); f.Code != int(tc.end.code) {
			t.Errorf("closing frame with %d, want %d", f.Code, tc.end.code)
		}
		first, payload, err = r.frame()
		if err != nil || first != opClose || len(payload) < 2 || string(payload[:2]) != string(code) {
			t.Fatalf("heard %#x %.60q, %v; want a close frame with %d", first, payload, err, tc.end.code)
		}
		r.nc.Close()
		poll(t, "the connection has ended", func() bool { return g.m.ByConn(c.ID()) == nil })
		if cause, _ := c.Cause(); cause.Code != tc.end.code {
			t.Errorf("ended by %v, want %d", cause, tc.end.code)
		}
	}
}

func (tc rfcCase) wantCause(t *testing.T, g *gate, c *Connection, kind Kind) {
	t.Helper()
	poll(t, "the connection has ended", func() bool { return g.m.ByConn(c.ID()) == nil })
	if cause, _ := c.Cause(); cause.Kind != kind || cause.Code != tc.end.code {
		t.Errorf("ended by %v, want %s, %d", cause, kind, tc.end.code)
	}
}

// dialAs connects a client that belongs to a test of its own, over TLS if the gate has it.
func (g *gate) dialAs(t *testing.T) (*Connection, *rawClient) {
	t.Helper()
	nc, err := net.Dial("tcp", g.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if g.srv.TLS != nil {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
	}
	t.Cleanup(func() { nc.Close() })
	r := &rawClient{t: t, nc: nc, br: bufio.NewReader(nc)}
	r.write([]byte(handshake))
	response, err := http.ReadResponse(r.br, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake: %v, %v", response, err)
	}
	select {
	case c := <-g.upgraded:
		return c, r
	case <-time.After(patience):
		t.Fatal("no connection")
		return nil, nil
	}
}

// pieces is what goes out in one write each.
func (p rfcPart) pieces() [][]byte {
	if p.chop == perFrame {
		return p.send
	}
	all := slices.Concat(p.send...)
	if p.chop == 0 {
		return [][]byte{all}
	}
	return slices.Collect(slices.Chunk(all, p.chop))
}
