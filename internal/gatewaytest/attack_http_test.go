//go:build !secondpass

package gatewaytest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// refusedAs says what is wrong with an answer that should be a problem of RFC 9457, as all refusals are that a gateway's own code makes.
func refusedAs(response *http.Response, status int, code string) error {
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return err
	}
	var problem struct {
		Title, Code string
		Status      int
	}
	if err := json.Unmarshal(body, &problem); err != nil {
		return fmt.Errorf("%w: %.200q", err, body)
	}
	if response.Header.Get("Content-Type") != "application/problem+json" || response.StatusCode != status || problem.Status != status ||
		problem.Title != http.StatusText(status) || problem.Code != code {
		return fmt.Errorf("answered %d, %v, %s", response.StatusCode, response.Header, body)
	}
	for name, want := range map[string]string{
		"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := response.Header.Get(name); got != want {
			return fmt.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	return nil
}

// What is asked over HTTP in a wrong way, on either listener. What net/http refuses by itself is in its words, all else is a problem.
func TestBadRequestsAreAnsweredAndHurtNobodyElse(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--limits.connect-rate-per-ip=0"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	upgrade := strings.SplitN(strings.TrimPrefix(Handshake(g.Addr), "GET /ws HTTP/1.1\r\n"), "\r\n", 2)[1]
	const more = "X-A: b\r\n"
	for name, tc := range map[string]struct {
		line     string // method and path
		headers  string
		body     string
		want     int
		plain    bool   // net/http's own words
		code     string // of the problem
		header   string // one that must be there: "Allow: GET, HEAD"
		internal bool
	}{
		"an unknown path":               {line: "GET /nowhere", want: 404},
		"a path upwards":                {line: "GET /../../etc/passwd", want: 307, plain: true},
		"a path upwards, encoded":       {line: "GET /%2e%2e%2f%2e%2e%2fetc%2fpasswd", want: 404},
		"a path with NUL":               {line: "GET /app.js%00.html", want: 404},
		"a path of another's":           {line: "GET //evil.example/x", want: 307, plain: true, header: "Location: /evil.example/x"},
		"a whole URL of another":        {line: "GET http://evil.example/stats", want: 421, code: "foreign_host"},
		"an empty body":                 {line: "POST /stats", headers: "Content-Length: 0\r\n", want: 405, header: "Allow: GET, HEAD"},
		"a body of another type":        {line: "POST /stats", headers: "Content-Type: text/xml\r\nContent-Length: 4\r\n", body: "<a/>", want: 405, header: "Allow: GET, HEAD"},
		"PUT":                           {line: "PUT /readyz", want: 405, header: "Allow: GET, HEAD"},
		"DELETE":                        {line: "DELETE /", want: 405, header: "Allow: GET, HEAD"},
		"TRACE":                         {line: "TRACE /stats", want: 405, header: "Allow: GET, HEAD"},
		"CONNECT":                       {line: "CONNECT evil.example:443", want: 421, code: "foreign_host"},
		"a method that is none":         {line: "GET\x01 /stats", want: 400, plain: true},
		"a method nobody knows":         {line: "BREW /stats", want: 405, header: "Allow: GET, HEAD"},
		"a CORS preflight":              {line: "OPTIONS /stats", headers: "Origin: https://evil.example\r\nAccess-Control-Request-Method: GET\r\n", want: 405},
		"an unknown scope":              {line: "GET /stats?scope=everything", want: 400},
		"a scope that is no text":       {line: "GET /stats?scope=%ff%00", want: 400},
		"a query of 16 KB":              {line: "GET /stats?scope=gateway&x=" + strings.Repeat("a", 30<<10), want: 431, plain: true},
		"no upgrade":                    {line: "GET /ws", want: 426, header: "Upgrade: websocket"},
		"an upgrade to an old version":  {line: "GET /ws", headers: strings.Replace(upgrade[:len(upgrade)-2], "13", "8", 1), want: 426, header: "Sec-Websocket-Version: 13"},
		"an upgrade of another origin":  {line: "GET /ws", headers: upgrade[:len(upgrade)-2] + "Origin: null\r\n", want: 403, code: "origin"},
		"two lengths":                   {line: "POST /stats", headers: "Content-Length: 1\r\nContent-Length: 2\r\n", body: "xx", want: 400, plain: true},
		"a negative length":             {line: "POST /stats", headers: "Content-Length: -1\r\n", want: 400, plain: true},
		"length and chunks":             {line: "POST /stats", headers: "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", body: "0\r\n\r\n", want: 405},
		"an encoding nobody knows":      {line: "POST /stats", headers: "Transfer-Encoding: gzip\r\n", want: 501, plain: true},
		"chunks that are none":          {line: "POST /stats", headers: "Transfer-Encoding: chunked\r\n", body: "zz\r\n", want: 405},
		"a header over two lines":       {line: "GET /nowhere", headers: "X-A: b\r\n c\r\n", want: 404},
		"a space before the colon":      {line: "GET /stats", headers: "X-A : b\r\n", want: 400, plain: true},
		"an unknown path, inside":       {line: "GET /api", internal: true, want: 404},
		"a wrong method, inside":        {line: "POST /metrics", internal: true, want: 405, header: "Allow: GET, HEAD"},
		"a foreign host, inside":        {line: "GET http://evil.example/metrics", internal: true, want: 421, code: "foreign_host"},
		"WebSocket, inside":             {line: "GET /ws", headers: upgrade[:len(upgrade)-2], internal: true, want: 404},
		"a thousand headers, all fine":  {line: "GET /nowhere", headers: strings.Repeat(more, 1000), want: 404},
		"profiles are not for everyone": {line: "GET /debug/pprof/", want: 404},
		"nor are metrics":               {line: "GET /metrics", want: 404},
	} {
		t.Run(name, func(t *testing.T) {
			addr := g.Addr
			if tc.internal {
				addr = g.Internal
			}
			r, err := DialRaw(addr, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			_ = r.SetDeadline(time.Now().Add(2 * Deadline))
			// What is refused is not read to its end, so writing may fail.
			var sent sync.WaitGroup
			sent.Go(func() { _, _ = io.WriteString(r, tc.line+" HTTP/1.1\r\nHost: "+addr+"\r\n"+tc.headers+"\r\n"+tc.body) })
			within, began := Busier(t), time.Now()
			response, err := http.ReadResponse(bufio.NewReader(r), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if took := time.Since(began); took > within(time.Second) {
				t.Errorf("answered after %v", took)
			}
			if tc.plain {
				if response.StatusCode != tc.want {
					t.Errorf("answered %d, want %d", response.StatusCode, tc.want)
				}
			} else if err := refusedAs(response, tc.want, tc.code); err != nil {
				t.Error(err)
			}
			if name, value, _ := strings.Cut(tc.header, ": "); tc.header != "" && response.Header.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, response.Header.Get(name), value)
			}
			if len(response.Header["Access-Control-Allow-Origin"]) > 0 {
				t.Errorf("a foreign page may read it: %v", response.Header)
			}
			r.Close()
			sent.Wait()
			n.wantChat(t)
		})
	}
}

