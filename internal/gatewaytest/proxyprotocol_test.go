//go:build !secondpass

package gatewaytest

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// proxyAddress is where the proxy connects from; the test's other clients come from 127.0.0.1.
const proxyAddress = "127.0.0.4"

// proxyFlags are of a gateway that takes the PROXY protocol from there, and lets two connections a second in from one client.
var proxyFlags = []string{"--proxy-protocol", "--trusted-proxies=" + proxyAddress, "--limits.connect-rate-per-ip=2", "--insecure"}

// dialFrom connects from an address of this machine.
func dialFrom(t *testing.T, source, addr string) *Raw {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 2 * Deadline}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return &Raw{nc}
}

// proxyV2 is a header of version 2 for a client's IPv4 address, with a TLV behind it.
func proxyV2(command byte, client string) string {
	addresses := append(append(append([]byte{}, net.ParseIP(client).To4()...), 127, 0, 0, 1), 0x30, 0x39, 0, 80)
	return proxyV2Of(0x20|command, 0x11, string(addresses)+"\x04\x00\x01\x00") // and PP2_TYPE_NOOP
}

// proxyV2Of is one of any kind: version and command, family and protocol, and what follows its length.
func proxyV2Of(command, family byte, body string) string {
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family)
	return string(binary.BigEndian.AppendUint16(b, uint16(len(body)))) + body
}

// answer sends what a client does and returns the beginning of what it gets; empty: it was cut.
func (r *Raw) answer(t *testing.T, send string, within time.Duration) string {
	t.Helper()
	if _, err := r.Write([]byte(send)); err != nil {
		t.Fatal(err)
	}
	_ = r.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, 4096)
	n, err := r.Read(b)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Fatalf("no answer within %v", within)
	}
	return string(b[:n])
}

// Through a real HAProxy that sends the PROXY protocol in either version: each client counts by his own address, with nothing of HTTP to say
// it, and his connection works like any. Its health checks come through, too.
func TestClientsBehindTheProxyProtocolCountByTheirAddress(t *testing.T) {
	for _, option := range []string{"send-proxy", "send-proxy-v2"} {
		t.Run(option, func(t *testing.T) {
			g := StartGateway(t, Shared(t, Standalone), Options{Flags: proxyFlags})
			proxy := startHAProxy(t, func(config string) string {
				config = strings.Replace(config, "option forwardfor\n", "\n", 1)
				config = strings.Replace(config, "retry-on conn-failure empty-response 503", "retry-on conn-failure", 1)
				return regexp.MustCompile(`(?m)^(\s*server \w+ \S+)`).ReplaceAllString(config, "$1 source "+proxyAddress+" "+option)
			}, g.Addr)
			refused := 0
			for range 6 {
				if a := dialFrom(t, "127.0.0.5", proxy.Addr).answer(t, Handshake(proxy.Addr), 2*Deadline); strings.HasPrefix(a, "HTTP/1.1 503") {
					refused++
					if !strings.Contains(a, `"limit":"connect-rate-per-ip"`) {
						t.Errorf("refused with %s", a)
					}
				}
			}
			if refused == 0 {
				t.Error("six connections at once from one address were let in, and two may")
			}
			for i, source := range []string{"127.0.0.6", "127.0.0.7", "127.0.0.8"} {
				raw := dialFrom(t, source, proxy.Addr)
				if a := raw.answer(t, Handshake(proxy.Addr), 2*Deadline); !strings.HasPrefix(a, "HTTP/1.1 101") {
					t.Errorf("client %d, from another address, is answered %s", i, a)
				}
			}
			alice, bob := Connect(t, proxy.WS(), "alice"), Connect(t, proxy.WS(), "bob")
			id, err := alice.Send("bob", strings.Repeat("x", 20_000), "")
			if err != nil {
				t.Fatal(err)
			}
			if f, err := bob.Next("message", Deadline); err != nil || f.ID != id {
				t.Errorf("bob got %s, %v", f, err)
			}
		})
	}
}

