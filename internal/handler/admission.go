package handler

import (
	"cmp"
	"math"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"chatgate/internal/problem"
	"chatgate/internal/protocol"
)

// Reason says why a handshake was refused before the upgrade: metric label, log field and code of the answer.
type Reason string

// The reasons. ReasonOrigin is answered 403, the others 503 with Retry-After.
const (
	ReasonDraining       Reason = "draining"
	ReasonMaxConnections Reason = "max_connections"
	ReasonConnectRate    Reason = "connect_rate"
	ReasonAddressRate    Reason = "connect_rate_per_ip"
	ReasonOrigin         Reason = "origin"
)

// How long a refused client is told to stay away at most, and when nothing better is known.
const (
	maxRetryAfter         = 30 * time.Second
	retryMaxConnections   = 5 * time.Second
	defaultAddressBuckets = 65_536
)

// Rejection is the answer to a handshake that is not let in.
type Rejection struct {
	Status     int           // 503, or 403 for a foreign origin
	RetryAfter time.Duration // 0 = trying again won't help
	Reason     Reason
}

// Write answers the request. The TCP connection is closed after it, since a refused client that kept it open would go on
// using a file descriptor.
func (x *Rejection) Write(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	why := refusals[x.Reason]
	problem.Problem{Status: x.Status, Code: problem.Code(x.Reason), Detail: why.detail, Limit: why.limit}.After(x.RetryAfter).Write(w)
}

// refusals are what is said of each reason, and the limit that was met.
var refusals = map[Reason]struct{ detail, limit string }{
	ReasonDraining:       {"this gateway is shutting down: another one takes you", ""},
	ReasonMaxConnections: {"as many connections as this gateway takes", protocol.LimitMaxConnections},
	ReasonConnectRate:    {"too many connect to this gateway at once", protocol.LimitConnectRate},
	ReasonAddressRate:    {"too many connects from this address", protocol.LimitConnectRatePerIP},
	ReasonOrigin:         {"pages of this origin may not connect here", ""},
}

// AdmissionConfig says how many handshakes and connections this gateway takes. Zero means no limit, unless said otherwise.
type AdmissionConfig struct {
	ConnectRate      int     // handshakes a second on the whole gateway, and as many at once
	ConnectRatePerIP int     // handshakes a second from one client address (IPv6: one /64), and as many at once
	MaxConnections   int     // handshakes and connections at a time
	TrustedProxies   Proxies // whose X-Forwarded-For names the client
	AddressBuckets   int     // client addresses remembered at a time; 0 = 65,536
}

// Admission decides, before the upgrade, whether a handshake is let in. All methods may be called from any goroutine.
type Admission struct {
	// Immutable after NewAdmission.
	proxies Proxies

	// Any goroutine.
	limits   atomic.Pointer[admissionLimits]
	open     atomic.Int64
	draining atomic.Bool
	admitted atomic.Uint64
	rejected [4]atomic.Uint64 // in the order of admissionReasons
}

// admissionLimits are the limits of a configuration, and what was used up of them.
type admissionLimits struct {
	cfg       AdmissionConfig
	gateway   *gatewayRate             // nil = no limit
	addresses *bucketTable[netip.Addr] // nil = no limit for an address
}

// gatewayRate is the rate of the whole gateway.
type gatewayRate struct {
	mu      sync.Mutex
	limiter *rate.Limiter // guarded by mu
	queue   retryQueue    // guarded by mu
	clock   clock         // guarded by mu
}

var admissionReasons = [4]Reason{ReasonDraining, ReasonMaxConnections, ReasonConnectRate, ReasonAddressRate}

// NewAdmission makes an Admission that is open.
func NewAdmission(cfg AdmissionConfig) *Admission {
	a := &Admission{proxies: cfg.TrustedProxies}
	a.limits.Store(new(admissionLimits))
	a.Reload(cfg)
	return a
}

// Reload replaces the limits; the proxies that are trusted stay. Of a limit that has changed, nothing is used up any more. One goroutine at
// a time calls it.
func (a *Admission) Reload(cfg AdmissionConfig) {
	old := *a.limits.Load()
	l := admissionLimits{cfg: cfg}
	switch {
	case cfg.ConnectRate <= 0:
	case cfg.ConnectRate == old.cfg.ConnectRate:
		l.gateway = old.gateway
	default:
		l.gateway = &gatewayRate{
			limiter: rate.NewLimiter(rate.Limit(cfg.ConnectRate), cfg.ConnectRate), queue: retryQueue{rate: cfg.ConnectRate},
		}
	}
	switch {
	case cfg.ConnectRatePerIP <= 0:
	case cfg.ConnectRatePerIP == old.cfg.ConnectRatePerIP:
		l.addresses = old.addresses
	default:
		l.addresses = newAddresses(cfg.ConnectRatePerIP, cmp.Or(max(0, cfg.AddressBuckets), defaultAddressBuckets))
	}
	a.limits.Store(&l)
}

