package router

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/history"
	"chatgate/internal/keyspace"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	gatewaytest.Main(m)
}

// quiet keeps the client's remarks on servers that tests killed out of what a failed test shows.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// realKinds are the kinds with a redis-server behind them: only those tell a history line.
var realKinds = []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster, gatewaytest.Sentinel}

// A cluster is what the gateways of one test have in common.
type cluster struct {
	t      *testing.T
	redis  *gatewaytest.Redis
	layout keyspace.Layout
	dialer func(ctx context.Context, network, addr string) (net.Conn, error) // of gateways made while it is set, for their lanes
	reach  func(ctx context.Context, network, addr string) (net.Conn, error) // and for everything else
}

func newCluster(t *testing.T, r *gatewaytest.Redis) *cluster {
	return &cluster{t: t, redis: r, layout: keyspace.Layout{Sharded: r.Kind == gatewaytest.Cluster}}
}

// settings are what a test may change of a gateway before it starts.
type settings struct {
	router   Config
	registry presence.Config
	history  history.Config
	conns    connection.Config
}

// A gateway is a Router with all that surrounds it in a real one: a registry, a manager, and WebSockets that register as the handler
// lets them.
type gateway struct {
	t        *testing.T
	cluster  *cluster
	id       protocol.GatewayID
	router   *Router
	registry *presence.Registry
	manager  *connection.Manager
	conns    connection.Config
	server   *httptest.Server
	lane     *tap // on the client of the lanes
	general  *tap // on the client of everything else

	stopRegistry, stopRouter func() // each ends its Run and joins it
	running                  bool   // the router was started

	sessions sync.WaitGroup
	arrivals chan *arrival

	mu   sync.Mutex
	sent []*sent // guarded by mu
}

var boots atomic.Uint64

// gateway starts a gateway of this name and waits until its channels are subscribed.
func (c *cluster) gateway(name string, tune ...func(*settings)) *gateway {
	c.t.Helper()
	g := c.makeGateway(name, tune...)
	g.start()
	return g
}

// prompt has the times of a real gateway, for tests of what happens when Redis does not answer.
func prompt(s *settings) {
	real := DefaultConfig()
	s.router.Attempt, s.router.Suspect, s.router.LaneWait = real.Attempt, real.Suspect, real.LaneWait
	s.registry.Timeout = presence.DefaultConfig().Timeout
}

// brisk has five pulses a second, for tests that wait for them.
func brisk(s *settings) { s.registry.Pulse = 200 * time.Millisecond }

// makeGateway makes a gateway that does not run yet.
func (c *cluster) makeGateway(name string, tune ...func(*settings)) *gateway {
	c.t.Helper()
	g := &gateway{t: c.t, cluster: c, arrivals: make(chan *arrival, 256)}
	g.id = protocol.GatewayID(name + "-" + strconv.FormatUint(boots.Add(1), 10))
	s := settings{router: DefaultConfig(), registry: presence.DefaultConfig(), history: history.DefaultConfig(), conns: connection.DefaultConfig()}
	s.registry.Gateway, s.registry.Layout, s.registry.Each = g.id, c.layout, g.each
	s.registry.OnPulse = func(group int, number uint64, line string, heard int) { g.router.Pulsed(group, number, line, heard) }
	s.registry.OnSilence = func(group int) { g.router.Silent(group) }
	s.registry.OnLog = func(a protocol.Address, at protocol.Position) { g.router.Stands(a, at) }
	s.history.Layout = c.layout
	s.router.Gateway, s.router.Layout, s.router.Log = g.id, c.layout, slog.New(slog.NewTextHandler(io.Discard, nil))
	// Unless a test is about time, it must not fail because the machine is busy with others; and it may hold calls as long as it likes.
	s.router.Attempt, s.router.Suspect, s.router.LaneWait = patience, patience, patience
	s.registry.Timeout, s.registry.ConnectionsPerUser = patience, 0
	for _, f := range tune {
		f(&s)
	}
	g.conns = s.conns
	general, lane := c.clients()
	g.general, g.lane = newTap(), newTap()
	general.AddHook(g.general)
	lane.AddHook(g.lane)
	s.router.History = history.New(general, s.history)
	g.registry = presence.New(general, s.registry)
	s.router.Everyone = func(yield func(*connection.Connection) bool) {
		g.manager.ForEach(func(c *connection.Connection) bool {
			_, registered := c.Identity()
			return !registered || yield(c)
		})
	}
	g.router = New(general, lane, g.registry, s.router)
	g.manager = connection.NewManager(&g.conns)
	g.server = httptest.NewServer(http.HandlerFunc(g.serve))
	g.stopRegistry, g.stopRouter = func() {}, func() {}
	c.t.Cleanup(func() {
		g.stop()
		// A router that never ran has read logs all the same.
		g.router.close()
		g.router.cancel()
		g.router.running.Wait()
		_ = general.Close()
		_ = lane.Close()
	})
	return g
}

