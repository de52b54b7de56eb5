//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }

// patience is how long a test waits for what should come within a second or two. Only failures wait it out.
const patience = 20 * time.Second

// A fleet is the gateways of one cluster, as far as the registry sees them: each is a Registry and the entries of the
// sockets it would hold. At the end of its test the fleet is checked (wantSound).
type fleet struct {
	t      *testing.T
	redis  *gatewaytest.Redis
	client redis.UniversalClient
	cfg    Config // of every gateway, without its identity

	gateways []*gateway
	clients  []redis.UniversalClient // of its own, closed with the fleet
	conns    atomic.Int64            // connection ids given
}

// newFleet prepares a fleet without gateways. Its durations are a tenth of those in production, so that a lease ends within
// a test; tune changes them.
func newFleet(t *testing.T, r *gatewaytest.Redis, tune ...func(*Config)) *fleet {
	t.Helper()
	f := &fleet{t: t, redis: r, client: r.Client(), cfg: DefaultConfig()}
	f.cfg.Layout = keyspace.Layout{Sharded: r.Kind == gatewaytest.Cluster}
	f.cfg.Pulse, f.cfg.Lease, f.cfg.ReapAfter = 100*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	f.cfg.Quiet, f.cfg.Grace, f.cfg.RefreshWindow = 300*time.Millisecond, 150*time.Millisecond, 20*time.Millisecond
	if f.cfg.Layout.Sharded {
		// 64 pulses each: at 100 ms three gateways would keep a core busy, and one of them would always be late.
		f.cfg.Pulse, f.cfg.Lease, f.cfg.Quiet = 400*time.Millisecond, 1200*time.Millisecond, 800*time.Millisecond
	}
	for _, change := range tune {
		change(&f.cfg)
	}
	t.Cleanup(f.finish)
	return f
}

// finish checks the fleet and stops it: at the end of the test, or before, where a restarted server would end earlier.
func (f *fleet) finish() {
	defer func() {
		for _, g := range f.gateways {
			g.stop()
			g.registry.running.Wait()
		}
		for _, c := range f.clients {
			_ = c.Close()
		}
		f.gateways, f.clients = nil, nil
	}()
	if len(f.gateways) > 0 && !f.t.Failed() {
		f.wantSound()
	}
}

// A gateway is one Registry and what it would hold.
type gateway struct {
	fleet    *fleet
	id       protocol.GatewayID
	registry *Registry

	cancel context.CancelFunc // nil while Run doesn't run
	done   chan struct{}
	obeys  bool // closes what the registry wants closed, as a gateway does

	mu       sync.Mutex
	held     map[protocol.ConnID]*Entry // guarded by mu
	verdicts []Verdict                  // guarded by mu
}

// gateway starts one: it has its lease, and Run runs.
func (f *fleet) gateway(name string, tune ...func(*Config)) *gateway {
	f.t.Helper()
	g := f.prepare(name, tune...)
	// Again and again: on a busy machine Redis may be late for a test that gives it little time.
	f.eventually(func() error { return g.registry.Join(context.Background()) })
	g.run()
	return g
}

// prepare makes a gateway that doesn't run yet.
func (f *fleet) prepare(name string, tune ...func(*Config)) *gateway {
	g := &gateway{fleet: f, id: protocol.GatewayID(name + "-1"), held: make(map[protocol.ConnID]*Entry), obeys: true}
	cfg := f.cfg
	cfg.Gateway = g.id
	cfg.Each = func(yield func(*Entry) bool) {
		for _, e := range g.entries() {
			if !yield(e) {
				return
			}
		}
	}
	cfg.OnVerdict = g.judged
	for _, change := range tune {
		change(&cfg)
	}
	g.registry = New(f.client, cfg)
	f.gateways = append(f.gateways, g)
	return g
}

// run starts Run, again when it was stopped: a process that goes on.
func (g *gateway) run() {
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.done = cancel, make(chan struct{})
	go func() {
		defer close(g.done)
		_ = g.registry.Run(ctx)
	}()
}

// stop ends Run without a word to Redis: a gateway that was killed, or paused until run.
func (g *gateway) stop() {
	if g.cancel == nil {
		return
	}
	g.cancel()
	<-g.done
	g.cancel = nil
}

func (g *gateway) judged(v Verdict) {
	g.mu.Lock()
	g.verdicts = append(g.verdicts, v)
	e := g.held[v.Conn]
	if g.obeys && e != nil && e.Fence() == v.Fence {
		delete(g.held, v.Conn)
	} else {
		e = nil
	}
	g.mu.Unlock()
	if e != nil {
		g.registry.Remove(e, End{Cause: "judged"})
	}
}

// verdict returns the last verdict on a connection.
func (g *gateway) verdict(e *Entry) (Verdict, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range slices.Backward(g.verdicts) {
		if v.Conn == e.Conn {
			return v, true
		}
	}
	return Verdict{}, false
}

func (g *gateway) entries() []*Entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*Entry, 0, len(g.held))
	for _, e := range g.held {
		all = append(all, e)
	}
	return all
}

