//go:build !secondpass

package gatewaytest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// wantCall is a call of a healthy backend while others misbehave.
func wantCall(t *testing.T, g *Gateway) {
	t.Helper()
	within, began := Busier(t), time.Now()
	callAPI(t, g, 200, "POST", "/presence", `{"users":["alice"]}`)
	if took := time.Since(began); took > within(time.Second) {
		t.Errorf("a call next to it took %v", took)
	}
}

// Whatever is asked on the internal listener in a wrong way is answered within a second, clients chat on and other backends are served. What is
// wrong inside of a body is tried for every operation in package api; this is what a listener meets.
func TestBadCallsAreAnsweredAndHurtNobodyElse(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	const typed = "Content-Type: application/json\r\n"
	counted := func(body string) string { return fmt.Sprintf("%sContent-Length: %d\r\n", typed, len(body)) }
	crowd := `{"users":["` + strings.Repeat(`u","`, 9999) + `u"]}`
	deep := `{"to":["bob"],"content":` + strings.Repeat("[", 200_000)
	const everyone = `{"everyone":true,"content":"buy this"}`
	for name, tc := range map[string]struct {
		line, host, headers, body string
		want                      int
		plain                     bool // net/http's own words
	}{
		"10,000 users":                     {line: "POST /api/v1/presence", headers: counted(crowd), body: crowd, want: 413},
		"200,000 levels":                   {line: "POST /api/v1/messages", headers: counted(deep), body: deep, want: 400},
		"a body that never comes":          {line: "POST /api/v1/nowhere", headers: typed + "Content-Length: 100\r\n", want: 404},
		"a body for who takes none":        {line: "GET /api/v1/stats", headers: "Content-Length: 100\r\n", want: 400},
		"a body for the metrics":           {line: "POST /metrics", headers: "Content-Length: 100\r\n", want: 405},
		"a body for another host":          {line: "POST /api/v1/stats", host: "evil.example", headers: "Content-Length: 100\r\n", want: 421},
		"chunks that are none":             {line: "POST /api/v1/messages", headers: typed + "Transfer-Encoding: chunked\r\n", body: "zz\r\n", want: 400},
		"a chunk of 2^63 bytes":            {line: "POST /api/v1/messages", headers: typed + "Transfer-Encoding: chunked\r\n", body: "8000000000000000\r\n" + strings.Repeat(" ", 2<<20), want: 413},
		"an announced terabyte":            {line: "POST /api/v1/messages", headers: typed + "Content-Length: 1099511627776\r\n", want: 413},
		"a header of a megabyte":           {line: "GET /api/v1/stats", headers: "X-A: " + strings.Repeat("b", 1<<20) + "\r\n", want: 431, plain: true},
		"a path of 30 KB":                  {line: "GET /api/v1/users/" + strings.Repeat("a", 30<<10) + "/connections", want: 431, plain: true},
		"a page sends to everyone":         {line: "POST /api/v1/messages", headers: "Origin: https://evil.example\r\n" + counted(everyone), body: everyone, want: 403},
		"a page without an origin":         {line: "POST /api/v1/messages", headers: "Origin: null\r\n" + counted(everyone), body: everyone, want: 403},
		"a form of a page":                 {line: "POST /api/v1/messages", headers: "Origin: https://evil.example\r\nContent-Type: text/plain\r\nContent-Length: 38\r\n", body: everyone, want: 403},
		"a picture of a page":              {line: "GET /api/v1/stats", headers: "Sec-Fetch-Site: cross-site\r\n", want: 403},
		"a form without a page":            {line: "POST /api/v1/messages", headers: "Content-Type: text/plain\r\nContent-Length: 38\r\n", body: everyone, want: 415},
		"a page under a name of its own":   {line: "POST /api/v1/messages", host: "evil.example", headers: counted(everyone), body: everyone, want: 421},
		"a path upwards":                   {line: "GET /api/v1/users/../../../metrics", want: 404},
		"a path upwards, encoded":          {line: "GET /api/v1/%2e%2e/%2e%2e/metrics", want: 404},
		"another version":                  {line: "GET /api/v2/stats", want: 404},
		"a double slash":                   {line: "GET /api//v1/stats", want: 404},
		"WebSocket":                        {line: "GET /api/v1/messages", headers: "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", want: 405},
		"a preflight":                      {line: "OPTIONS /api/v1/messages", headers: "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n", want: 403},
		"two lengths":                      {line: "POST /api/v1/messages", headers: typed + "Content-Length: 1\r\nContent-Length: 2\r\n", body: "xx", want: 400, plain: true},
		"length and chunks":                {line: "POST /api/v1/messages", headers: typed + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", body: "0\r\n\r\n", want: 400},
		"an expectation that is none":      {line: "POST /api/v1/messages", headers: typed + "Expect: the-best\r\nContent-Length: 1\r\n", body: "1", want: 417, plain: true},
		"who waits to be asked for a body": {line: "POST /api/v1/nowhere", headers: typed + "Expect: 100-continue\r\nContent-Length: 100\r\n", want: 404},
		"compressed":                       {line: "POST /api/v1/messages", headers: typed + "Content-Encoding: gzip\r\nContent-Length: 4\r\n", body: "\x1f\x8b\x08\x00", want: 415},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := DialRaw(g.Internal, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			_ = r.SetDeadline(time.Now().Add(2 * Deadline))
			host := tc.host
			if host == "" {
				host = g.Internal
			}
			// What is refused is not read to its end, so writing may fail.
			var sent sync.WaitGroup
			sent.Go(func() { _, _ = io.WriteString(r, tc.line+" HTTP/1.1\r\nHost: "+host+"\r\n"+tc.headers+"\r\n"+tc.body) })
			within, began := Busier(t), time.Now()
			response, err := http.ReadResponse(bufio.NewReader(r), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if took := time.Since(began); took > within(time.Second) {
				t.Errorf("answered after %v", took)
			}
			body, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10))
			if response.StatusCode != tc.want || !tc.plain && response.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("answered %d %v %s, want %d", response.StatusCode, response.Header, body, tc.want)
			}
			for name := range response.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					t.Errorf("a foreign page is told %s", name)
				}
			}
			r.Close()
			sent.Wait()
			wantCall(t, g)
			n.wantChat(t)
		})
	}
	if left := n.bob.Left("message"); len(left) > 0 {
		t.Errorf("bob got what nobody could send: %v", left)
	}
}