func newAddresses(perSecond, bound int) *bucketTable[netip.Addr] {
	return newBuckets[netip.Addr](perSecond, time.Second, bound)
}

// Ticket is an admitted handshake's place among the connections. Whoever holds it must Release it when the handshake has
// failed or the connection has ended; releasing twice does nothing.
type Ticket struct {
	Addr netip.Addr // the client's address; zero when the peer has none

	admission *Admission
	released  atomic.Bool
}

// Release gives the place free.
func (t *Ticket) Release() {
	if !t.released.Swap(true) {
		t.admission.open.Add(-1)
	}
}

// Admit lets a handshake in, or says how to refuse it: exactly one of the two results is nil. The address is asked before
// the gateway, so that one flooding client does not use up the rate of all others.
func (a *Admission) Admit(r *http.Request, now time.Time) (*Ticket, *Rejection) {
	if a.draining.Load() {
		return nil, a.reject(0, time.Second) // the balancer has other gateways
	}
	l := a.limits.Load()
	if open := a.open.Add(1); l.cfg.MaxConnections > 0 && open > int64(l.cfg.MaxConnections) {
		a.open.Add(-1)
		return nil, a.reject(1, retryMaxConnections)
	}
	addr := a.proxies.ClientAddr(r)
	if l.addresses != nil {
		if wait := l.addresses.take(bucketKey(addr), now); wait > 0 {
			a.open.Add(-1)
			return nil, a.reject(3, wait)
		}
	}
	if wait := l.gateway.take(now); wait > 0 {
		a.open.Add(-1)
		return nil, a.reject(2, wait)
	}
	a.admitted.Add(1)
	return &Ticket{Addr: addr, admission: a}, nil
}

// Drain refuses every handshake from now on.
func (a *Admission) Drain() { a.draining.Store(true) }

// Resume lets handshakes in again.
func (a *Admission) Resume() { a.draining.Store(false) }

// Draining reports whether every handshake is refused.
func (a *Admission) Draining() bool { return a.draining.Load() }

// Open is the number of handshakes and connections that hold a ticket.
func (a *Admission) Open() int { return int(a.open.Load()) }

// AdmissionStats counts decisions since the start.
type AdmissionStats struct {
	Open     int
	Admitted uint64
	Rejected map[Reason]uint64 // every reason but ReasonOrigin, also those at 0
}

// Stats reads the counters.
func (a *Admission) Stats() AdmissionStats {
	s := AdmissionStats{Open: a.Open(), Admitted: a.admitted.Load(), Rejected: make(map[Reason]uint64, len(admissionReasons))}
	for i, reason := range admissionReasons {
		s.Rejected[reason] = a.rejected[i].Load()
	}
	return s
}

func (a *Admission) reject(reason int, wait time.Duration) *Rejection {
	a.rejected[reason].Add(1)
	return &Rejection{
		Status:     http.StatusServiceUnavailable,
		RetryAfter: min(max(wait, time.Second), maxRetryAfter),
		Reason:     admissionReasons[reason],
	}
}

// take takes one handshake from the whole gateway's rate. It returns 0, or how long to stay away.
func (g *gatewayRate) take(now time.Time) time.Duration {
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now = g.clock.order(now)
	if g.limiter.AllowN(now, 1) {
		return 0
	}
	return g.queue.next(now)
}

// clock keeps the times a limiter sees in order. Each handshake brings the time it read before it waited for the lock, and a
// limiter that is taken back in time pays the same interval out twice.
type clock struct{ latest time.Time }

func (c *clock) order(now time.Time) time.Time {
	if now.After(c.latest) {
		c.latest = now
	}
	return c.latest
}

// retryQueue spreads the return of those refused by the gateway's rate. Told the same second, they would all come at once
// again; so each second ahead is given to as many of them as the rate will take.
type retryQueue struct {
	rate int
	last time.Time // up to here the queue has moved on
	wait float64   // refused clients that are expected back
}

func (q *retryQueue) next(now time.Time) time.Duration {
	if passed := now.Sub(q.last); passed > 0 {
		q.wait = max(0, q.wait-passed.Seconds()*float64(q.rate))
		q.last = now
	}
	limit := maxRetryAfter.Seconds() * float64(q.rate)
	q.wait = min(q.wait+1, limit)
	return time.Duration(math.Ceil(q.wait/float64(q.rate))) * time.Second
}

// bucketKey is what one client can't easily have many of: an IPv4 address, or the /64 a site gets of IPv6.
func bucketKey(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		prefix, err := addr.Prefix(64)
		if err == nil {
			return prefix.Addr()
		}
	}
	return addr
}