// Whoever writes X-Forwarded-For chooses no address with it, unless a proxy that is trusted wrote the end of it.
func TestASpoofedAddressCountsBehindATrustedProxyOnly(t *testing.T) {
	r := Shared(t, Embedded)
	// One handshake a second and address, and one at once: the second of an address is refused.
	limited := []string{"--limits.connect-rate-per-ip=1"}
	shake := func(g *Gateway, forwarded string) (*Client, error) {
		return Dial(g.WS(), http.Header{"X-Forwarded-For": {forwarded}})
	}
	for name, tc := range map[string]struct {
		flags []string
		from  []string // X-Forwarded-For of one handshake each
		let   []bool
	}{
		"a stranger is who he is":       {nil, []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}, []bool{true, false, false}},
		"behind a proxy there are many": {[]string{"--trusted-proxies=127.0.0.1"}, []string{"203.0.113.1", "203.0.113.2", "203.0.113.2"}, []bool{true, true, false}},
		"what he adds stands left":      {[]string{"--trusted-proxies=127.0.0.1"}, []string{"1.1.1.1, 203.0.113.1", "2.2.2.2, 203.0.113.1", "127.0.0.1, 203.0.113.1"}, []bool{true, false, false}},
		"garbage is the proxy's":        {[]string{"--trusted-proxies=127.0.0.1"}, []string{"<script>", strings.Repeat("9", 8<<10), ",,,,"}, []bool{true, false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			g := StartGateway(t, r, Options{Flags: slices.Concat(limited, tc.flags)})
			// A busy machine may let a second pass in between. Then it is tried again: who is refused uses nothing up, so all are good anew soon.
			err := Poll(4*Deadline, func() error {
				began := time.Now()
				for i, from := range tc.from {
					c, err := shake(g, from)
					if err == nil {
						c.Cut()
					}
					refused, ok := err.(*Refused)
					if err != nil && (!ok || refused.Status != http.StatusServiceUnavailable || refused.Header.Get("Retry-After") == "") {
						return stop{err}
					}
					if let := err == nil; let != tc.let[i] {
						return fmt.Errorf("%q is let in: %v (%v after the first)", from, let, time.Since(began))
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
