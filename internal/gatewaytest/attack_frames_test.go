//go:build !secondpass

package gatewaytest

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// What a registered client may do wrong with its frames, and the code with which it ends; those who chat notice nothing.
func TestBadWireFramesEndTheirConnectionAlone(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--limits.connect-rate-per-ip=0"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	const (
		text, binaryFrame, ping, pong, closeFrame, next = 0x81, 0x82, 0x89, 0x8A, 0x88, 0x80
		begin, more                                     = 0x01, 0x00
		protocol, unsupported, notText, tooBig          = websocket.CloseProtocolError, websocket.CloseUnsupportedData, websocket.CloseInvalidFramePayloadData, websocket.CloseMessageTooBig
	)
	const limit = 64 << 10
	heartbeat := `{"type":"heartbeat"}`
	announced := func(n uint64) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{text, 0x80 | 127}, n), 0, 0, 0, 0)
	}
	coded := func(code uint16) []byte {
		return RawFrame(closeFrame, string(binary.BigEndian.AppendUint16(nil, code)))
	}
	inBytes := func(s string) (all []byte) {
		for i := range len(s) {
			first := byte(more)
			switch i {
			case 0:
				first = begin
			case len(s) - 1:
				first = next
			}
			all = append(all, RawFrame(first, s[i:i+1])...)
		}
		return all
	}
	for name, tc := range map[string]struct {
		send []byte
		want int // the close code; 0: the connection lives, and answers heartbeats
	}{
		"unmasked":                     {append([]byte{text, byte(len(heartbeat))}, heartbeat...), protocol},
		"reserved bit 1":               {RawFrame(text|0x40, heartbeat), protocol},
		"reserved bit 2":               {RawFrame(text|0x20, heartbeat), protocol},
		"reserved bit 3":               {RawFrame(text|0x10, heartbeat), protocol},
		"reserved bit in a ping":       {RawFrame(ping|0x40, ""), protocol},
		"opcode 3":                     {RawFrame(0x83, heartbeat), protocol},
		"opcode 7":                     {RawFrame(0x87, ""), protocol},
		"opcode 11":                    {RawFrame(0x8B, ""), protocol},
		"opcode 15":                    {RawFrame(0x8F, heartbeat), protocol},
		"a ping of 126 bytes":          {RawFrame(ping, strings.Repeat("x", 126)), protocol},
		"a pong of 64 KB":              {RawFrame(pong, strings.Repeat("x", limit)), protocol},
		"a fragmented ping":            {RawFrame(0x09, ""), protocol},
		"a fragmented close":           {RawFrame(0x08, "\x03\xe8"), protocol},
		"a continuation of nothing":    {RawFrame(next, heartbeat), protocol},
		"a message inside of another":  {append(RawFrame(begin, "{"), RawFrame(text, heartbeat)...), protocol},
		"1 GB announced":               {announced(1 << 30), tooBig},
		"a length with the top bit":    {announced(1<<63 | 1), tooBig},
		"the largest length":           {announced(1<<64 - 1), tooBig},
		"one over the limit":           {RawFrame(text, heartbeat+strings.Repeat(" ", limit+1-len(heartbeat))), tooBig},
		"over the limit in fragments":  {append(RawFrame(begin, strings.Repeat(" ", limit)), RawFrame(next, " ")...), tooBig},
		"binary":                       {RawFrame(binaryFrame, heartbeat), unsupported},
		"binary in fragments":          {append(RawFrame(0x02, "{"), RawFrame(next, "}")...), unsupported},
		"not UTF-8":                    {RawFrame(text, "{\"type\":\"\xff\"}"), notText},
		"a character cut by the end":   {RawFrame(text, heartbeat+"\xe2\x82"), notText},
		"a character cut for ever":     {append(RawFrame(begin, "\"\xe2\x82"), RawFrame(next, "\"")...), notText},
		"not UTF-8, and more to come":  {RawFrame(begin, "\xc0\xaf"), notText},
		"close code 0":                 {coded(0), protocol},
		"close code 999":               {coded(999), protocol},
		"close code 1005":              {coded(1005), protocol},
		"close code 1006":              {coded(1006), protocol},
		"close code 1015":              {coded(1015), protocol},
		"close code 2999":              {coded(2999), protocol},
		"close code 65535":             {coded(65535), protocol},
		"a close of one byte":          {RawFrame(closeFrame, "\x03"), protocol},
		"a close reason not UTF-8":     {RawFrame(closeFrame, "\x03\xe8\xff"), protocol},
		"exactly the limit":            {RawFrame(text, heartbeat+strings.Repeat(" ", limit-len(heartbeat))), 0},
		"a message in 1-byte frames":   {inBytes(heartbeat), 0},
		"64 KB in 1-byte frames":       {inBytes(strings.Repeat(" ", limit-len(heartbeat)) + heartbeat), 0},
		"a character in two fragments": {append(RawFrame(begin, "{\"type\":\"heartbeat\",\"x\":\"\xe2"), RawFrame(next, "\x82\xac\"}")...), 0},
		"a ping between fragments":     {slices.Concat(RawFrame(begin, heartbeat[:5]), RawFrame(ping, "x"), RawFrame(next, heartbeat[5:])), 0},
		"empty fragments":              {slices.Concat(RawFrame(begin, ""), bytes.Repeat(RawFrame(more, ""), 10_000), RawFrame(next, heartbeat)), 0},
		"3,000 pings":                  {append(bytes.Repeat(RawFrame(ping, "x"), 3_000), RawFrame(text, heartbeat)...), 0}, // held, at 1,000 a second
		"3,000 pongs":                  {append(bytes.Repeat(RawFrame(pong, "x"), 3_000), RawFrame(text, heartbeat)...), 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := Connect(t, g.WS(), "carol")
			// What is refused is not read to its end, so writing may fail.
			if err := c.WriteRaw(tc.send); err != nil && tc.want == 0 {
				t.Fatal(err)
			}
			if tc.want != 0 {
				wantEnd(t, c, tc.want)
			} else {
				if _, err := c.Next("heartbeat", 3*Deadline); err != nil {
					t.Error(err)
				}
				if err := wantAlive(c, false); err != nil {
					t.Error(err)
				}
			}
			n.wantChat(t)
		})
	}
}

