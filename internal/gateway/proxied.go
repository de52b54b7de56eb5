package gateway

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/pires/go-proxyproto"

	"chatgate/internal/handler"
)

// proxied reads the PROXY protocol, v1 or v2, from trusted proxies, which must then begin every connection with its header: whether there is
// one is never guessed, or a client that gets through to the socket of a proxy could write its own. From others nothing is read: what they
// send in its place is no HTTP.
//
// The header is read by the goroutine that serves the connection, so nobody waits for a proxy that is slow, and before TLS.
type proxied struct {
	*proxyproto.Listener
	missing *atomic.Uint64 // connections of trusted proxies that began without a good header
}

func newProxied(l net.Listener, trusted handler.Proxies, missing *atomic.Uint64) *proxied {
	return &proxied{
		Listener: &proxyproto.Listener{
			Listener: l, ReadHeaderTimeout: headerTimeout,
			ConnPolicy: func(o proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
				if trusted.Contains(addrOf(o.Upstream)) {
					return proxyproto.REQUIRE, nil
				}
				return proxyproto.SKIP, nil
			},
		},
		missing: missing,
	}
}

func (l *proxied) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if p, ok := c.(*proxyproto.Conn); ok {
		return &proxiedConn{Conn: p, missing: l.missing}, nil
	}
	return c, err
}

// proxiedConn is a connection of a trusted proxy. Package connection takes the socket out of it (Raw) when it is upgraded: the header is
// read by then.
type proxiedConn struct {
	*proxyproto.Conn
	missing *atomic.Uint64
	counted sync.Once
}

// nowhere is the address of whoever a proxy doesn't name: its own health checks (LOCAL, UNKNOWN). It is not the proxy's, which is believed
// what it says of others by X-Forwarded-For: one that speaks the PROXY protocol passes on whatever its clients write there.
var nowhere = &net.TCPAddr{IP: net.IPv4zero}

// RemoteAddr waits for the header.
func (c *proxiedConn) RemoteAddr() net.Addr {
	h := c.ProxyHeader()
	if h == nil {
		c.counted.Do(func() { c.missing.Add(1) })
	}
	if h == nil || h.Command.IsLocal() || !addrOf(h.SourceAddr).IsValid() {
		return nowhere
	}
	return h.SourceAddr
}

// addrOf is the address as handler.Proxies compares it; the zero Addr for what is no TCP.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp != nil {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
