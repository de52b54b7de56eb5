//go:build !secondpass

package gatewaytest

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

// v2 is a header of version 2 as it is on the wire, however wrong.
func v2(versionAndCommand, family byte, announced int, body string) string {
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), versionAndCommand, family)
	return string(binary.BigEndian.AppendUint16(b, uint16(announced))) + body
}

// A proxy that is trusted may be broken, or not be what it was believed to be. Whatever it sends in place of a header cuts its connection at
// once, and what is only odd is read. Others don't wait for one that stops in the middle.
func TestBadProxyHeadersHurtNobodyElse(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{
		"--proxy-protocol", "--trusted-proxies=" + proxyAddress, "--limits.connect-rate-per-ip=0", "--insecure",
	}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	const let, cut = "HTTP/1.1 101", ""
	const addresses = "\xcb\x00\x71\x01\x7f\x00\x00\x01\x30\x39\x00\x50" // 203.0.113.1:12345 to 127.0.0.1:80
	const local, proxy = 0x20, 0x21
	for name, tc := range map[string]struct{ header, want string }{
		"LOCAL without anything":           {v2(local, 0x00, 0, ""), let},
		"LOCAL of TCP without addresses":   {v2(local, 0x11, 0, ""), let},
		"LOCAL with what must be skipped":  {v2(local, 0x00, 9, "\x04\x00\x06abcdef"), let},
		"of a socket with a path":          {v2(proxy, 0x31, 216, strings.Repeat("\x00", 216)), let},
		"a large TLV":                      {v2(proxy, 0x11, 12+3+2000, addresses+"\x04\x07\xd0"+strings.Repeat("x", 2000)), let},
		"a TLV longer than the header":     {v2(proxy, 0x11, 12+4, addresses+"\x04\xff\xffx"), let},
		"version 1 of the binary form":     {v2(0x11, 0x11, 12, addresses), cut},
		"version 3":                        {v2(0x31, 0x11, 12, addresses), cut},
		"command 2":                        {v2(0x22, 0x11, 12, addresses), cut},
		"PROXY of nobody":                  {v2(proxy, 0x00, 0, ""), cut},
		"an unknown family":                {v2(proxy, 0x41, 12, addresses), cut},
		"an unknown transport":             {v2(proxy, 0x13, 12, addresses), cut},
		"IPv6 with addresses of IPv4":      {v2(proxy, 0x21, 12, addresses), cut},
		"addresses that are too short":     {v2(proxy, 0x11, 11, addresses[:11]), cut},
		"the longest length":               {v2(proxy, 0x11, 0xFFFF, addresses), cut},
		"the longest LOCAL":                {v2(local, 0x00, 0xFFFF, ""), cut},
		"zeros":                            {strings.Repeat("\x00", 300), cut},
		"version 1 without its end":        {"PROXY TCP4 203.0.113.1 127.0.0.1 1 2 " + strings.Repeat(" ", 300), cut},
		"version 1, a port that is none":   {"PROXY TCP4 203.0.113.1 127.0.0.1 1 70000\r\n", cut},
		"version 1, a family that is none": {"PROXY UDP4 203.0.113.1 127.0.0.1 1 2\r\n", cut},
		"version 1 in small letters":       {"proxy tcp4 203.0.113.1 127.0.0.1 1 2\r\n", cut},
		"a handshake of TLS":               {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("x", 500), cut},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			a := dialFrom(t, proxyAddress, g.Addr).answer(t, tc.header+Handshake(g.Addr), 4*Deadline)
			if !strings.HasPrefix(a, tc.want) || tc.want == cut && a != "" {
				t.Errorf("answered %.100q, want %q", a, tc.want)
			}
			if took := time.Since(began); tc.want == cut && took > 4*time.Second {
				t.Errorf("cut after %v, as if more were to come", took)
			}
			n.wantChat(t)
		})
	}

	t.Run("a byte at a time", func(t *testing.T) {
		// Of version 1 the line must come in one piece, which the protocol allows a receiver to want.
		r := dialFrom(t, proxyAddress, g.Addr)
		request := v2(proxy, 0x11, 12, addresses) + Handshake(g.Addr)
		for i := range len(request) - 1 {
			if _, err := r.Write([]byte(request[i : i+1])); err != nil {
				t.Fatal(err)
			}
		}
		if a := r.answer(t, request[len(request)-1:], 2*Deadline); !strings.HasPrefix(a, let) {
			t.Errorf("answered %.100q", a)
		}
	})

	t.Run("many that stop", func(t *testing.T) {
		var stopped []*Raw
		for i := range 100 {
			r := dialFrom(t, proxyAddress, g.Addr)
			header := v2(proxy, 0x11, 12, addresses)
			if _, err := r.Write([]byte(header[:i%len(header)])); err != nil {
				t.Fatal(err)
			}
			stopped = append(stopped, r)
		}
		n.wantChat(t)
		if a := dialFrom(t, proxyAddress, g.Addr).answer(t, v2(proxy, 0x11, 12, addresses)+Handshake(g.Addr), 2*Deadline); !strings.HasPrefix(a, let) {
			t.Errorf("beside them a client is answered %.100q", a)
		}
		for i, r := range stopped {
			if said, err := r.Ended(4 * Deadline); err != nil || !bytes.Equal(said, nil) {
				t.Fatalf("the one that stopped after %d bytes: it said %.100q, %v", i%28, said, err)
			}
		}
	})
}