// clients are made as package gateway makes them.
func (c *cluster) clients() (general, lane redis.UniversalClient) {
	o := redis.UniversalOptions{
		DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second, ContextTimeoutEnabled: true, MaxRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	switch c.redis.Kind {
	case gatewaytest.Sentinel:
		o.MasterName = "mymaster"
		for _, n := range c.redis.Sentinels {
			o.Addrs = append(o.Addrs, n.Addr)
		}
	case gatewaytest.Cluster:
		o.IsClusterMode = true
		for _, n := range c.redis.Nodes {
			o.Addrs = append(o.Addrs, n.Addr)
		}
	default:
		u, err := url.Parse(c.redis.URL)
		if err != nil {
			c.t.Fatal(err)
		}
		o.Addrs = []string{u.Host}
	}
	l := o
	o.Dialer = c.reach
	l.MaxRetries, l.DialerRetries, l.PoolSize, l.Dialer = -1, 1, 4096, c.dialer
	return redis.NewUniversalClient(&o), redis.NewUniversalClient(&l)
}

// running runs f until the function it returns is called, which joins it and may be called again.
func running(t *testing.T, f func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	return func() { cancel(); <-done }
}

func (g *gateway) start() {
	g.t.Helper()
	// Again and again: on a busy machine Redis may be late.
	eventually(g.t, string(g.id)+" has its leases", func() bool { return g.registry.Join(context.Background()) == nil })
	g.stopRegistry = running(g.t, g.registry.Run)
	g.startRouter()
}

func (g *gateway) startRouter() {
	g.t.Helper()
	g.stopRouter, g.running = running(g.t, g.router.Run), true
	eventually(g.t, "the channels of "+string(g.id)+" are subscribed", func() bool {
		return g.router.Stats().Subscriptions >= uint64(len(g.cluster.layout.Groups()))
	})
}

// stop ends everything, and checks what must be true at the end of every test.
func (g *gateway) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.manager.Close(ctx); err != nil {
		g.t.Errorf("%s: manager: %v", g.id, err)
	}
	g.sessions.Wait()
	g.server.Close()
	g.stopAndCheckFeeds()
	g.stopRegistry()
	if err := g.manager.Check(); err != nil {
		g.t.Errorf("%s: %v", g.id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	unanswered := 0
	for _, s := range g.sent {
		if n := s.answers.Load(); n == 0 {
			unanswered++
		} else if n > 1 {
			g.t.Errorf("%s: message %s was answered %d times", g.id, s.ID, n)
		}
	}
	if unanswered > 0 {
		g.t.Errorf("%s: %d of %d messages were never answered", g.id, unanswered, len(g.sent))
	}
}

// stopAndCheckFeeds stops the router, and checks that its deliverers have forgotten everyone, unless the test stopped it before the
// sessions could tell them.
func (g *gateway) stopAndCheckFeeds() {
	late := make(map[*deliverer]bool)
	for _, d := range g.router.deliverers {
		select {
		case <-d.stopped:
			late[d] = true
		default:
		}
	}
	if len(late) == 0 && g.running {
		g.settle()
	}
	g.stopRouter()
	for _, d := range g.router.deliverers {
		for a := range d.feeds {
			if !late[d] {
				g.t.Errorf("%s: the feed of %s outlived its connections", g.id, a)
			}
		}
		for u := range d.watched {
			if !late[d] {
				g.t.Errorf("%s: the watches of %s outlived their connections", g.id, u)
			}
		}
	}
}

// settle waits until the deliverers have done every command that was given before.
func (g *gateway) settle() {
	for _, d := range g.router.deliverers {
		done := make(chan bool, 1)
		select {
		case d.commands <- command{kind: commandLive, answer: done}:
			select {
			case <-done:
			case <-d.stopped:
			}
		case <-d.stopped:
		}
	}
}

func (g *gateway) each(yield func(*presence.Entry) bool) {
	g.manager.ForEach(func(c *connection.Connection) bool {
		if id, ok := c.Identity(); ok {
			return yield(id.Entry.(*presence.Entry))
		}
		return true
	})
}

// An arrival is the gateway's end of a WebSocket. Its three steps are those of the handler's register.
type arrival struct {
	g     *gateway
	conn  *connection.Connection
	entry *presence.Entry
	stay  atomic.Pointer[Stay] // nil before attach
}

func (a *arrival) address() protocol.Address { return protocol.UserAddress(a.entry.User) }

func (a *arrival) attach() { a.stay.Store(a.g.router.Attach(a.address(), a.conn)) }

func (a *arrival) register() presence.Registration {
	reg, err := a.g.registry.Register(context.Background(), a.entry)
	if err != nil {
		a.g.t.Errorf("%s: register %s: %v", a.g.id, a.entry.User, err)
		return reg
	}
	a.conn.Identify(connection.Identity{User: a.entry.User, Entry: a.entry})
	a.g.manager.Identify(a.conn)
	return reg
}

func (a *arrival) follow(reg presence.Registration) {
	a.followFrom(protocol.Position{Epoch: reg.Epoch, Offset: reg.Top}, reg)
}

// followFrom goes on at a position, as a client does that resumes.
func (a *arrival) followFrom(at protocol.Position, reg presence.Registration) {
	a.g.router.Follow(a.stay.Load(), at, reg.Top,
		protocol.AppendRegistered(nil, &protocol.Registered{
			UserID: a.entry.User, ConnID: a.conn.ID(), GatewayID: a.g.id, Epoch: at.Epoch, Offset: at.Offset, First: reg.First, Top: reg.Top,
		}))
}

func (g *gateway) serve(w http.ResponseWriter, r *http.Request) {
	id := protocol.ConnID("c" + strconv.FormatUint(boots.Add(1), 10))
	c, err := connection.Upgrade(w, r, &websocket.Upgrader{}, id, &g.conns)
	if err != nil {
		return
	}
	a := &arrival{g: g, conn: c, entry: &presence.Entry{Conn: id, User: protocol.UserID(r.URL.Query().Get("user")), Since: 1}}
	if err := g.manager.Add(c); err != nil {
		c.Close(connection.Cause{Kind: connection.KindDraining})
	}
	g.sessions.Add(1)
	go func() {
		defer g.sessions.Done()
		defer g.manager.Remove(c)
		if r.URL.Query().Has("held") {
			g.arrivals <- a
		} else {
			a.attach()
			a.follow(a.register())
		}
		cause := c.Run(func([]byte) {}, nil)
		if stay := a.stay.Load(); stay != nil {
			g.router.Detach(stay, nil)
		}
		g.registry.Remove(a.entry, presence.End{Cause: cause.Kind.String()})
	}()
}

// eventually polls for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	err := gatewaytest.Poll(patience, func() error {
		if !ok() {
			return fmt.Errorf("it isn't true: %s", what)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// quoted is a text as JSON content.
func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}
