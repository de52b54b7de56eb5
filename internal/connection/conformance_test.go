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

// Group 1: every form of the length.
func rfcFraming() (cases []rfcCase) {
	for i, n := range []int{0, 125, 126, 127, 128, 65535, 65536, 65536} {
		chop := 0
		if i == 7 {
			chop = 997
		}
		payload := strings.Repeat("*", n)
		cases = append(cases,
			one(fmt.Sprintf("1.1.%d", i+1), bye, chop, frames(fr(opText, payload)), echo(payload)),
			one(fmt.Sprintf("1.2.%d", i+1), isBinary, chop, frames(fr(opBinary, strings.Repeat("\xfe", n)))))
	}
	return cases
}

// Group 2.
func rfcPings() []rfcCase {
	blob := "\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
	full := strings.Repeat("\xfe", 125)
	var ten [][]byte
	var pongs []rfcFrame
	for i := range 10 {
		payload := fmt.Sprintf("payload-%d", i)
		ten, pongs = append(ten, fr(opPing, payload)), append(pongs, pong(payload))
	}
	return []rfcCase{
		one("2.1", bye, 0, frames(fr(opPing, "")), pong("")),
		one("2.2", bye, 0, frames(fr(opPing, "Hello, world!")), pong("Hello, world!")),
		one("2.3", bye, 0, frames(fr(opPing, blob)), pong(blob)),
		one("2.4", bye, 0, frames(fr(opPing, full)), pong(full)),
		one("2.5", breaks, 0, frames(fr(opPing, full+"\xfe"))),
		one("2.6", bye, 1, frames(fr(opPing, full)), pong(full)),
		one("2.7", bye, 0, frames(fr(opPong, ""))),
		one("2.8", bye, 0, frames(fr(opPong, "unasked"))),
		one("2.9", bye, 0, frames(fr(opPong, "unasked"), fr(opPing, "asked")), pong("asked")),
		one("2.10", bye, 0, ten, pongs...),
		one("2.11", bye, 1, ten, pongs...),
	}
}

// Group 3: reserved bits, alone and behind a good message, before a ping that must not be answered.
func rfcReservedBits() []rfcCase {
	const rsv = 0x10
	behind := func(bits byte) [][]byte {
		return frames(fr(opText, "hello"), fr(opText|bits*rsv, "hello"), fr(opPing, ""))
	}
	return []rfcCase{
		one("3.1", breaks, 0, frames(fr(opText|1*rsv, "hello"))),
		one("3.2", breaks, 0, behind(2), echo("hello")),
		one("3.3", breaks, perFrame, behind(3), echo("hello")),
		one("3.4", breaks, 1, behind(4), echo("hello")),
		one("3.5", breaks, 0, frames(fr(opBinary|5*rsv, "\x00\xff"))),
		one("3.6", breaks, 0, frames(fr(opPing|6*rsv, "hello"))),
		one("3.7", breaks, 0, frames(fr(opClose|7*rsv, ""))),
	}
}

// Group 4: opcodes that nobody has given a meaning.
func rfcOpcodes() (cases []rfcCase) {
	for i := range byte(5) {
		payload := []string{"", "reserved", "", "reserved", ""}[i]
		for group, first := range map[int]byte{1: 0x80 | 3 + i, 2: 0x80 | 11 + i} {
			id := fmt.Sprintf("4.%d.%d", group, i+1)
			bad := fr(first, payload)
			if i < 2 {
				cases = append(cases, one(id, breaks, 0, frames(bad)))
				continue
			}
			chop := []int{0, 0, 0, perFrame, 1}[i]
			cases = append(cases, one(id, breaks, chop, frames(fr(opText, "hello"), bad, fr(opPing, "")), echo("hello")))
		}
	}
	return cases
}

