package hook

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// errAddress says that a webhook leads to an address that isn't public, and that
// its allow list doesn't name.
var errAddress = errors.New("address is not public, and not allowed")

// notPublic are the ranges nobody on the internet owns, or that carry an address of
// another kind inside (IANA special-purpose registries, RFC 6890). Of IPv6 only
// 2000::/3 is public to begin with. 168.63.129.16 looks public, and is inside of each
// machine at Azure what 169.254.169.254 is elsewhere.
var notPublic = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"168.63.129.16/32", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

var publicV6 = netip.MustParsePrefix("2000::/3")

func prefixes(list ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, s := range list {
		all[i] = netip.MustParsePrefix(s)
	}
	return all
}

// public reports whether an address is one that anybody may be sent to.
func public(addr netip.Addr) bool {
	if addr.Zone() != "" {
		return false
	}
	addr = addr.Unmap()
	if !addr.Is4() && !publicV6.Contains(addr) {
		return false
	}
	return !within(addr, notPublic)
}

func within(addr netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// parseAllowed reads the allow list of a webhook: addresses and ranges.
func parseAllowed(list []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			addr, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("allow: %q is neither an address nor a range", s)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("allow: %q: write IPv4 addresses as such", s)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// guard is the Control of a dialer: it sees the address that is about to be
// connected to, whatever name, redirection or second answer of a name server led
// there.
func guard(allowed []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("%w: %s", errAddress, address)
		}
		if addr := to.Addr(); !public(addr) && (addr.Zone() != "" || !within(addr.Unmap(), allowed)) {
			return fmt.Errorf("%w: %s", errAddress, addr)
		}
		return nil
	}
}

// checkHost refuses in the configuration what can only be an address that isn't
// allowed, or one in disguise: 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to
// some resolvers.
func checkHost(host string, allowed []netip.Prefix) error {
	addr, err := netip.ParseAddr(host)
	if err == nil {
		if !public(addr) && !within(addr.Unmap(), allowed) {
			return fmt.Errorf("%w: %s", errAddress, addr)
		}
		return nil
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r >= 0x80 }) {
		// Digits of other scripts become ours on the way to the name server.
		return fmt.Errorf("host %q: write it in ASCII, as in xn--bcher-kva.example", host)
	}
	last := strings.TrimSuffix(host, ".")
	last = last[strings.LastIndexByte(last, '.')+1:]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || last != "" && strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("host %q: write an address in full, such as 192.0.2.1 or [2001:db8::1]", host)
	}
	return nil
}
