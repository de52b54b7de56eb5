package gateway

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"chatgate/internal/api"
	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/handler"
	"chatgate/internal/history"
	"chatgate/internal/hook"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// ErrDrainDeadline says that the gateway ended with connections or work left.
var ErrDrainDeadline = errors.New("drain deadline passed")

// ErrConfig says that what a setting names, a file with keys, is not what it should be.
var ErrConfig = errors.New("configuration")

// Gateway is one gateway of the cluster.
type Gateway struct {
	// Immutable after New.
	cfg       Config
	log       *slog.Logger
	id        protocol.GatewayID
	backend   *backend
	embedded  *embedded // nil when Redis is elsewhere, or owned by the dev cluster
	conns     *connection.Config
	manager   *connection.Manager
	registry  *presence.Registry
	history   *history.Reader
	router    *router.Router
	admission *handler.Admission
	tokens    *auth.Verifier    // nil: none are taken
	revoked   *auth.Revocations // nil with tokens
	handler   *handler.Handler
	hooks     *hook.Hooks
	decider   *hook.Decider // nil: nobody is asked
	api       *api.API
	commands  *api.Commands
	public    *door
	tls       *tls.Config  // of the public listener; nil: it speaks plain HTTP
	local     bool         // the public listener serves names of this machine only
	internal  net.Listener // nil when there is none
	started   time.Time

	proxies handler.Proxies // who is trusted

	foreignHosts atomic.Uint64 // requests refused for their Host
	headerless   atomic.Uint64 // connections of trusted proxies cut for want of a PROXY header

	certificate atomic.Pointer[tls.Certificate] // nil without TLS

	// Owned by whoever calls Reload.
	running Config // cfg, with what was taken over since

	open     atomic.Bool // clients are let in: the channels are subscribed
	draining atomic.Bool
	loads    loads
}

// New connects to Redis, checks it, and opens the listeners; Run serves on them.
// The error is ErrDependency when Redis is missing or unfit, else what is wrong
// with the configuration or an address.
func New(cfg Config, log *slog.Logger) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Redis.Embedded() {
		e := startEmbedded()
		g, err := assemble(cfg, e.connect(cfg.Redis), log)
		if err != nil {
			e.close()
			return nil, err
		}
		g.embedded = e
		log.Info("redis is embedded: nothing is kept, and no other gateway can join")
		return g, nil
	}
	b, err := connect(context.Background(), cfg.Redis, log)
	if err != nil {
		return nil, err
	}
	return assemble(cfg, b, log)
}

// assemble wires a gateway on a backend, which it owns from then on.
func assemble(cfg Config, b *backend, log *slog.Logger) (_ *Gateway, err error) {
	id := protocol.GatewayID(cfg.Name + "-" + strings.ToLower(rand.Text()[:8]))
	log = log.With("gateway", string(id))
	g := &Gateway{cfg: cfg, running: cfg, log: log, id: id, backend: b, started: time.Now()}
	defer func() {
		if err != nil {
			g.closeFiles()
		}
	}()

	conns := connection.DefaultConfig()
	conns.MaxFrameBytes = int64(cfg.Limits.FrameBytes)
	conns.Compression = cfg.Compression
	conns.OutboxBytes, conns.OutboxFrames, conns.InFlight = cfg.Limits.OutboxBytes, cfg.Limits.OutboxFrames, cfg.Limits.InFlight
	conns.PingAfter, conns.PongWait = cfg.Heartbeat.PingAfter, cfg.Heartbeat.PongWait
	conns.SilenceTimeout, conns.RegisterTimeout = cfg.Heartbeat.Silence, cfg.Heartbeat.RegisterTimeout
	conns.MaxAge = cfg.Heartbeat.MaxAge
	if err := conns.Validate(); err != nil {
		return nil, err
	}
	g.conns = &conns
	g.manager = connection.NewManager(g.conns)

	classes, err := presence.ParseClasses(cfg.Limits.DeviceClasses)
	if err != nil {
		return nil, err
	}
	pc := g.presenceConfig(classes)
	g.registry = presence.New(b.client, pc)

	hc := history.DefaultConfig()
	hc.Layout, hc.Timeout, hc.LogTTL = b.layout, cfg.Redis.Timeout, cfg.History.Positions
	g.history = history.New(b.client, hc)

	g.router = router.New(b.client, b.lanes, g.registry, g.routerConfig())

	if g.hooks, err = newHooks(cfg, b, id, log); err != nil {
		return nil, err
	}

	if g.decider, err = hook.NewDecider(cfg.Hooks.Decider(log)); err != nil {
		return nil, fmt.Errorf("hooks: %w", err)
	}
	if g.proxies, err = handler.ParseProxies(cfg.TrustedProxies); err != nil {
		return nil, err
	}
	origins, err := handler.ParseOrigins(cfg.Origins)
	if err != nil {
		return nil, err
	}
	if err := g.takeTokens(); err != nil {
		return nil, err
	}
	g.admission = handler.NewAdmission(cfg.admission(g.proxies))
	g.handler = handler.New(handler.Config{
		Gateway: id, Log: log, Anonymous: cfg.Anonymous(), AnonymousForwarded: cfg.Insecure, Origins: origins,
		Tokens: g.tokens, Revocations: g.revoked, Decider: g.decider, AskedHeaders: cfg.Hooks.Headers, StampMeta: cfg.StampMeta,
		MessageEvents:     cfg.Events.messagesWritten(1) > 0,
		HeartbeatInterval: cfg.Heartbeat.Interval, PresenceTTL: cfg.Heartbeat.PresenceTTL,
		MaxFrameBytes: int64(cfg.Limits.FrameBytes), Limits: cfg.Limits.connection(), Classes: classNames(classes),
		MaxBadFrames: 64, ReapedSpread: cfg.Cluster.ReapAfter, RegisterWait: 3 * time.Second,
		CursorWindow: pc.RefreshWindow, History: g.history,
	}, g.conns, g.manager, g.registry, g.router, g.admission)

	if err := g.newAPI(); err != nil {
		return nil, err
	}
	if err := g.listen(); err != nil {
		return nil, err
	}
	return g, nil
}