// The header is believed from trusted proxies, and only from them; a trusted one that doesn't send it, or sends nonsense, or takes its time,
// is cut. Behind it everything is as ever, TLS too.
func TestTheProxyProtocolIsBelievedFromProxiesOnly(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	g := StartGateway(t, r, Options{Flags: proxyFlags})
	const proxy, stranger = proxyAddress, "127.0.0.9"
	long := "PROXY TCP4 " + strings.Repeat("1", 200)
	const ipv4 = "\xcb\x00\x71\x09\x7f\x00\x00\x01\x30\x39\x00\x50" // 203.0.113.9
	for name, tc := range map[string]struct {
		source, header string
		want           string // the beginning of the answer; empty: cut without one
	}{
		"version 1":                  {proxy, "PROXY TCP4 203.0.113.1 127.0.0.1 12345 80\r\n", "HTTP/1.1 101"},
		"version 1, IPv6":            {proxy, "PROXY TCP6 2001:db8::1 ::1 12345 80\r\n", "HTTP/1.1 101"},
		"version 1, unknown":         {proxy, "PROXY UNKNOWN\r\n", "HTTP/1.1 101"},
		"version 2":                  {proxy, proxyV2(1, "203.0.113.2"), "HTTP/1.1 101"},
		"version 2, its own check":   {proxy, proxyV2(0, "203.0.113.3"), "HTTP/1.1 101"},
		"none":                       {proxy, "", ""},
		"cut short":                  {proxy, "PROXY TCP4 203.0.113.1\r\n", ""},
		"too long":                   {proxy, long, ""},
		"no address":                 {proxy, "PROXY TCP4 somebody 127.0.0.1 1 2\r\n", ""},
		"half of version 2":          {proxy, proxyV2(1, "203.0.113.2")[:15] + "\xff\xff", ""},
		"a stranger without":         {stranger, "", "HTTP/1.1 101"},
		"a stranger with version 1":  {stranger, "PROXY TCP4 203.0.113.4 127.0.0.1 12345 80\r\n", "HTTP/1.1 400"},
		"a stranger with version 2":  {stranger, proxyV2(1, "203.0.113.5"), "HTTP/1.1 400"},
		"two headers":                {proxy, "PROXY TCP4 203.0.113.6 127.0.0.1 1 2\r\nPROXY TCP4 203.0.113.7 127.0.0.1 1 2\r\n", "HTTP/1.1 400"},
		"by a name of another field": {proxy, "X-Forwarded-For: 203.0.113.8\r\n", ""},

		"no command":               {proxy, proxyV2Of(0x22, 0x11, ipv4), ""},
		"version 3":                {proxy, proxyV2Of(0x31, 0x11, ipv4), ""},
		"no family":                {proxy, proxyV2Of(0x21, 0x41, ipv4), ""},
		"no protocol":              {proxy, proxyV2Of(0x21, 0x13, ipv4), ""},
		"too short for its family": {proxy, proxyV2Of(0x21, 0x21, ipv4), ""},
		"a client without address": {proxy, proxyV2Of(0x21, 0x00, ""), ""},
		"a client of UDP":          {proxy, proxyV2Of(0x21, 0x12, ipv4), "HTTP/1.1 101"},
		"a client of this machine": {proxy, proxyV2Of(0x21, 0x31, strings.Repeat("/tmp/x\x00\x00", 27)), "HTTP/1.1 101"},
		"a check with nothing":     {proxy, proxyV2Of(0x20, 0x00, ""), "HTTP/1.1 101"},
		"a check with anything":    {proxy, proxyV2Of(0x20, 0x11, "xyz"), "HTTP/1.1 101"},
		"4 KB of TLVs":             {proxy, proxyV2Of(0x21, 0x11, ipv4+"\x04\x0f\xf1"+strings.Repeat("x", 4096-15)), "HTTP/1.1 101"},
		"more than 4 KB":           {proxy, proxyV2Of(0x21, 0x11, ipv4+"\x04\x0f\xf2"+strings.Repeat("x", 4096-14)), ""},
		"a TLV that is cut":        {proxy, proxyV2Of(0x21, 0x11, ipv4+"\x04\xff\xff"), "HTTP/1.1 101"}, // nobody reads them
	} {
		t.Run(name, func(t *testing.T) {
			var a string
			wantWithin(t, 2*Deadline, func() bool { // those who are nobody share a rate
				a = dialFrom(t, tc.source, g.Addr).answer(t, tc.header+Handshake(g.Addr), 4*Deadline)
				return !strings.HasPrefix(a, "HTTP/1.1 503")
			})
			if !strings.HasPrefix(a, tc.want) || tc.want == "" && a != "" {
				t.Errorf("answered %.100q, want %q", a, tc.want)
			}
		})
	}

	t.Run("what counts is the address of the header", func(t *testing.T) {
		// Twenty connections, each of which claims another address in X-Forwarded-For.
		let := func(header string) (in, most int) {
			began := time.Now()
			for i := range 20 {
				request := strings.Replace(Handshake(g.Addr), "\r\n\r\n", fmt.Sprintf("\r\nX-Forwarded-For: 198.51.100.%d\r\n\r\n", i), 1)
				if strings.HasPrefix(dialFrom(t, proxy, g.Addr).answer(t, header+request, 4*Deadline), "HTTP/1.1 101") {
					in++
				}
			}
			return in, 3 + int(2*time.Since(began).Seconds())
		}
		for name, header := range map[string]string{
			"a client": "PROXY TCP4 203.0.113.20 127.0.0.1 12345 80\r\n", "a client, version 2": proxyV2(1, "203.0.113.21"),
			"nobody": "PROXY UNKNOWN\r\n", "nobody, version 2": proxyV2(0, "203.0.113.22"),
			"by IPv6": "PROXY TCP6 2001:db8::7 ::1 12345 80\r\n", "by UDP": proxyV2Of(0x21, 0x12, ipv4),
		} {
			if in, most := let(header); in > most {
				t.Errorf("%s: %d were let in under the addresses they claimed, want at most %d", name, in, most)
			}
		}
		if in, _ := let("PROXY TCP4 " + proxyAddress + " 127.0.0.1 12345 80\r\n"); in != 20 {
			t.Errorf("behind a proxy that is named by the header, %d of 20 clients were let in", in)
		}
	})

	// The header of version 2 says how long it is, and may come in pieces. A line of version 1 must come as it is sent, at once.
	t.Run("in pieces", func(t *testing.T) {
		in := func(header string, piece int) string {
			raw := dialFrom(t, proxy, g.Addr)
			for len(header) > 0 {
				n := min(piece, len(header))
				if _, err := raw.Write([]byte(header[:n])); err != nil {
					return ""
				}
				<-time.After(time.Millisecond) // on a machine without this, in fewer pieces
				header = header[n:]
			}
			if _, err := raw.Write([]byte(Handshake(g.Addr))); err != nil {
				return ""
			}
			_ = raw.SetReadDeadline(time.Now().Add(4 * Deadline))
			b := make([]byte, 64)
			n, _ := raw.Read(b)
			return string(b[:n])
		}
		for i, piece := range []int{1, 5, 12, 16, 20} {
			if a := in(proxyV2(1, fmt.Sprint("203.0.113.", 60+i)), piece); !strings.HasPrefix(a, "HTTP/1.1 101") {
				t.Errorf("version 2, %d bytes at a time, is answered %.100q", piece, a)
			}
		}
	})

	t.Run("slow", func(t *testing.T) {
		// A line of version 1 that isn't whole is cut at once; what says how long it is may take the time of a header.
		for name, begin := range map[string]string{"version 1": "PROXY TCP4 ", "version 2": proxyV2(1, "203.0.113.40")[:20], "silent": ""} {
			raw := dialFrom(t, proxy, g.Addr)
			if _, err := raw.Write([]byte(begin)); err != nil {
				t.Fatal(err)
			}
			if said, err := raw.Ended(4 * Deadline); err != nil || len(said) > 0 {
				t.Errorf("%s: it said %q, %v", name, said, err)
			}
		}
	})

	t.Run("TLS", func(t *testing.T) {
		cert, key := selfSigned(t)
		g := NewGateway(t, r, Options{Flags: append([]string{"--tls.cert", cert, "--tls.key", key}, proxyFlags...)})
		if err := g.Launch(); err != nil {
			t.Fatal(err)
		}
		open := &tls.Config{InsecureSkipVerify: true}
		web := &http.Client{Timeout: callDeadline, Transport: &http.Transport{TLSClientConfig: open, DisableKeepAlives: true}}
		if err := Poll(startDeadline, func() error {
			response, err := web.Get("https://" + g.Addr + "/readyz")
			if err == nil {
				response.Body.Close()
			}
			if err == nil && response.StatusCode != http.StatusOK {
				err = &Refused{Status: response.StatusCode}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"101", "101", "503"} {
			nc := dialFrom(t, proxy, g.Addr)
			if _, err := nc.Write([]byte("PROXY TCP4 203.0.113.30 127.0.0.1 12345 80\r\n")); err != nil {
				t.Fatal(err)
			}
			secured := &Raw{tls.Client(nc.Conn, open)}
			a := secured.answer(t, Handshake(g.Addr), 4*Deadline)
			if !strings.HasPrefix(a, "HTTP/1.1 "+want) {
				t.Errorf("connection %d is answered %.100q, want %s", i, a, want)
			}
		}
	})
}
