package handler

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// start is some moment; the tests move time on themselves.
var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func from(i int) *http.Request {
	return request(fmt.Sprintf("%d.%d.%d.%d:1", 20+i>>24, i>>16&255, i>>8&255, i&255))
}

func wantRefused(t *testing.T, x *Rejection, reason Reason) {
	t.Helper()
	if x == nil {
		t.Fatalf("let in, want refused for %s", reason)
	}
	if x.Reason != reason || x.Status != http.StatusServiceUnavailable || x.RetryAfter < time.Second {
		t.Errorf("refused with %+v, want 503 for %s", x, reason)
	}
}

// Four times the rate for a minute: what gets in is the burst of the first moment and then the rate, within 5 %.
func TestSustainedOverloadIsHeldToTheRate(t *testing.T) {
	for name, c := range map[string]struct {
		cfg    AdmissionConfig
		client func(i int) *http.Request
		want   int // a second
	}{
		"the gateway":               {AdmissionConfig{ConnectRate: 500, ConnectRatePerIP: 50}, from, 500},
		"one address":               {AdmissionConfig{ConnectRate: 500, ConnectRatePerIP: 50}, func(int) *http.Request { return from(1) }, 50},
		"one address, one a second": {AdmissionConfig{ConnectRatePerIP: 1}, func(int) *http.Request { return from(1) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			a := NewAdmission(c.cfg)
			const seconds = 60
			offered, admitted := 4*c.want, 0
			for i := range seconds * offered {
				now := start.Add(time.Duration(i) * time.Second / time.Duration(offered))
				if ticket, _ := a.Admit(c.client(i), now); ticket != nil {
					admitted++
					ticket.Release()
				}
			}
			expected := seconds*c.want + c.want // the burst on top
			if admitted < expected*95/100 || admitted > expected*105/100 {
				t.Errorf("%d let in over %d s, want about %d", admitted, seconds, expected)
			}
		})
	}
}

// Handshakes read the clock before they queue for the limiter, so their times arrive out of order. That must not let more in.
func TestTimesOutOfOrderDoNotRaiseTheRate(t *testing.T) {
	for name, cfg := range map[string]AdmissionConfig{
		"the gateway": {ConnectRate: 100},
		"one address": {ConnectRatePerIP: 100},
	} {
		t.Run(name, func(t *testing.T) {
			a := NewAdmission(cfg)
			admitted := 0
			for i := range 10_000 { // 10 s
				now := start.Add(time.Duration(i) * time.Millisecond)
				if i%2 == 1 {
					now = now.Add(-20 * time.Millisecond)
				}
				if ticket, _ := a.Admit(from(1), now); ticket != nil {
					admitted++
				}
			}
			if admitted > 1100*105/100 {
				t.Errorf("%d let in over 10 s, want at most 100 a second and the burst of 100", admitted)
			}
		})
	}
}

// The address is asked first: a flood from one address leaves the others the whole rate of the gateway.
func TestFloodFromOneAddressLeavesTheRateToOthers(t *testing.T) {
	a := NewAdmission(AdmissionConfig{ConnectRate: 100, ConnectRatePerIP: 10})
	for range 1000 {
		a.Admit(from(1), start)
	}
	for i := range 90 {
		if _, x := a.Admit(from(1000+i), start); x != nil {
			t.Fatalf("client %d refused for %s, though the flood may use 10 of 100", i, x.Reason)
		}
	}
	_, x := a.Admit(from(5000), start)
	wantRefused(t, x, ReasonConnectRate)
}

func TestZeroMeansNoLimit(t *testing.T) {
	a := NewAdmission(AdmissionConfig{})
	for i := range 10_000 {
		if _, x := a.Admit(from(1), start); x != nil {
			t.Fatalf("connection %d refused for %s", i, x.Reason)
		}
	}
	if a.Open() != 10_000 {
		t.Errorf("%d open, want 10000", a.Open())
	}
}

