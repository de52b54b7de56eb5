package handler

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxForwardedHops bounds the walk through X-Forwarded-For. A real chain has a handful of hops; a longer one was made up.
const maxForwardedHops = 32

// Proxies are the address ranges whose X-Forwarded-For is believed. The zero value believes nobody.
type Proxies []netip.Prefix

// ParseProxies reads CIDR ranges ("10.0.0.0/8") and single addresses ("127.0.0.1", "::1").
func ParseProxies(list []string) (Proxies, error) {
	proxies := make(Proxies, 0, len(list))
	for _, entry := range list {
		prefix, err := parseRange(strings.TrimSpace(entry))
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a CIDR range: %w", entry, err)
		}
		proxies = append(proxies, prefix)
	}
	return proxies, nil
}

func parseRange(entry string) (netip.Prefix, error) {
	if !strings.Contains(entry, "/") {
		addr, err := netip.ParseAddr(entry)
		if err != nil {
			return netip.Prefix{}, err
		}
		addr = addr.Unmap().WithZone("")
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(entry)
	if err != nil {
		return netip.Prefix{}, err
	}
	// Addresses are compared unmapped, so a range of mapped addresses is folded to the IPv4 range it means. A shorter one
	// (::ffff:0:0/90) would mean more than IPv4 and could never match.
	if addr := prefix.Addr(); addr.Is4In6() {
		if prefix.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("an IPv4-mapped range needs at least 96 bits")
		}
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}

// Contains reports whether addr belongs to a trusted proxy. addr must be unmapped and without a zone.
func (p Proxies) Contains(addr netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// ClientAddr is the address the request came from. X-Forwarded-For counts only when the peer is a trusted proxy, and is then
// read from the right: each trusted hop vouches for the entry left of it, and the first entry that is not itself a trusted
// proxy is the client. What stands further left was written by the client and is never looked at. An entry that can't be
// read, or an endless chain, leaves the peer's address. The Forwarded header (RFC 7239) is ignored: a proxy that passes it
// on untouched would let the client choose its address.
//
// The result is unmapped (IPv4 in IPv6 is IPv4) and has no zone. It is the zero Addr when even the peer has none.
func (p Proxies) ClientAddr(r *http.Request) netip.Addr {
	peer := peerAddr(r.RemoteAddr)
	if !p.Contains(peer) {
		return peer
	}
	return p.walk(peer, r.Header["X-Forwarded-For"])
}

// walk reads the header lines as one list (RFC 9110 section 5.3), last entry first.
func (p Proxies) walk(peer netip.Addr, lines []string) netip.Addr {
	client, hops := peer, 0
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var entry string
			entry, rest, more = lastEntry(rest)
			addr, ok := parseHop(entry)
			if hops++; !ok || hops > maxForwardedHops {
				return peer
			}
			if client = addr; !p.Contains(addr) {
				return client
			}
		}
	}
	// Everyone in the chain is a trusted proxy: the first of them is where the request began.
	return client
}

// forwarded reports whether a proxy has had its hands on the request, as far as one says so.
func forwarded(r *http.Request) bool {
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Forwarded") || slices.Contains(proxyHeaders, name) {
			return true
		}
	}
	return false
}

// proxyHeaders are what else proxies add, spelt as net/http does.
var proxyHeaders = []string{
	"Forwarded", "Via", "X-Real-Ip", "X-Original-Forwarded-For", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip", "Cf-Connecting-Ip",
	"Fastly-Client-Ip", "Fly-Client-Ip",
}

// IsLocalHost reports whether a Host header names this machine whatever a name server says: localhost and names below it, which browsers
// don't look up (RFC 6761 §6.3), and addresses of loopback.
func IsLocalHost(host string) bool {
	name := host
	if h, port, err := net.SplitHostPort(host); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil && port != "" {
			return false
		}
		name = h
	} else if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		name = host[1 : len(host)-1]
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Zone() == "" && addr.Unmap().IsLoopback()
}

// lastEntry cuts the last comma-separated entry off line.
func lastEntry(line string) (entry, rest string, more bool) {
	if i := strings.LastIndexByte(line, ','); i >= 0 {
		return line[i+1:], line[:i], true
	}
	return line, "", false
}

// parseHop reads one entry: an address, or an address with a port as some proxies write it (1.2.3.4:5678, [2001:db8::1]:5678).
func parseHop(entry string) (netip.Addr, bool) {
	entry = strings.Trim(entry, " \t")
	addr, err := netip.ParseAddr(entry)
	if err != nil {
		if len(entry) > 2 && entry[0] == '[' && entry[len(entry)-1] == ']' {
			addr, err = netip.ParseAddr(entry[1 : len(entry)-1])
		} else {
			var withPort netip.AddrPort
			withPort, err = netip.ParseAddrPort(entry)
			addr = withPort.Addr()
		}
	}
	// A zone names an interface of somebody else's machine.
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

func peerAddr(remote string) netip.Addr {
	peer, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap().WithZone("")
}