// Group 5.
func rfcFragmentation() []rfcCase {
	two := frames(fr(beginText, "fragment1"), fr(opCont, "fragment2"))
	pinged := frames(fr(beginText, "fragment1"), fr(opPing, "ping"), fr(opCont, "fragment2"))
	lonely := func(first byte) [][]byte { return frames(fr(first, "goes on with nothing"), fr(opText, "hello")) }
	twice := func(first byte) [][]byte {
		f := frames(fr(first, "fragment1"), fr(beginText, "fragment2"), fr(opCont, "fragment3"))
		return slices.Concat(f, f)
	}
	five := func(chop int) []rfcPart {
		return []rfcPart{
			{frames(fr(beginText, "1"), fr(goOn, "2"), fr(opPing, "first")), chop, hear(pong("first"))},
			{frames(fr(goOn, "3"), fr(goOn, "4"), fr(opPing, "second"), fr(opCont, "5")), chop, hear(pong("second"), echo("12345"))},
		}
	}
	return []rfcCase{
		one("5.1", breaks, 0, frames(fr(0x9, "fragment1"), fr(opCont, "fragment2"))),
		one("5.2", breaks, 0, frames(fr(0xA, "fragment1"), fr(opCont, "fragment2"))),
		one("5.3", bye, 0, two, echo("fragment1fragment2")),
		one("5.4", bye, perFrame, two, echo("fragment1fragment2")),
		one("5.5", bye, 1, two, echo("fragment1fragment2")),
		one("5.6", bye, 0, pinged, pong("ping"), echo("fragment1fragment2")),
		one("5.7", bye, perFrame, pinged, pong("ping"), echo("fragment1fragment2")),
		one("5.8", bye, 1, pinged, pong("ping"), echo("fragment1fragment2")),
		one("5.9", breaks, 0, lonely(opCont)),
		one("5.10", breaks, perFrame, lonely(opCont)),
		one("5.11", breaks, 1, lonely(opCont)),
		one("5.12", breaks, 0, lonely(goOn)),
		one("5.13", breaks, perFrame, lonely(goOn)),
		one("5.14", breaks, 1, lonely(goOn)),
		one("5.15", breaks, 0, slices.Concat(two, frames(fr(goOn, "fragment3"), fr(opText, "fragment4"))), echo("fragment1fragment2")),
		one("5.16", breaks, 0, twice(goOn)),
		one("5.17", breaks, 0, twice(opCont)),
		one("5.18", breaks, 0, frames(fr(beginText, "fragment1"), fr(opText, "fragment2"))),
		{"5.19", five(0), bye},
		{"5.20", five(perFrame), bye},
	}
}

// Group 7, where the client closes in every way there is.
func rfcClosing() (cases []rfcCase) {
	bad := "\u03ba\u1f79\u03c3\u03bc\u03b5\xed\xa0\x80edited"
	big := strings.Repeat("BAsd7&jh23", 256<<10/10+1)[:256<<10]
	normal := closing(1000, "")
	cases = []rfcCase{
		one("7.1.1", bye, 0, frames(fr(opText, "hello")), echo("hello")),
		one("7.1.2", answeredBy(1000), 0, frames(normal, fr(opClose, ""))),
		one("7.1.3", answeredBy(1000), 0, frames(normal, fr(opPing, ""))),
		one("7.1.4", answeredBy(1000), 0, frames(normal, fr(opText, "hello"))),
		one("7.1.5", answeredBy(1000), 0, frames(fr(beginText, "fragment1"), normal, fr(opCont, "fragment2"))),
		one("7.1.6", answeredBy(1000), 0, frames(fr(opText, big), fr(opText, "hello"), normal, fr(opPing, "")), echo(big), echo("hello")),
		one("7.3.1", answeredBy(closeNoStatus), 0, frames(fr(opClose, ""))),
		one("7.3.2", breaks, 0, frames(fr(opClose, "a"))),
		one("7.3.3", answeredBy(1000), 0, frames(normal)),
		one("7.3.4", answeredBy(1000), 0, frames(closing(1000, "hello"))),
		one("7.3.5", answeredBy(1000), 0, frames(closing(1000, strings.Repeat("*", 123)))),
		one("7.3.6", breaks, 0, frames(closing(1000, strings.Repeat("*", 124)))),
		one("7.5.1", breaks, 0, frames(closing(1000, bad))),
	}
	for i, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999} {
		cases = append(cases, one(fmt.Sprintf("7.7.%d", i+1), answeredBy(protocol.CloseCode(code)), 0, frames(closing(code, ""))))
	}
	for i, code := range []uint16{0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999} {
		cases = append(cases, one(fmt.Sprintf("7.9.%d", i+1), breaks, 0, frames(closing(code, ""))))
	}
	return append(cases, // for information in the suite
		one("7.13.1", breaks, 0, frames(closing(5000, ""))),
		one("7.13.2", breaks, 0, frames(closing(65535, ""))))
}

