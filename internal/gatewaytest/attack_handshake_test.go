//go:build !secondpass

package gatewaytest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// What comes before a WebSocket is one, in every wrong way. Each has its answer, or is cut within the time a header may take; those who
// chat notice nothing.
func TestBadHandshakesAreAnsweredAndHurtNobodyElse(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--limits.connect-rate-per-ip=0"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	good := Handshake(g.Addr)
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in the handshake", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	with := func(lines string) string { return swap("\r\n\r\n", "\r\n"+lines+"\r\n") }

	for name, tc := range map[string]struct {
		send string
		want string // the beginning of the answer; empty: cut without one
	}{
		"no upgrade":               {swap("Connection: Upgrade\r\nUpgrade: websocket\r\n", ""), "HTTP/1.1 426 "},
		"no Connection: Upgrade":   {swap("Connection: Upgrade\r\n", ""), "HTTP/1.1 426 "},
		"upgrade to something":     {swap("Upgrade: websocket", "Upgrade: h2c"), "HTTP/1.1 426 "},
		"no version":               {swap("Sec-WebSocket-Version: 13\r\n", ""), "HTTP/1.1 426 "},
		"version 8":                {swap("Version: 13", "Version: 8"), "HTTP/1.1 426 "},
		"no key":                   {swap("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), "HTTP/1.1 400 "},
		"a short key":              {swap("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ=="), "HTTP/1.1 400 "},
		"a key that is no base64":  {swap("dGhlIHNhbXBsZSBub25jZQ==", "!!!!!!!!!!!!!!!!!!!!!!=="), "HTTP/1.1 400 "},
		"POST":                     {swap("GET", "POST"), "HTTP/1.1 405 "},
		"POST with a body to come": {swap("GET", "POST")[:len(good)-1] + "Content-Length: 1000000\r\n\r\n", "HTTP/1.1 405 "},
		"a CORS preflight":         {swap("GET", "OPTIONS")[:len(swap("GET", "OPTIONS"))-2] + "Origin: https://evil.example\r\nAccess-Control-Request-Method: GET\r\n\r\n", "HTTP/1.1 405 "},
		"HTTP/1.0":                 {swap("HTTP/1.1", "HTTP/1.0"), "HTTP/1.0 505 "},
		"HTTP/2":                   {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 "},
		"HTTP/9.9":                 {swap("HTTP/1.1", "HTTP/9.9"), "HTTP/1.1 505 "},
		"no host":                  {swap("Host: "+g.Addr+"\r\n", ""), "HTTP/1.1 400 "},
		"two hosts":                {with("Host: localhost\r\n"), "HTTP/1.1 400 "},
		"a foreign host":           {swap(g.Addr, "evil.example"), "HTTP/1.1 421 "},
		"thousands of headers":     {with(strings.Repeat("X-A: b\r\n", 5000)), "HTTP/1.1 431 "},
		"a header of 1 MB":         {with("X-A: " + strings.Repeat("a", 1<<20) + "\r\n"), "HTTP/1.1 431 "},
		"a path of 1 MB":           {swap("/ws", "/"+strings.Repeat("a", 1<<20)), "HTTP/1.1 431 "},
		"a header without a colon": {with("nonsense\r\n"), "HTTP/1.1 400 "},
		"NUL in a header":          {with("X-A: a\x00b\r\n"), "HTTP/1.1 400 "},
		"not HTTP":                 {"hello\r\n\r\n", "HTTP/1.1 400 "},
		"a frame":                  {string(RawFrame(0x81, `{"type":"heartbeat"}`)) + "\r\n\r\n", "HTTP/1.1 400 "},
		"TLS":                      {"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + strings.Repeat("\x00", 100) + "\r\n\r\n", "HTTP/1.1 400 "},
		"a foreign origin":         {with("Origin: https://evil.example\r\n"), "HTTP/1.1 403 "},
		"our host in its name":     {with("Origin: http://" + g.Addr + ".evil.example\r\n"), "HTTP/1.1 403 "},
		"another port":             {with("Origin: http://127.0.0.1:1\r\n"), "HTTP/1.1 403 "},
		"the null origin":          {with("Origin: null\r\n"), "HTTP/1.1 403 "},
		"an empty origin":          {with("Origin:\r\n"), "HTTP/1.1 403 "},
		"two origins":              {with("Origin: http://" + g.Addr + "\r\nOrigin: https://evil.example\r\n"), "HTTP/1.1 403 "},
		"rebound: host and origin": {strings.Replace(with("Origin: http://evil.example\r\n"), g.Addr, "evil.example", 1), "HTTP/1.1 421 "},
		"a frame before the 101":   {good + string(RawFrame(0x81, `{"type":"heartbeat"}`)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := DialRaw(g.Addr, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			// What is refused is not read to its end, so writing may fail.
			var sent sync.WaitGroup
			sent.Go(func() { _, _ = r.Write([]byte(tc.send)) })
			answer := make([]byte, len(tc.want))
			if tc.want == "" {
				if said, err := r.Ended(2 * Deadline); err != nil || len(said) > 0 {
					t.Errorf("%q, %v; want it cut", said, err)
				}
			} else if _, err := readUpTo(r, answer); err != nil || string(answer) != tc.want {
				t.Errorf("answered %q, %v; want %q", answer, err, tc.want)
			}
			r.Close()
			sent.Wait()
			n.wantChat(t)
		})
	}
}

// askAndNeverRead asks for the page again and again until it is cut.
func askAndNeverRead(g *Gateway) error {
	r, err := DialRaw(g.Addr, 4096)
	if err != nil {
		return err
	}
	defer r.Close()
	asked := []byte(strings.Repeat("GET /app.js HTTP/1.1\r\nHost: "+g.Addr+"\r\n\r\n", 100))
	_ = r.SetWriteDeadline(time.Now().Add(10*time.Second + 2*Deadline))
	for {
		if _, err := r.Write(asked); errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		} else if err != nil {
			return nil // reset
		}
	}
}

// A page from elsewhere can ask, and its browser shows it nothing of the answer.
func TestForeignPagesMayReadNothing(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{})
	for _, path := range []string{"/", "/app.js", "/stats", "/readyz", "/ws"} {
		request, err := http.NewRequest(http.MethodGet, g.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Origin", "https://evil.example")
		response, err := httpClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		for name := range response.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s is answered with %s: %s", path, name, response.Header.Get(name))
			}
		}
		if response.StatusCode == http.StatusOK && (response.Header.Get("Cross-Origin-Resource-Policy") != "same-origin" || response.Header.Get("X-Content-Type-Options") != "nosniff") {
			t.Errorf("%s is answered with %v", path, response.Header)
		}
	}
}

// Compression is offered by every browser and never agreed to; a frame that uses it all the same breaks the protocol.
func TestCompressionIsNotNegotiated(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{})
	dialer := websocket.Dialer{EnableCompression: true, HandshakeTimeout: 2 * Deadline}
	conn, response, err := dialer.Dial(g.WS(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := response.Header.Get("Sec-WebSocket-Extensions"); got != "" {
		t.Errorf("agreed to %q", got)
	}
	c := newClient(conn)
	t.Cleanup(c.Cut)
	if _, err := c.Register("alice"); err != nil {
		t.Fatal(err)
	}
	const textCompressed = 0x81 | 0x40
	if err := c.WriteRaw(RawFrame(textCompressed, "\xaa\x56\x2a\xa9\x2c\x48\x55\xb2\x52\xca\x48\x4d\x2c\x2a\x49\x4a\x4d\x2c\x51\xaa\x05\x00")); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, c, websocket.CloseProtocolError)
}

// Where it is switched on a client may compress what it says, and a message that is small on the wire and large in memory ends its own connection only.
func TestCompressionIsCappedAfterInflating(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--compression"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	dialer := websocket.Dialer{EnableCompression: true, HandshakeTimeout: 2 * Deadline}
	conn, _, err := dialer.Dial(g.WS(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(conn)
	t.Cleanup(c.Cut)
	if _, err := c.Register("carol"); err != nil {
		t.Fatal(err)
	}
	said := strings.Repeat("compressed ", 1000)
	if _, err := c.Send("bob", said, ""); err != nil {
		t.Fatal(err)
	}
	f, err := n.bob.NextOf("message", Deadline, func(f Frame) bool { return f.Sender() == "carol" })
	if err != nil || text(f.Content) != said {
		t.Fatalf("bob got %.80v, %v", f, err)
	}
	n.wantChat(t)
	before, err := g.RSS()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"heartbeat","x":"`+strings.Repeat("x", 32<<20)+`"}`)); err != nil {
		t.Log(err) // it is not read to its end
	}
	wantEnd(t, c, websocket.CloseMessageTooBig)
	n.wantChat(t)
	if after, err := g.RSS(); err != nil || after > before+16<<20 {
		t.Errorf("the gateway went from %d to %d bytes, %v", before, after, err)
	}
}

func readUpTo(r *Raw, b []byte) (int, error) {
	_ = r.SetReadDeadline(time.Now().Add(2 * Deadline))
	for n := 0; n < len(b); {
		m, err := r.Read(b[n:])
		if n += m; err != nil {
			return n, err
		}
	}
	return len(b), nil
}

// Those who take their time are cut when it is over: five seconds for a header, TLS included, ten for everything.
func TestSlowHandshakesAreCut(t *testing.T) {
	t.Parallel()
	cert, key := selfSigned(t)
	r := Shared(t, Standalone)
	plain := StartGateway(t, r, Options{Flags: []string{"--limits.connect-rate-per-ip=0"}})
	secure := NewGateway(t, r, Options{Flags: []string{"--tls.cert", cert, "--tls.key", key}})
	if err := secure.Launch(); err != nil {
		t.Fatal(err)
	}
	if err := Poll(startDeadline, func() error {
		c, err := tls.Dial("tcp", secure.Addr, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	n := &neighbours{alice: Connect(t, plain.WS(), "alice"), bob: Connect(t, plain.WS(), "bob")}
	slow := map[string]struct {
		addr     string
		at       []string // half a second between them; the last again and again
		deadline time.Duration
	}{
		"silent":                      {plain.Addr, []string{""}, 5 * time.Second},
		"half a line":                 {plain.Addr, []string{"GET /w", ""}, 5 * time.Second},
		"half a request":              {plain.Addr, []string{Handshake(plain.Addr)[:60], ""}, 5 * time.Second},
		"a byte now and then":         {plain.Addr, []string{"GET /ws HTTP/1.1\r\nX-A: ", "a"}, 5 * time.Second},
		"a header now and then":       {plain.Addr, []string{"GET /ws HTTP/1.1\r\n", "X-A: a\r\n"}, 5 * time.Second},
		"a body that never comes":     {plain.Addr, []string{"POST /stats HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", ""}, 10 * time.Second},
		"a body byte by byte":         {plain.Addr, []string{"POST /stats HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", "a"}, 10 * time.Second},
		"chunks without end":          {plain.Addr, []string{"GET /stats HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n"}, 10 * time.Second},
		"inside: half a line":         {plain.Internal, []string{"GET /m", ""}, 5 * time.Second},
		"inside: a body to come":      {plain.Internal, []string{"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", ""}, 10 * time.Second},
		"inside: a body, by the byte": {plain.Internal, []string{"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", "a"}, 10 * time.Second},
		"inside: a call by no key":    {plain.Internal, []string{"POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nContent-Length: 1000\r\n\r\n", ""}, 10 * time.Second},
		"silent before TLS":           {secure.Addr, []string{""}, 5 * time.Second},
		"half a hello of TLS":         {secure.Addr, []string{"\x16\x03\x01\x00\xa5\x01\x00", ""}, 5 * time.Second},
		"a hello of TLS byte by byte": {secure.Addr, []string{"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03", "\x03"}, 5 * time.Second},
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var cut []string
	for name, tc := range slow {
		all.Go(func() {
			began := time.Now()
			raw, err := DialRaw(tc.addr, 0)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			defer raw.Close()
			ended := make(chan error, 1)
			go func() {
				_, err := raw.Ended(tc.deadline + 2*Deadline)
				ended <- err
			}()
			tick := time.NewTicker(500 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				_, _ = raw.Write([]byte(tc.at[min(i, len(tc.at)-1)]))
				select {
				case err := <-ended:
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
					took := time.Since(began)
					// The later deadline would cut the former's, too.
					if took < tc.deadline-time.Second || took > tc.deadline+headerSlack {
						t.Errorf("%s: cut after %v, want %v", name, took, tc.deadline)
					}
					mu.Lock()
					cut = append(cut, fmt.Sprintf("%s: %v", name, took.Round(10*time.Millisecond)))
					mu.Unlock()
					return
				case <-tick.C:
				}
			}
		})
	}
	all.Go(func() {
		began := time.Now()
		err := askAndNeverRead(plain)
		took := time.Since(began)
		if err != nil || took < 9*time.Second {
			t.Errorf("answers nobody reads: cut after %v, %v", took, err)
		}
		mu.Lock()
		cut = append(cut, fmt.Sprintf("answers nobody reads: %v", took.Round(10*time.Millisecond)))
		mu.Unlock()
	})
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	for chatting := true; chatting; {
		n.wantChat(t)
		select {
		case <-done:
			chatting = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Log(strings.Join(cut, "; "))
}
