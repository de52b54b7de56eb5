package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"chatgate/internal/keyspace"
)

// ErrDependency says that something the gateway needs is missing or unfit at
// start: Redis, for now.
var ErrDependency = errors.New("dependency missing")

// backend is a Redis and how to speak to it.
type backend struct {
	client redis.UniversalClient // reads, registry, subscriptions
	lanes  redis.UniversalClient // sends; never retries by itself
	hooks  redis.UniversalClient // carries events; never retries by itself
	layout keyspace.Layout
	kind   string // embedded, standalone, sentinel or cluster, for /stats

	sentinels *sentinels // nil where there are none
}

func (b *backend) close() error {
	err := errors.Join(b.client.Close(), b.lanes.Close(), b.hooks.Close())
	if b.sentinels != nil {
		b.sentinels.close()
	}
	return err
}

// watch keeps both clients on the master, where that may change, until ctx ends.
func (b *backend) watch(ctx context.Context) error {
	if b.sentinels == nil {
		return nil
	}
	return b.sentinels.watch(ctx)
}

// strays is how many connections were dropped because they led to a server that is
// not the master any more.
func (b *backend) strays() uint64 {
	if b.sentinels == nil {
		return 0
	}
	return b.sentinels.dropped.Load()
}

// embedded is a Redis inside this process: for a first run, for `dev`, not for
// messages anybody wants to keep.
type embedded struct {
	server *miniredis.Miniredis
	stop   chan struct{}
	done   chan struct{}
}

// embeddedTick is how often the embedded Redis notices that keys expired; it
// doesn't by itself.
const embeddedTick = 250 * time.Millisecond

func startEmbedded() *embedded {
	e := &embedded{server: miniredis.NewMiniRedis(), stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(e.done)
		tick := time.NewTicker(embeddedTick)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				e.server.FastForward(embeddedTick)
			case <-e.stop:
				return
			}
		}
	}()
	return e
}

func (e *embedded) close() {
	close(e.stop)
	<-e.done
	e.server.Close()
}

func (e *embedded) connect(cfg RedisConfig) *backend {
	options := &redis.UniversalOptions{
		Addrs:                 []string{"embedded"},
		Dialer:                func(context.Context, string, string) (net.Conn, error) { return e.server.Dial() },
		ContextTimeoutEnabled: true,
		DialTimeout:           cfg.DialTimeout, ReadTimeout: cfg.Timeout, WriteTimeout: cfg.Timeout,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	b := clients(options, nil)
	b.kind = "embedded"
	return b
}

// lanePool is minutes of failed dials; a place costs some bytes.
const lanePool = 4096

// clients makes the clients for the options.
func clients(o *redis.UniversalOptions, log *slog.Logger) *backend {
	b := &backend{layout: keyspace.Layout{Sharded: o.IsClusterMode}, kind: "standalone"}
	switch {
	case o.IsClusterMode:
		b.kind = "cluster"
	case o.MasterName != "":
		b.kind, b.sentinels = "sentinel", newSentinels(o, log)
	}
	general, lanes, hooks := *o, *o, *o
	general.MaxRetries = 1
	lanes.MaxRetries, lanes.DialerRetries = -1, 1
	// A lane has one call in flight, so it holds one connection. The size counts
	// for something else: after so many failed dials in a row the client dials by
	// itself, once a second, and a lane that probes ten times a second would hear
	// late that Redis is back.
	lanes.PoolSize = lanePool
	hooks.MaxRetries, hooks.DialerRetries = -1, 1
	b.client, b.lanes, b.hooks = newClient(&general), newClient(&lanes), newClient(&hooks)
	return b
}

// clusterReload is for how long a Cluster's map of slots is believed. The client
// learns of a slot that moved by itself, and of a master that died only by this; its
// own minute is how long sends to that master's slots were refused.
const clusterReload = time.Second

func newClient(o *redis.UniversalOptions) redis.UniversalClient {
	if !o.IsClusterMode {
		return redis.NewUniversalClient(o)
	}
	cluster := o.Cluster()
	cluster.ClusterStateReloadInterval = clusterReload
	return redis.NewClusterClient(cluster)
}

// connect finds out what redis.url leads to, checks that Chatgate can keep its
// promises on it, and returns the clients. Every error is ErrDependency.
func connect(ctx context.Context, cfg RedisConfig, log *slog.Logger) (*backend, error) {
	redis.SetLogger(libraryLog{log})
	o, err := cfg.Universal()
	if err != nil {
		return nil, err
	}
	if err := discover(ctx, cfg, o); err != nil {
		return nil, fmt.Errorf("%w: redis: %w", ErrDependency, err)
	}
	b := clients(o, log)
	if err := b.check(ctx, cfg, log); err != nil {
		_ = b.close()
		return nil, fmt.Errorf("%w: redis: %w", ErrDependency, err)
	}
	return b, nil
}

// libraryLog takes what go-redis would write to standard error in its own form.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, "redis client", "text", fmt.Sprintf(format, args...))
}