// 400 callers begin a body and stop there. Others are served meanwhile, and in the end all 400 are told, and gone.
func TestHalfABodyHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, Shared(t, Standalone), Options{})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	began := time.Now()
	var slow []net.Conn
	for range 400 {
		conn, err := net.Dial("tcp", g.Internal)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		slow = append(slow, conn)
		if _, err := fmt.Fprint(conn, "POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		wantCall(t, g)
		n.wantChat(t)
	}
	for i, conn := range slow {
		_ = conn.SetReadDeadline(time.Now().Add(6 * Deadline))
		in := bufio.NewReader(conn)
		response, err := http.ReadResponse(in, nil)
		if err != nil || response.StatusCode != http.StatusRequestTimeout {
			t.Fatalf("caller %d after %v: %v, %v", i, time.Since(began), response, err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		if _, err := in.ReadByte(); err != io.EOF {
			t.Fatalf("caller %d is still there: %v", i, err)
		}
	}
	wantCall(t, g)
}

// A body that is announced to what takes none, and never comes: the answer is there at once, and the connection gone in ten seconds.
func TestABodyNobodyReadsEndsInTime(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, nil, Options{})
	var silent []*Raw
	for _, line := range []string{"GET /metrics", "POST /stats", "GET /api/v1/stats", "GET http://evil.example/stats"} {
		r, err := DialRaw(g.Internal, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := fmt.Fprintf(r, "%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", line); err != nil {
			t.Fatal(err)
		}
		silent = append(silent, r)
	}
	for _, r := range silent {
		_ = r.SetReadDeadline(time.Now().Add(6 * Deadline))
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("it is still there: %v", err)
		}
	}
}