func TestConnectionsAreCountedUntilReleased(t *testing.T) {
	a := NewAdmission(AdmissionConfig{MaxConnections: 2})
	first, _ := a.Admit(from(1), start)
	second, _ := a.Admit(from(2), start)
	_, x := a.Admit(from(3), start)
	wantRefused(t, x, ReasonMaxConnections)

	first.Release()
	first.Release() // twice is once
	third, x := a.Admit(from(3), start)
	if x != nil {
		t.Fatalf("refused for %s after a place was given free", x.Reason)
	}
	_, x = a.Admit(from(4), start)
	wantRefused(t, x, ReasonMaxConnections)
	second.Release()
	third.Release()
	if a.Open() != 0 {
		t.Errorf("%d open after all were released", a.Open())
	}
}

// A refused handshake holds no place: the count is that of the tickets whatever the reason.
func TestRefusedHandshakesHoldNoPlace(t *testing.T) {
	a := NewAdmission(AdmissionConfig{ConnectRate: 5, ConnectRatePerIP: 2, MaxConnections: 4})
	for i := range 100 {
		a.Admit(from(i%3), start)
	}
	if a.Open() != 4 {
		t.Errorf("%d open, want 4", a.Open())
	}
	stats := a.Stats()
	if stats.Admitted != 4 {
		t.Errorf("%d admitted, want 4", stats.Admitted)
	}
	var refused uint64
	for _, n := range stats.Rejected {
		refused += n
	}
	if refused != 96 {
		t.Errorf("%d refusals counted, want 96: %v", refused, stats.Rejected)
	}
}

func TestDrainingRefusesEveryone(t *testing.T) {
	a := NewAdmission(AdmissionConfig{})
	ticket, _ := a.Admit(from(1), start)
	a.Drain()
	_, x := a.Admit(from(2), start)
	wantRefused(t, x, ReasonDraining)
	ticket.Release()
	if a.Open() != 0 {
		t.Errorf("%d open", a.Open())
	}
}

func TestManyGoroutinesNeverExceedTheMaximum(t *testing.T) {
	const limit = 8
	a := NewAdmission(AdmissionConfig{MaxConnections: limit, ConnectRatePerIP: 1_000_000})
	var wg sync.WaitGroup
	var mu sync.Mutex
	held, most := 0, 0
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				ticket, _ := a.Admit(from(g), start.Add(time.Duration(i)*time.Millisecond))
				if ticket == nil {
					continue
				}
				mu.Lock()
				held++
				most = max(most, held)
				mu.Unlock()
				mu.Lock()
				held--
				mu.Unlock()
				ticket.Release()
			}
		})
	}
	wg.Wait()
	if most > limit || a.Open() != 0 {
		t.Errorf("%d at a time with a maximum of %d, %d left", most, limit, a.Open())
	}
}

// A site has a /64 of IPv6 and may use any address in it; it is one client. IPv4 written as IPv6 is the same IPv4 client.
func TestAddressesOfOneClientShareOneBucket(t *testing.T) {
	cases := map[string]struct {
		first, second string
		same          bool
	}{
		"one /64":           {"[2001:db8:1:2::1]:1", "[2001:db8:1:2:ffff:ffff:ffff:ffff]:1", true},
		"two /64":           {"[2001:db8:1:2::1]:1", "[2001:db8:1:3::1]:1", false},
		"mapped IPv4":       {"[::ffff:203.0.113.7]:1", "203.0.113.7:9", true},
		"two mapped IPv4":   {"[::ffff:203.0.113.7]:1", "[::ffff:203.0.113.8]:1", false},
		"neighbour IPv4":    {"203.0.113.7:1", "203.0.113.8:1", false},
		"zone is no escape": {"[fe80::1%eth0]:1", "[fe80::2%eth1]:1", true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := NewAdmission(AdmissionConfig{ConnectRatePerIP: 1})
			a.Admit(request(c.first), start)
			_, x := a.Admit(request(c.second), start)
			if got := x != nil; got != c.same {
				t.Errorf("%s and %s share a bucket: %v, want %v", c.first, c.second, got, c.same)
			}
		})
	}
}