// entry makes a connection that isn't registered yet. The device may be empty.
func (g *gateway) entry(user, device string) *Entry {
	return &Entry{
		Conn: protocol.ConnID(fmt.Sprintf("%s.%d", g.id, g.fleet.conns.Add(1))), User: protocol.UserID(user),
		Device: protocol.DeviceID(device), Since: time.Now().UnixMilli(),
	}
}

// connect registers a connection of a user.
func (g *gateway) connect(user, device string) *Entry {
	g.fleet.t.Helper()
	e := g.entry(user, device)
	g.register(e)
	return e
}

func (g *gateway) register(e *Entry) Registration {
	g.fleet.t.Helper()
	reg, err := g.tryRegister(e)
	if err != nil {
		g.fleet.t.Fatalf("%s: register %s of %s: %v", g.id, e.Conn, e.User, err)
	}
	return reg
}

// tryRegister registers as a client does: again when Redis didn't answer in time, which happens on a busy machine.
func (g *gateway) tryRegister(e *Entry) (reg Registration, err error) {
	for until := time.Now().Add(patience); ; {
		reg, err = g.registry.Register(context.Background(), e)
		if !isUnavailable(err) || time.Now().After(until) {
			break
		}
	}
	if err == nil {
		g.mu.Lock()
		g.held[e.Conn] = e
		g.mu.Unlock()
	}
	return reg, err
}

// connectMany registers one connection for each user, all at once as a storm of clients would.
func (g *gateway) connectMany(users ...string) []*Entry {
	g.fleet.t.Helper()
	all := make([]*Entry, len(users))
	errs := make([]error, len(users))
	var wg sync.WaitGroup
	for i, u := range users {
		all[i] = g.entry(u, "")
		wg.Go(func() { _, errs[i] = g.tryRegister(all[i]) })
	}
	wg.Wait()
	for i, e := range all {
		if errs[i] != nil {
			g.fleet.t.Fatalf("%s: register %s: %v", g.id, e.User, errs[i])
		}
	}
	return all
}

// disconnect is the end of a socket.
func (g *gateway) disconnect(e *Entry) {
	g.mu.Lock()
	delete(g.held, e.Conn)
	g.mu.Unlock()
	g.registry.Remove(e, End{Cause: "client_close", Kind: "goodbye", Code: 1000})
}

// forget drops everything held without a word: the sockets of a killed process.
func (g *gateway) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.held)
}

// eventually waits until check finds nothing wrong.
func (f *fleet) eventually(check func() error) {
	f.t.Helper()
	if err := gatewaytest.Poll(patience, check); err != nil {
		f.t.Fatal(err)
	}
}

// throughout wants check to find nothing wrong for a while.
func (f *fleet) throughout(d time.Duration, check func() error) {
	f.t.Helper()
	for until := time.Now().Add(d); time.Now().Before(until); {
		if err := check(); err != nil {
			f.t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// outlast lets time pass: how long a gateway or a Redis is away is what these tests are about.
func (f *fleet) outlast(d time.Duration) { <-time.After(d) }

// at returns nil when the registry, asked on g, finds the user exactly where these connections are.
func (g *gateway) at(user string, want ...*Entry) error {
	locations, err := g.registry.Get(context.Background(), protocol.UserID(user))
	if err != nil {
		return err
	}
	var got, wanted []string
	for _, l := range locations {
		got = append(got, fmt.Sprintf("%s %d", l.Conn, l.Fence))
	}
	for _, e := range want {
		wanted = append(wanted, fmt.Sprintf("%s %d", e.Conn, e.Fence()))
	}
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		return fmt.Errorf("%s finds %s at %v, want %v", g.id, user, got, wanted)
	}
	return nil
}

// wantAt waits until every running gateway finds the user where these connections are.
func (f *fleet) wantAt(user string, want ...*Entry) {
	f.t.Helper()
	for _, g := range f.gateways {
		if g.cancel != nil {
			f.eventually(func() error { return g.at(user, want...) })
		}
	}
}

// wantVerdict waits until the connection's own gateway is told about it.
func (g *gateway) wantVerdict(e *Entry) Verdict {
	g.fleet.t.Helper()
	var v Verdict
	g.fleet.eventually(func() error {
		var ok bool
		if v, ok = g.verdict(e); !ok {
			g.registry.Refresh(e)
			return fmt.Errorf("%s has heard nothing about %s", g.id, e.Conn)
		}
		return nil
	})
	return v
}

// wantReplaced wants a connection to be told that another took its place.
func (g *gateway) wantReplaced(e, by *Entry) {
	g.fleet.t.Helper()
	if v := g.wantVerdict(e); v.Reaped || v.Code != protocol.CloseReplaced || v.Reason != "replaced" || v.By != string(by.Conn) || !lately(v.At) {
		g.fleet.t.Errorf("%s was told %+v, want replaced by %s a moment ago", e.Conn, v, by.Conn)
	}
}

// lately reports whether a time in ms is one of this minute.
func lately(ms int64) bool { return time.Since(time.UnixMilli(ms)).Abs() < time.Minute }

// patient takes nobody for dead whom a busy machine kept from pulsing: for tests in which nobody dies, and that look all the time.
func patient(c *Config) { c.Lease = patience }

func withEvents(c *Config) { c.EventsKept = 100_000 }

func users(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("user%04d", i)
	}
	return all
}