// discover asks the first server that answers what it is: one address may be a
// node of a Cluster, or a Sentinel that watches a single master.
func discover(ctx context.Context, cfg RedisConfig, o *redis.UniversalOptions) error {
	if cfg.Mode == "standalone" {
		return nil
	}
	var errs []error
	for _, addr := range o.Addrs {
		err := discoverAt(ctx, cfg, o, addr)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func discoverAt(ctx context.Context, cfg RedisConfig, o *redis.UniversalOptions, addr string) error {
	one := o.Simple()
	one.Addr, one.DB, one.MaxRetries, one.DisableIdentity = addr, 0, -1, true
	sentinel := cfg.sentinel()
	if sentinel {
		one.Username, one.Password = o.SentinelUsername, o.SentinelPassword
	}
	c := redis.NewClient(one)
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout+cfg.Timeout)
	defer cancel()
	info, err := c.Info(ctx, "server").Result()
	if unsupportedInfo(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", addr, err)
	}
	mode := infoField(info, "redis_mode")
	switch {
	case cfg.Mode != "auto" && cfg.Mode != mode:
		return fmt.Errorf("%s is a %s Redis, redis.mode says %s", addr, mode, cfg.Mode)
	case mode == "cluster":
		o.IsClusterMode = true
	case mode == "sentinel":
		o.IsClusterMode = false
		if o.MasterName == "" {
			o.MasterName, err = onlyMaster(ctx, one)
		}
		return err
	case len(o.Addrs) > 1:
		return fmt.Errorf("%s is a standalone Redis, and redis.url names %d hosts", addr, len(o.Addrs))
	}
	return nil
}

// onlyMaster returns the name of the one master a Sentinel watches.
func onlyMaster(ctx context.Context, o *redis.Options) (string, error) {
	c := redis.NewSentinelClient(o)
	defer c.Close()
	masters, err := c.Masters(ctx).Result()
	if err != nil {
		return "", fmt.Errorf("%s: sentinel masters: %w", o.Addr, err)
	}
	if len(masters) != 1 {
		return "", fmt.Errorf("%s watches %d masters: redis.master-name says which", o.Addr, len(masters))
	}
	if fields, ok := masters[0].(map[any]any); ok {
		return fmt.Sprint(fields["name"]), nil
	}
	if name := pairs(masters[0])["name"]; name != "" {
		return name, nil
	}
	return "", fmt.Errorf("%s: sentinel masters: unexpected answer", o.Addr)
}

// check refuses a Redis that is too old for the scripts, or that may evict keys.
func (b *backend) check(ctx context.Context, cfg RedisConfig, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 5*cfg.Timeout)
	defer cancel()
	if c, ok := b.client.(*redis.ClusterClient); ok {
		return c.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
			return checkServer(ctx, c, cfg, log)
		})
	}
	return checkServer(ctx, b.client, cfg, log)
}

func checkServer(ctx context.Context, c redis.Cmdable, cfg RedisConfig, log *slog.Logger) error {
	info, err := c.Info(ctx, "server").Result()
	if unsupportedInfo(err) {
		log.Warn("redis does not tell its version: taken for an embedded one, which keeps nothing")
		return nil
	}
	if err != nil {
		return err
	}
	version := infoField(info, "redis_version")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 7 {
		return fmt.Errorf("version is %q, Chatgate needs 7.0 or newer", version)
	}
	if info, err = c.Info(ctx, "memory").Result(); err != nil {
		return err
	}
	if policy := infoField(info, "maxmemory_policy"); policy != "noeviction" {
		if !cfg.Force {
			return fmt.Errorf("maxmemory-policy is %q: evicting keys loses messages silently; "+
				"set it to noeviction, or start with --redis.force", policy)
		}
		log.Warn("redis may evict keys, which loses messages silently", "policy", policy)
	}
	return warnOfMissingReplicas(ctx, c, cfg, log)
}

// warnOfMissingReplicas says at start what every sender would hear. It is no reason
// to stay away: a replica may be on its way back, and messages are stored and
// delivered meanwhile.
func warnOfMissingReplicas(ctx context.Context, c redis.Cmdable, cfg RedisConfig, log *slog.Logger) error {
	if cfg.WaitReplicas == 0 {
		return nil
	}
	info, err := c.Info(ctx, "replication").Result()
	if err != nil {
		return err
	}
	if n, _ := strconv.Atoi(infoField(info, "connected_slaves")); n < cfg.WaitReplicas {
		log.Warn("redis has fewer replicas than redis.wait-replicas: until it has them nothing is acknowledged",
			"replicas", n, "want", cfg.WaitReplicas)
	}
	return nil
}

// unsupportedInfo recognises the answer of the embedded Redis to a section it
// doesn't have.
func unsupportedInfo(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "section (")
}

func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
