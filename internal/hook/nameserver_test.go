//go:build !secondpass

package hook

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
)

// nameServer has this process ask a name server that gives these answers, one after the other, the last again and again. It returns how
// often it was asked.
func nameServer(t *testing.T, answers [][]string) (asked func() int) {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var queries atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 512)
		for {
			n, from, err := socket.ReadFrom(packet)
			if err != nil {
				return
			}
			if reply := dnsReply(packet[:n], answers, &queries); reply != nil {
				_, _ = socket.WriteTo(reply, from)
			}
		}
	}()
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", socket.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		_ = socket.Close()
		<-done
	})
	return func() int { return int(queries.Load()) }
}

// dnsReply answers a question of one name (RFC 1035 section 4) with the addresses of its kind.
func dnsReply(query []byte, answers [][]string, queries *atomic.Int64) []byte {
	const header = 12
	end := header
	for end < len(query) && query[end] != 0 {
		end += 1 + int(query[end])
	}
	end += 5 // the root, type and class
	if end > len(query) {
		return nil
	}
	kind := query[end-3] // 1: A, 28: AAAA
	n := int(queries.Load())
	if kind == 1 {
		n = int(queries.Add(1)) - 1
	}
	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[header:end]...)
	for _, text := range answers[min(n, len(answers)-1)] {
		addr := netip.MustParseAddr(text)
		if (kind == 1) != addr.Is4() || kind != 1 && kind != 28 {
			continue
		}
		raw := addr.AsSlice()
		reply = append(reply, 0xc0, header, 0, kind, 0, 1, 0, 0, 0, 0, 0, byte(len(raw)))
		reply = append(reply, raw...)
		reply[7]++
	}
	return reply
}