// ID is this gateway's id: its name and a random boot id.
func (g *Gateway) ID() protocol.GatewayID { return g.id }

// Addr is the address of the public listener.
func (g *Gateway) Addr() net.Addr { return g.public.Addr() }

// closeFiles closes what New opened.
func (g *Gateway) closeFiles() {
	if g.public != nil {
		_ = g.public.Close()
	}
	if g.internal != nil {
		_ = g.internal.Close()
	}
	_ = g.backend.close()
	if g.embedded != nil {
		g.embedded.close()
	}
}

// Run serves until ctx ends, then drains: unready, refusing, closing what is
// open over a window, leaving the registry. It returns nil after a clean drain,
// ErrDrainDeadline when something was left, or what kept it from serving.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.closeFiles()
	for _, w := range g.cfg.Warnings() {
		g.log.Warn(w)
	}
	if err := g.registry.Join(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrDependency, err)
	}

	// The parts outlive ctx: they serve the drain.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var parts sync.WaitGroup
	failed := make(chan error, 16)
	start := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			if err := run(life); err != nil && life.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	start("redis", g.backend.watch)
	start("presence", g.registry.Run)
	start("router", g.router.Run)
	start("connections", g.manager.Run)
	if g.tokens != nil {
		start("tokens", g.tokens.Run)
		start("revocations", g.revoked.Run)
	}
	if g.cfg.Insecure {
		parts.Go(func() { remind(life, g.log, warnInsecure) })
	}
	start("cursors", g.handler.Run)
	start("events", g.hooks.Run)
	start("commands", g.commands.Run)
	start("public listener", g.servePublic)
	if g.internal != nil {
		start("internal listener", g.serveInternal)
	}
	parts.Go(func() { g.openWhenListening(life) })

	var err error
	select {
	case <-ctx.Done():
		err = g.drain()
	case err = <-failed:
		g.stopLoads()
		g.draining.Store(true)
		g.admission.Drain()
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		err = errors.Join(err, g.manager.Close(closing))
		cancel()
	}
	stop()
	parts.Wait()
	return err
}

// openWhenListening lets clients in once this gateway hears what is published
// for them, and then takes a pulse, so that it is ready at once.
func (g *Gateway) openWhenListening(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !g.router.Listening() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	if err := g.registry.Join(ctx); err != nil {
		g.log.Warn("first pulse failed", "err", err) // the next one is a second away
	}
	g.open.Store(true)
	g.announce()
}

func (g *Gateway) announce() {
	attrs := []any{"public", g.public.Addr().String(), "redis", g.backend.kind}
	if g.internal != nil {
		attrs = append(attrs, "internal", g.internal.Addr().String())
	}
	if g.cfg.PageOn() {
		attrs = append(attrs, "page", g.cfg.scheme()+"://"+g.public.Addr().String()+"/")
	}
	g.log.Info("listening", attrs...)
}

// drain ends this gateway's part in the cluster without hurry: balancers are
// given time to notice, clients are told to come back over a window, and what
// was accepted is carried through.
func (g *Gateway) drain() error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.Drain.Deadline)
	defer cancel()
	g.stopLoads()
	g.draining.Store(true)
	g.log.Info("draining", "connections", g.manager.Count())
	if g.manager.Count() > 0 {
		pause(ctx, g.cfg.Drain.Delay)
	}
	g.admission.Drain()
	// A handful of connections needs no long window.
	window := min(g.cfg.Drain.Window, time.Duration(g.manager.Count())*drainStep)
	g.manager.CloseAll(connection.Cause{Kind: connection.KindDraining, WindowMs: spreadByServer.Milliseconds()}, window)
	err := g.manager.Close(ctx)
	done := make(chan struct{})
	go func() {
		g.handler.Wait()
		close(done)
	}()
	select {
	case <-done:
		g.finishCalls(ctx)
		err = errors.Join(err, g.leave(ctx))
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		g.log.Error("drain incomplete", "connections", g.manager.Count(), "err", err)
		return fmt.Errorf("%w: %w", ErrDrainDeadline, err)
	}
	g.log.Info("drained", "dur", time.Since(began).Round(time.Millisecond))
	return nil
}

// leave gives up this gateway's part in the registry. With Redis away there is no
// point in waiting for it: the reaper does the rest.
func (g *Gateway) leave(ctx context.Context) error {
	if !g.registry.Reachable() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 2*g.cfg.Redis.Timeout)
		defer cancel()
	}
	return g.registry.Leave(ctx)
}

// spreadByServer is the window clients are told when their closes are spread out
// already: time enough for full jitter, and far less than the grace period, so that
// a rolling restart makes nobody offline.
const spreadByServer = time.Second

// drainStep is the share of the window one connection asks for at most.
const drainStep = 100 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