func TestLimitFollowsTheForwardedClient(t *testing.T) {
	a := NewAdmission(AdmissionConfig{ConnectRatePerIP: 1, TrustedProxies: mustProxies(t, "10.0.0.1")})
	ticket, _ := a.Admit(request("10.0.0.1:1", "203.0.113.7"), start)
	if want := netip.MustParseAddr("203.0.113.7"); ticket.Addr != want {
		t.Errorf("ticket for %s, want %s", ticket.Addr, want)
	}
	if _, x := a.Admit(request("10.0.0.1:1", "203.0.113.8"), start); x != nil {
		t.Errorf("another client behind the same proxy refused for %s", x.Reason)
	}
	_, x := a.Admit(request("10.0.0.1:1", "1.1.1.1, 203.0.113.7"), start)
	wantRefused(t, x, ReasonAddressRate)
}

// A million addresses knock once each, ever faster than buckets refill, while one client is over its limit. The table stays
// within its bound and the limited client stays limited.
func TestMillionAddressesNeitherGrowTheTableNorFreeALimitedClient(t *testing.T) {
	const bound = 1024
	table := newAddresses(50, bound)
	limited := netip.MustParseAddr("203.0.113.7")
	for range 50 {
		table.take(limited, start)
	}
	passed := 0
	for i := range 1_000_000 {
		now := start.Add(time.Duration(i) * time.Microsecond)
		addr := netip.AddrFrom4([4]byte{byte(20 + i>>24), byte(i >> 16), byte(i >> 8), byte(i)})
		table.take(addr, now)
		if n := len(table.buckets); n > bound {
			t.Fatalf("%d buckets after %d addresses, bound %d", n, i, bound)
		}
		if i%1000 == 0 && table.take(limited, now) == 0 {
			passed++
		}
	}
	// In one second its 50 a second, for which it asks 1,000 times; a fresh bucket would have been 50 more each time.
	if passed > 51 {
		t.Errorf("the limited client passed %d times in a second, want at most 51", passed)
	}
}

// With the table full of buckets in use, newcomers share one bucket instead of taking somebody's.
func TestNewcomersShareABucketWhileAllOthersAreInUse(t *testing.T) {
	table := newAddresses(2, 3)
	for i := range 3 {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		table.take(addr, start)
		table.take(addr, start)
	}
	got := 0
	for i := range 10 {
		if table.take(netip.AddrFrom4([4]byte{20, 0, 0, byte(i)}), start) == 0 {
			got++
		}
	}
	if got != 2 {
		t.Errorf("%d newcomers let in, want the shared 2", got)
	}
	for i := range 3 {
		if table.take(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), start) == 0 {
			t.Errorf("bucket %d was given a second time", i)
		}
	}
}

// Somebody took all he had long ago, and will be full last. Those who took little since are full before him, and it is their buckets that
// newcomers get, each one of his own.
func TestOneDrainedBucketKeepsNobodyOut(t *testing.T) {
	const burst, bound = 100, 50
	table := newBuckets[string](burst, time.Hour, bound)
	for range burst {
		table.take("drained", start)
	}
	for i := range bound - 1 {
		table.take(fmt.Sprint("once ", i), start.Add(time.Second))
	}
	later := start.Add(2 * time.Minute)
	for i := range bound - 1 {
		newcomer := fmt.Sprint("newcomer ", i)
		for n := range burst {
			if wait := table.take(newcomer, later); wait > 0 {
				t.Fatalf("newcomer %d waits %v after %d tokens of %d", i, wait, n, burst)
			}
		}
	}
	for range 3 { // what came back to him in two minutes, and no more
		if table.take("drained", later) == 0 {
			continue
		}
		t.Error("the drained one has lost what came back to him")
	}
	if wait := table.take("drained", later); wait <= 0 || wait > time.Hour/burst {
		t.Errorf("the drained one waits %v, want to wait for a token", wait)
	}
	if n := table.len(); n != bound {
		t.Errorf("%d buckets, bound %d", n, bound)
	}
}

