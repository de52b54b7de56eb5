package handler

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func mustProxies(t testing.TB, list ...string) Proxies {
	t.Helper()
	proxies, err := ParseProxies(list)
	if err != nil {
		t.Fatal(err)
	}
	return proxies
}

func request(remote string, forwarded ...string) *http.Request {
	r := &http.Request{RemoteAddr: remote, Host: "chat.example.com", Header: http.Header{}}
	if forwarded != nil {
		r.Header["X-Forwarded-For"] = forwarded
	}
	return r
}

// The gateway stands behind a balancer at 10.0.0.1, which stands behind a CDN at 192.0.2.0/24.
func TestClientAddressComesFromTrustedHopsOnly(t *testing.T) {
	proxies := mustProxies(t, "10.0.0.0/8", "192.0.2.0/24", "2001:db8:ffff::/48", " 127.0.0.1 ")
	cases := map[string]struct {
		remote    string
		forwarded []string
		want      string
	}{
		"no proxy, no header":                        {"203.0.113.7:1000", nil, "203.0.113.7"},
		"a stranger's header is not read":            {"203.0.113.7:1000", []string{"198.51.100.1"}, "203.0.113.7"},
		"behind the balancer":                        {"10.0.0.1:1000", []string{"203.0.113.7"}, "203.0.113.7"},
		"behind CDN and balancer":                    {"10.0.0.1:1000", []string{"203.0.113.7, 192.0.2.4"}, "203.0.113.7"},
		"what the client wrote stands left":          {"10.0.0.1:1000", []string{"1.1.1.1, 203.0.113.7, 192.0.2.4"}, "203.0.113.7"},
		"the client names a trusted proxy":           {"10.0.0.1:1000", []string{"10.9.9.9, 203.0.113.7"}, "203.0.113.7"},
		"garbage from the client is never reached":   {"10.0.0.1:1000", []string{"<script>, ,;, 203.0.113.7"}, "203.0.113.7"},
		"garbage where a proxy should have written":  {"10.0.0.1:1000", []string{"203.0.113.7, unknown"}, "10.0.0.1"},
		"an empty entry":                             {"10.0.0.1:1000", []string{"203.0.113.7,"}, "10.0.0.1"},
		"an empty header":                            {"10.0.0.1:1000", []string{""}, "10.0.0.1"},
		"no header from the proxy":                   {"10.0.0.1:1000", nil, "10.0.0.1"},
		"several lines are one list":                 {"10.0.0.1:1000", []string{"1.1.1.1, 203.0.113.7", "192.0.2.4"}, "203.0.113.7"},
		"everyone is trusted: the first":             {"10.0.0.1:1000", []string{"10.3.3.3, 192.0.2.4"}, "10.3.3.3"},
		"with a port":                                {"10.0.0.1:1000", []string{"203.0.113.7:5123"}, "203.0.113.7"},
		"IPv6":                                       {"10.0.0.1:1000", []string{"2001:DB8::1"}, "2001:db8::1"},
		"IPv6 in brackets":                           {"10.0.0.1:1000", []string{"[2001:db8::1]"}, "2001:db8::1"},
		"IPv6 with a port":                           {"10.0.0.1:1000", []string{"[2001:db8::1]:443"}, "2001:db8::1"},
		"IPv6 through an IPv6 proxy":                 {"[2001:db8:ffff::9]:1000", []string{"2001:db8::1"}, "2001:db8::1"},
		"a zone is somebody else's interface":        {"10.0.0.1:1000", []string{"fe80::1%eth0"}, "10.0.0.1"},
		"mapped peer is an IPv4 proxy":               {"[::ffff:10.0.0.1]:1000", []string{"203.0.113.7"}, "203.0.113.7"},
		"mapped entry is IPv4":                       {"10.0.0.1:1000", []string{"::ffff:203.0.113.7"}, "203.0.113.7"},
		"mapped entry is a trusted proxy":            {"10.0.0.1:1000", []string{"203.0.113.7, ::ffff:192.0.2.4"}, "203.0.113.7"},
		"leading zeros are ambiguous":                {"10.0.0.1:1000", []string{"203.0.113.007"}, "10.0.0.1"},
		"a chain nobody has":                         {"10.0.0.1:1000", []string{"203.0.113.7" + strings.Repeat(",10.0.0.2", maxForwardedHops)}, "10.0.0.1"},
		"the longest chain that is read":             {"10.0.0.1:1000", []string{"203.0.113.7" + strings.Repeat(",10.0.0.2", maxForwardedHops-1)}, "203.0.113.7"},
		"tabs and spaces around":                     {"10.0.0.1:1000", []string{" \t203.0.113.7 ,\t192.0.2.4 "}, "203.0.113.7"},
		"the peer's own address without a port part": {"pipe", []string{"203.0.113.7"}, "invalid IP"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := proxies.ClientAddr(request(c.remote, c.forwarded...)); got.String() != c.want {
				t.Errorf("client address %s, want %s", got, c.want)
			}
		})
	}
}

