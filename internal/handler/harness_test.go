package handler

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
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
	"chatgate/internal/router"
)

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	gatewaytest.Main(m)
}

// quiet keeps the client's remarks on servers that tests stopped out of what a failed test shows.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// settings are what a test may change of a gateway before it starts.
type settings struct {
	handler   Config
	conns     connection.Config
	registry  presence.Config
	router    router.Config
	admission AdmissionConfig
}

// A gateway is the client edge with everything under it, as package gateway puts it together.
type gateway struct {
	t        *testing.T
	redis    *gatewaytest.Redis
	id       protocol.GatewayID
	handler  *Handler
	manager  *connection.Manager
	registry *presence.Registry
	router   *router.Router
	conns    connection.Config
	server   *httptest.Server
	lane     *gate
	general  *gate // on the client of everything else
	stop     func()
}

var boots atomic.Uint64

func newGateway(t *testing.T, r *gatewaytest.Redis, tune ...func(*settings)) *gateway {
	t.Helper()
	g := &gateway{t: t, redis: r, id: protocol.GatewayID("gw-" + strconv.FormatUint(boots.Add(1), 10)), lane: &gate{}, general: &gate{}}
	layout := keyspace.Layout{Sharded: r.Kind == gatewaytest.Cluster}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s := settings{
		handler: Config{
			Gateway: g.id, Log: log, Anonymous: true, HeartbeatInterval: 30 * time.Second, PresenceTTL: 90 * time.Second,
			MaxFrameBytes: 64 << 10, Limits: Limits{MaxRooms: 500, MaxWatches: 1000}, MaxBadFrames: 64, ReapedSpread: time.Second, RegisterWait: time.Second,
			CursorWindow: 20 * time.Millisecond,
		},
		conns: connection.DefaultConfig(), registry: presence.DefaultConfig(), router: router.DefaultConfig(),
	}
	s.registry.Gateway, s.registry.Layout = g.id, layout
	s.registry.Each = func(yield func(*presence.Entry) bool) { Each(g.manager)(yield) }
	s.registry.OnVerdict = func(v presence.Verdict) { Judged(g.manager, v, s.handler.ReapedSpread) }
	s.router.Gateway, s.router.Layout, s.router.Log = g.id, layout, log
	s.router.Everyone = func(yield func(*connection.Connection) bool) { Registered(g.manager)(yield) }
	s.router.MayBegin = func(u protocol.UserID) time.Duration { return g.handler.MayBegin(u) }
	s.router.OnKick = func(k protocol.Kick) { Kicked(g.manager, k) }
	s.router.OnQuestion = func(ctx context.Context, a *router.Asked) bool { return g.handler.Asked(ctx, a) }
	// Unless a test is about time, it must not fail because the machine is busy with others; and it may hold calls as long as it likes.
	s.router.Attempt, s.router.Suspect, s.router.LaneWait = patience, patience, patience
	for _, f := range tune {
		f(&s)
	}
	g.conns = s.conns
	general, lane := clients(t, r)
	lane.AddHook(g.lane)
	general.AddHook(g.general)
	g.manager = connection.NewManager(&g.conns)
	s.registry.OnPulse = func(group int, number uint64, line string, heard int) { g.router.Pulsed(group, number, line, heard) }
	s.registry.OnSilence = func(group int) { g.router.Silent(group) }
	s.registry.OnLog = func(a protocol.Address, at protocol.Position) { g.router.Stands(a, at) }
	hc := history.DefaultConfig()
	hc.Layout = s.registry.Layout
	s.handler.History, s.router.History = history.New(general, hc), history.New(general, hc)
	g.registry = presence.New(general, s.registry)
	g.router = router.New(general, lane, g.registry, s.router)
	g.handler = New(s.handler, &g.conns, g.manager, g.registry, g.router, NewAdmission(s.admission))
	g.server = httptest.NewServer(g.handler)

	// Again and again: on a busy machine Redis may be late for a test that gives it little time.
	if err := gatewaytest.Poll(patience, func() error { return g.registry.Join(context.Background()) }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, run := range []func(context.Context) error{g.registry.Run, g.router.Run, g.manager.Run, g.handler.Run} {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	g.stop = sync.OnceFunc(func() {
		closing, done := context.WithTimeout(context.Background(), patience)
		defer done()
		if err := g.manager.Close(closing); err != nil {
			t.Errorf("manager: %v", err)
		}
		g.handler.Wait()
		if err := g.manager.Check(); err != nil || g.manager.Count() != 0 {
			t.Errorf("%d connections are left, %v", g.manager.Count(), err)
		}
		g.server.Close()
		cancel()
		parts.Wait()
		_, _ = general.Close(), lane.Close()
	})
	t.Cleanup(g.stop)
	eventually(t, "the gateway listens", g.router.Listening)
	return g
}

// embedded is a gateway on the cheapest Redis.
func embedded(t *testing.T, tune ...func(*settings)) *gateway {
	t.Helper()
	return newGateway(t, gatewaytest.Shared(t, gatewaytest.Embedded), tune...)
}

// clients are made as package gateway makes them.
func clients(t *testing.T, r *gatewaytest.Redis) (general, lane redis.UniversalClient) {
	o := redis.UniversalOptions{
		DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second, ContextTimeoutEnabled: true, MaxRetries: 1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	switch r.Kind {
	case gatewaytest.Sentinel:
		o.MasterName = "mymaster"
		for _, n := range r.Sentinels {
			o.Addrs = append(o.Addrs, n.Addr)
		}
	case gatewaytest.Cluster:
		o.IsClusterMode = true
		for _, n := range r.Nodes {
			o.Addrs = append(o.Addrs, n.Addr)
		}
	default:
		u, err := url.Parse(r.URL)
		if err != nil {
			t.Fatal(err)
		}
		o.Addrs = []string{u.Host}
	}
	l := o
	l.MaxRetries, l.DialerRetries = -1, 1
	return redis.NewUniversalClient(&o), redis.NewUniversalClient(&l)
}

// A gate on a line to Redis keeps scripts waiting while it is shut.
type gate struct {
	mu    sync.Mutex
	shut  chan struct{} // guarded by mu; closed when the gate opens; nil: open
	about string        // guarded by mu; the argument that scripts have which wait; empty: all do
	held  int           // guarded by mu; scripts that came to it while it was shut
}

// hold shuts the gate until the function it returns is called, for scripts with this argument.
func (x *gate) hold(about string) (release func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	shut := make(chan struct{})
	x.shut, x.about, x.held = shut, about, 0
	return sync.OnceFunc(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.shut = nil
		close(shut)
	})
}

// holds reports whether a script waits.
func (x *gate) holds() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.held > 0
}

func (x *gate) DialHook(next redis.DialHook) redis.DialHook { return next }

func (x *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (x *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		x.mu.Lock()
		shut := x.shut
		if !strings.HasPrefix(cmd.Name(), "eval") || x.about != "" && !slices.Contains(cmd.Args(), any(x.about)) {
			shut = nil
		}
		if shut != nil {
			x.held++
		}
		x.mu.Unlock()
		if shut != nil {
			select {
			case <-shut:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return next(ctx, cmd)
	}
}

// A client, with the test it belongs to.
type client struct {
	*gatewaytest.Client
	t *testing.T
}

// open opens a socket that has not registered.
func (g *gateway) open() *client {
	g.t.Helper()
	c := gatewaytest.Open(g.t, "ws"+strings.TrimPrefix(g.server.URL, "http"))
	return &client{Client: c, t: g.t}
}

// connect opens a socket and registers.
func (g *gateway) connect(user string, fields ...any) *client {
	g.t.Helper()
	c := g.open()
	c.register(user, fields...)
	return c
}

func (c *client) register(user string, fields ...any) gatewaytest.Frame {
	c.t.Helper()
	f, err := c.Register(user, fields...)
	if err != nil {
		c.t.Fatalf("register %s: %v\n%s", user, err, c.Story(5))
	}
	return f
}

// say sends a frame as it is typed.
func (c *client) say(frame string) {
	c.t.Helper()
	if err := c.WriteFrame(websocket.TextMessage, []byte(frame)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) next(kind string) gatewaytest.Frame {
	c.t.Helper()
	f, err := c.Next(kind, patience)
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(5))
	}
	return f
}

// wantError waits for an error frame.
func (c *client) wantError(code protocol.ErrorCode, id string) gatewaytest.Frame {
	c.t.Helper()
	f := c.next("error")
	if f.CodeText() != string(code) || f.ID != id || f.Message == "" {
		c.t.Fatalf("got %s, want %s for id %q with a message", f, code, id)
	}
	return f
}

// wantEnd waits for the end of the connection, and for the gateway's word before it.
func (c *client) wantEnd(code protocol.CloseCode) gatewaytest.Frame {
	c.t.Helper()
	ended, err := c.WaitEnd(patience)
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(5))
	}
	if ended.Code != int(code) || ended.Closing == nil {
		c.t.Fatalf("%v, want %d behind a closing frame\n%s", ended, code, c.Story(5))
	}
	f := *ended.Closing
	if f.CodeText() != strconv.Itoa(int(code)) || f.Reconnect != code.Reconnect() || f.Reason == "" {
		c.t.Fatalf("closing %s, want code %d, a reason, reconnect %v", f, code, code.Reconnect())
	}
	return f
}

// wantAlive checks that the connection is served as ever.
func (c *client) wantAlive() {
	c.t.Helper()
	if f, err := c.Heartbeat(patience); err != nil || f.ServerTime == 0 {
		c.t.Fatalf("heartbeat: %s, %v\n%s", f, err, c.Story(5))
	}
}

// send sends a message and returns the answer, an ack or an error.
func (c *client) send(to, content, id string, fields ...any) gatewaytest.Frame {
	c.t.Helper()
	id, err := c.Send(to, content, id, fields...)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.answer(id)
}

func (c *client) answer(id string) gatewaytest.Frame {
	c.t.Helper()
	f, err := c.Ack(id, patience)
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(5))
	}
	return f
}

// wantAck checks the answer to a message.
func wantAck(t *testing.T, f gatewaytest.Frame, status protocol.Status, offset uint64, devices int) {
	t.Helper()
	if f.Type != "ack" || f.Status != string(status) || f.Offset != offset || f.DeviceCount() != devices || (f.Devices != nil) != (status == protocol.StatusRouted) {
		t.Fatalf("got %s, want %s at %d with %d devices", f, status, offset, devices)
	}
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