// What never becomes a message is ended by the clock, ten seconds after its first byte, or when the client takes nothing any more.
func TestEndlessInputIsEndedByTheClock(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--limits.connect-rate-per-ip=0", "--limits.connections-per-user=0"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	type ending struct {
		name string
		took time.Duration
		err  error
		said []byte
	}
	endings := make(chan ending)
	over := make(chan struct{})
	var writers sync.WaitGroup
	defer writers.Wait()
	defer close(over)
	endless := map[string]struct {
		first, again []byte
		pause        time.Duration
		silent       bool // nothing is read until the end
	}{
		"empty continuations":      {first: RawFrame(0x01, ""), again: bytes.Repeat(RawFrame(0x00, ""), 100)},
		"a header that never ends": {first: []byte{0x81}},
		"a header byte by byte":    {first: []byte{0x81, 0xFF}, again: []byte{0}, pause: 3 * time.Second},
		"a ping byte by byte":      {first: RawFrame(0x89, strings.Repeat("x", 125))[:10], again: []byte{0}, pause: time.Second},
		"a message byte by byte":   {first: RawFrame(0x81, strings.Repeat("x", 1000))[:20], again: []byte{0}, pause: time.Second},
		"fragments now and then":   {first: RawFrame(0x01, "x"), again: RawFrame(0x00, "x"), pause: time.Second},
		"pings, and no reading":    {again: bytes.Repeat(RawFrame(0x89, strings.Repeat("x", 125)), 100), silent: true},
	}
	for name, tc := range endless {
		r, err := DialRaw(g.Addr, 4096)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := r.Upgrade(g.Addr, "carol"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		gone := make(chan struct{})
		go func() {
			e := ending{name: name}
			if tc.silent {
				<-gone
			}
			e.said, e.err = r.Ended(4 * Deadline)
			e.took = time.Since(began)
			endings <- e
		}()
		writers.Go(func() {
			defer close(gone)
			_, _ = r.Write(tc.first)
			for len(tc.again) > 0 {
				select {
				case <-over:
					return
				case <-time.After(tc.pause):
				}
				_ = r.SetWriteDeadline(time.Now().Add(4 * Deadline))
				if _, err := r.Write(tc.again); err != nil {
					return
				}
			}
		})
	}
	for left := len(endless); left > 0; {
		select {
		case e := <-endings:
			left--
			t.Logf("%s: ended after %v", e.name, e.took.Round(10*time.Millisecond))
			if e.err != nil {
				t.Errorf("%s: %v", e.name, e.err)
			}
			if !endless[e.name].silent && !bytes.Contains(e.said, []byte(`"code":4002`)) {
				t.Errorf("%s: no closing frame with 4002 in %.300q", e.name, e.said)
			}
		case <-time.After(100 * time.Millisecond):
			n.wantChat(t)
		}
	}
}

// A client is reset in the middle of a frame, again and again. Nothing is left of it.
func TestResetInMidFrameLeavesNothing(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--limits.connect-rate-per-ip=0", "--limits.connect-rate=0"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	message := RawFrame(0x81, `{"type":"message","id":"m","to":"bob","content":"half of it"}`)
	for at := 1; at < len(message); at += 3 {
		c := Connect(t, g.WS(), "carol")
		if err := c.WriteRaw(message[:at]); err != nil {
			t.Fatal(err)
		}
		c.Reset()
	}
	n.wantChat(t)
	wantWithin(t, 2*Deadline, func() bool {
		stats, err := g.Stats()
		return err == nil && stats["active_connections"] == 2.0
	})
	if err := g.check(); err != nil {
		t.Error(err)
	}
	if left := n.bob.Left("message"); len(left) > 0 {
		t.Errorf("bob got half a message: %v", left)
	}
}