func TestTableGivesBackWhatAFloodTook(t *testing.T) {
	table := newAddresses(10, 10_000)
	for i := range 10_000 {
		table.take(netip.AddrFrom4([4]byte{20, 0, byte(i >> 8), byte(i)}), start)
	}
	later := start.Add(time.Minute)
	for i := range 5_000 {
		table.take(netip.MustParseAddr("203.0.113.7"), later.Add(time.Duration(i)*time.Second))
	}
	if n := table.len(); n > 1 {
		t.Errorf("%d buckets left an hour after the flood", n)
	}
}

// 5,000 clients are refused in the same moment. Told the same second they would all return at once; they are told seconds
// that the rate can take, each second once over.
func TestRefusedClientsAreSpreadOverTheSecondsTheRateNeeds(t *testing.T) {
	a := NewAdmission(AdmissionConfig{ConnectRate: 500})
	back := map[time.Duration]int{}
	for i := range 5_500 {
		if _, x := a.Admit(from(i), start); x != nil {
			back[x.RetryAfter]++
		}
	}
	if len(back) != 10 {
		t.Errorf("spread over %d different seconds, want 10: %v", len(back), back)
	}
	for wait, n := range back {
		if n != 500 {
			t.Errorf("%d told %s, want 500", n, wait)
		}
	}
	for i := range 20_000 {
		_, x := a.Admit(from(i), start)
		if x.RetryAfter > maxRetryAfter {
			t.Fatalf("told to stay away for %s", x.RetryAfter)
		}
	}
}

func TestRejectionIsAnsweredWithRetryAfterAndAShortBody(t *testing.T) {
	cases := map[string]struct {
		rejection Rejection
		retry     string
		limit     string
	}{
		"rounded up":        {Rejection{503, 1200 * time.Millisecond, ReasonConnectRate}, "2", "connect-rate"},
		"a second at least": {Rejection{503, time.Millisecond, ReasonAddressRate}, "1", "connect-rate-per-ip"},
		"full":              {Rejection{503, 5 * time.Second, ReasonMaxConnections}, "5", "max-connections"},
		"no limit":          {Rejection{503, time.Second, ReasonDraining}, "1", ""},
		"no use":            {Rejection{403, 0, ReasonOrigin}, "", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			c.rejection.Write(w)
			if w.Code != c.rejection.Status || w.Header().Get("Retry-After") != c.retry || w.Header().Get("Connection") != "close" {
				t.Errorf("answered %d with %v", w.Code, w.Header())
			}
			var body struct {
				Status        int
				Code          Reason
				Detail, Limit string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Status != w.Code || body.Code != c.rejection.Reason ||
				body.Detail == "" || body.Limit != c.limit {
				t.Errorf("body %q: %v", w.Body, err)
			}
		})
	}
}

// New limits count from the next handshake on. What didn't change goes on with what is used up.
func TestReloadedLimitsCountForTheNextHandshake(t *testing.T) {
	cfg := AdmissionConfig{ConnectRate: 10, ConnectRatePerIP: 5, MaxConnections: 100}
	a := NewAdmission(cfg)
	let := func(who, n int) (in int) {
		for range n {
			if _, x := a.Admit(from(who), start); x == nil {
				in++
			}
		}
		return in
	}
	want := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d were let in, want %d", what, got, want)
		}
	}
	want("of one address", let(1, 20), 5)
	a.Reload(cfg)
	want("with the same limits again", let(1, 20), 0)
	cfg.ConnectRatePerIP = 50
	a.Reload(cfg)
	want("with more for one address", let(1, 20), 5) // the gateway's ten are used up
	cfg.ConnectRate = 0
	a.Reload(cfg)
	want("with no limit for the gateway", let(1, 20), 20)
	cfg.MaxConnections = a.Open()
	a.Reload(cfg)
	_, x := a.Admit(from(2), start)
	wantRefused(t, x, ReasonMaxConnections)
	cfg.MaxConnections = 0
	a.Reload(cfg)
	want("without a limit", let(2, 20), 20)
}