func TestForwardedHeaderOfRFC7239IsIgnored(t *testing.T) {
	r := request("10.0.0.1:1000")
	r.Header.Set("Forwarded", "for=203.0.113.7")
	r.Header.Set("X-Real-Ip", "203.0.113.7")
	if got := mustProxies(t, "10.0.0.0/8").ClientAddr(r).String(); got != "10.0.0.1" {
		t.Errorf("client address %s, want the peer's", got)
	}
}

func TestProxiesThatAreNoRangeAreRefused(t *testing.T) {
	for _, entry := range []string{"", "all", "10.0.0.0/33", "10.0.0", "10.0.0.1:80", "::ffff:0:0/90", "*"} {
		if _, err := ParseProxies([]string{entry}); err == nil {
			t.Errorf("%q was accepted as a trusted proxy", entry)
		}
	}
	if mapped := mustProxies(t, "::ffff:10.0.0.0/104"); !mapped.Contains(netip.MustParseAddr("10.2.3.4")) {
		t.Error("a mapped range does not cover the IPv4 range it means")
	}
}

// FuzzForwardedFor holds three promises for any header: no panic, a stranger is never believed, and nothing a client puts in
// front of what a trusted proxy appended changes the outcome.
func FuzzForwardedFor(f *testing.F) {
	for _, seed := range []string{"", ",", "203.0.113.7", "1.1.1.1, 203.0.113.7", "[::1]:80,::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1,10.0.0.2", "[", "]", ":80"} {
		f.Add(seed)
	}
	proxies := mustProxies(f, "10.0.0.0/8")
	stranger, proxy, client := netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("203.0.113.7")
	f.Fuzz(func(t *testing.T, header string) {
		if got := proxies.ClientAddr(request("198.51.100.9:1", header)); got != stranger {
			t.Errorf("a stranger became %s by sending %q", got, header)
		}
		got := proxies.ClientAddr(request("10.0.0.1:1", header))
		if !got.IsValid() || got.Is4In6() || got.Zone() != "" {
			t.Errorf("%q gave %s, which is no plain address", header, got)
		}
		if got != proxy && strings.Count(header, ",") == 0 && parse(header) != got {
			t.Errorf("%q gave %s, which it does not name", header, got)
		}
		if got := proxies.ClientAddr(request("10.0.0.1:1", header+", 203.0.113.7")); got != client {
			t.Errorf("%q in front made the client %s", header, got)
		}
		if got := proxies.ClientAddr(request("10.0.0.1:1", header, "203.0.113.7, 10.0.0.2")); got != client {
			t.Errorf("%q on the line above made the client %s", header, got)
		}
	})
}

func parse(entry string) netip.Addr {
	addr, _ := parseHop(entry)
	return addr
}