// Group 9: sizes, fragments, pieces and round trips. What is over our limit is refused; the fragments are there at our limit, too.
func rfcLimits() (cases []rfcCase) {
	bulk := func(n int) string { return strings.Repeat("*", n) }
	for i, n := range []int{64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20} {
		end, blob, heard := bye, isBinary, hear(echo(bulk(n)))
		if n > conformanceLimit {
			end, blob, heard = tooBig, tooBig, nil
		}
		cases = append(cases,
			one(fmt.Sprintf("9.1.%d", i+1), end, 0, frames(fr(opText, bulk(n))), heard...),
			one(fmt.Sprintf("9.2.%d", i+1), blob, 0, frames(fr(opBinary, bulk(n)))))
	}
	for i, size := range []int{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		blob := isBinary
		if size > conformanceLimit {
			blob = tooBig
		}
		cases = append(cases,
			one(fmt.Sprintf("9.3.%d", i+1), tooBig, 0, fragments(beginText, bulk(4<<20), size)),
			one(fmt.Sprintf("9.4.%d", i+1), blob, 0, fragments(beginBinary, bulk(4<<20), size)))
		if size <= conformanceLimit {
			cases = append(cases, one(fmt.Sprintf("9.3.%d at our limit", i+1), bye, 0, fragments(beginText, bulk(conformanceLimit), size), echo(bulk(conformanceLimit))))
		}
	}
	for i, chop := range []int{64, 128, 256, 512, 1024, 2048} {
		cases = append(cases,
			one(fmt.Sprintf("9.5.%d", i+1), bye, chop, frames(fr(opText, bulk(1<<20))), echo(bulk(1<<20))),
			one(fmt.Sprintf("9.6.%d", i+1), isBinary, chop, frames(fr(opBinary, bulk(1<<20)))))
	}
	for i, n := range []int{0, 16, 64, 256, 1024, 4096} {
		trip := rfcPart{send: frames(fr(opText, bulk(n))), hear: hear(echo(bulk(n)))}
		cases = append(cases,
			rfcCase{fmt.Sprintf("9.7.%d", i+1), slices.Repeat([]rfcPart{trip}, 1000), bye},
			one(fmt.Sprintf("9.8.%d", i+1), isBinary, 0, frames(fr(opBinary, bulk(n)))))
	}
	return cases
}

// Group 10.
func rfcAutoFragments() []rfcCase {
	payload := strings.Repeat("*", 65536)
	return []rfcCase{one("10.1.1", bye, 0, fragments(beginText, payload, 1300), echo(payload))}
}

// rfcGroups are the suite's groups, with the number of its cases.
var rfcGroups = []struct {
	number int
	name   string
	size   int
	cases  func() []rfcCase // nil: left out
	why    string           // left out, or refused
}{
	{1, "framing", 16, rfcFraming, "binary: 1003"},
	{2, "pings and pongs", 11, rfcPings, ""},
	{3, "reserved bits", 7, rfcReservedBits, ""},
	{4, "opcodes", 10, rfcOpcodes, ""},
	{5, "fragmentation", 20, rfcFragmentation, ""},
	{6, "UTF-8", 145, rfcUTF8, ""},
	{7, "closing", 37, rfcClosing, ""},
	{9, "limits and performance", 54, rfcLimits, "binary: 1003; over the largest limit, 1 MiB: 1009"},
	{10, "automatic fragments", 1, rfcAutoFragments, ""},
	{12, "compression, plain", 90, nil, "off by default, and what is sent is never compressed: docs/security.md"},
	{13, "compression, with parameters", 126, nil, "off by default, and what is sent is never compressed: docs/security.md"},
}

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
