package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Kind is one of the ways Redis can be run.
type Kind string

// Every kind must carry a cluster of gateways alike.
const (
	Embedded   Kind = "embedded"   // miniredis in this process, on a TCP port
	Standalone Kind = "standalone" // one redis-server
	Cluster    Kind = "cluster"    // three masters
	Sentinel   Kind = "sentinel"   // one master, two replicas, three sentinels
)

// Kinds are all of them, the cheapest first.
var Kinds = []Kind{Embedded, Standalone, Cluster, Sentinel}

const (
	startDeadline = 20 * time.Second // a server on a busy machine
	callDeadline  = 2 * time.Second  // one command
	masterName    = "mymaster"
)

// Redis is what the gateways of one test agree through.
type Redis struct {
	// Immutable after start.
	Kind      Kind
	URL       string       // for --redis.url
	Mode      string       // for --redis.mode: standalone, sentinel or cluster
	Nodes     []*RedisNode // the servers with data, masters first; none for the embedded one
	Sentinels []*RedisNode
	client    redis.UniversalClient
	embedded  *miniredis.Miniredis
}

// Start starts a Redis of a kind for this test alone. The args are options of redis-server ("--appendonly", "yes"), given
// to each server with data; the embedded one knows none.
func StartKind(t testing.TB, kind Kind, args ...string) *Redis {
	t.Helper()
	r, err := startKind(t, t, kind, args)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// StartRedis starts one redis-server for this test alone.
func StartRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	return StartKind(t, Standalone, args...)
}

// StartCluster starts three masters that share the slots evenly.
func StartCluster(t testing.TB, args ...string) *Redis {
	t.Helper()
	return StartKind(t, Cluster, args...)
}

// StartClusterWithReplicas starts three masters with a replica each, which takes over when its master is dead for 2 s.
func StartClusterWithReplicas(t testing.TB, args ...string) *Redis {
	t.Helper()
	r, err := startCluster(t, Need(t, "cluster"), true, args)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// StartSentinel starts a master with two replicas, watched by three sentinels.
func StartSentinel(t testing.TB, args ...string) *Redis {
	t.Helper()
	return StartKind(t, Sentinel, args...)
}

// StartEmbedded starts a miniredis.
func StartEmbedded(t testing.TB) *Redis {
	t.Helper()
	return StartKind(t, Embedded)
}

func startKind(t testing.TB, o owner, kind Kind, args []string) (*Redis, error) {
	t.Helper()
	switch kind {
	case Embedded:
		return startEmbedded(o)
	case Standalone:
		return startStandalone(o, Need(t, "redis"), args)
	case Cluster:
		return startCluster(o, Need(t, "cluster"), false, args)
	case Sentinel:
		return startSentinel(o, Need(t, "sentinel"), args)
	}
	return nil, fmt.Errorf("no kind of Redis is called %q", kind)
}

// EachRedis runs a test on every kind of Redis, each one of those that tests of this package share, and empty at the start. The kinds run
// side by side: such tests wait more than they work.
func EachRedis(t *testing.T, run func(t *testing.T, r *Redis)) {
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			run(t, Shared(t, kind))
		})
	}
}

// shared are the servers of the test binary that no test uses now.
var shared = struct {
	mu   sync.Mutex // guards free; the last to be given back is the first to be used
	free map[Kind][]*Redis
}{free: make(map[Kind][]*Redis)}

// Shared returns a server of a kind that tests use one after the other; there are as many as tests run side by side, and
// none waits for another. It is the caller's alone until the end of its test, and empty. A test may pause, kill and restart
// it; what it can't bring back is not used again.
func Shared(t testing.TB, kind Kind) *Redis {
	t.Helper()
	testBinary.require(t)
	shared.mu.Lock()
	var r *Redis
	if free := shared.free[kind]; len(free) > 0 {
		r, shared.free[kind] = free[len(free)-1], free[:len(free)-1]
	}
	shared.mu.Unlock()
	if r == nil {
		var err error
		if r, err = startKind(t, &testBinary, kind, nil); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if r.Reset() != nil {
			return // its processes end with the test binary
		}
		shared.mu.Lock()
		defer shared.mu.Unlock()
		shared.free[kind] = append(shared.free[kind], r)
	})
	if err := r.FlushAll(); err != nil {
		t.Fatal(err)
	}
	return r
}

func startEmbedded(o owner) (*Redis, error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, err
	}
	// miniredis lets keys expire only when told how much time has passed.
	const tick = 250 * time.Millisecond
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		clock := time.NewTicker(tick)
		defer clock.Stop()
		for {
			select {
			case <-clock.C:
				m.FastForward(tick)
			case <-stop:
				return
			}
		}
	}()
	o.Cleanup(func() {
		close(stop)
		<-stopped
		m.Close()
	})
	r := &Redis{Kind: Embedded, URL: "redis://" + m.Addr() + "/0", Mode: "standalone", embedded: m}
	r.connect(o, &redis.UniversalOptions{Addrs: []string{m.Addr()}})
	return r, nil
}

func startStandalone(o owner, program string, args []string) (*Redis, error) {
	node, err := startNode(o, program, "redis", args...)
	if err != nil {
		return nil, err
	}
	r := &Redis{Kind: Standalone, URL: "redis://" + node.Addr + "/0", Mode: "standalone", Nodes: []*RedisNode{node}}
	r.connect(o, &redis.UniversalOptions{Addrs: []string{node.Addr}})
	return r, r.WaitReady(startDeadline)
}

func (r *Redis) connect(o owner, options *redis.UniversalOptions) {
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = callDeadline, callDeadline, callDeadline
	options.ContextTimeoutEnabled = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	r.client = redis.NewUniversalClient(options)
	o.Cleanup(func() { r.client.Close() })
}

// Client talks to this Redis as a whole. It is closed with the Redis.
func (r *Redis) Client() redis.UniversalClient { return r.client }

// Do runs one command on this Redis.
func (r *Redis) Do(args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	return r.client.Do(ctx, args...).Result()
}

// Masters are the servers that take writes now.
func (r *Redis) Masters() ([]*RedisNode, error) {
	switch r.Kind {
	case Sentinel:
		addr, err := r.masterBySentinels()
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(r.Nodes, func(n *RedisNode) bool { return n.Addr == addr })
		if i < 0 {
			return nil, fmt.Errorf("the sentinels name an unknown master, %s", addr)
		}
		return r.Nodes[i : i+1], nil
	case Cluster:
		var masters []*RedisNode
		for _, n := range r.Nodes {
			if !n.Running() {
				continue
			}
			if info, err := n.info("replication"); err != nil {
				return nil, err
			} else if info["role"] == "master" {
				masters = append(masters, n)
			}
		}
		return masters, nil
	default:
		return r.Nodes, nil
	}
}

// FlushAll empties every master, as an operator's mistake would.
func (r *Redis) FlushAll() error {
	if r.embedded != nil {
		r.embedded.FlushAll()
		return nil
	}
	masters, err := r.Masters()
	if err != nil {
		return err
	}
	for _, n := range masters {
		if _, err := n.Do("FLUSHALL"); err != nil {
			return fmt.Errorf("FLUSHALL on %s: %w", n.Addr, err)
		}
	}
	return nil
}

// ErrEmbedded is the answer when a process is to be stopped and there is none.
var ErrEmbedded = errors.New("the embedded Redis is no process of its own: it can't be paused or killed")

// Pause stops every server with data (SIGSTOP). The sentinels wait: this is a Redis that doesn't answer, not a master that died
// (for that, kill or pause Nodes[0], and LetFailOver).
func (r *Redis) Pause() error { return r.each((*Process).Pause) }

// Resume lets them run on and returns when they serve.
func (r *Redis) Resume() error {
	return errors.Join(r.each((*Process).Resume), r.WaitReady(startDeadline))
}

// Kill ends every server with data (SIGKILL). The sentinels wait.
func (r *Redis) Kill() error { return r.each((*Process).Kill) }

// Restart starts every server with data again and returns when they serve. What was only in memory is gone.
func (r *Redis) Restart() error {
	if r.embedded != nil {
		return ErrEmbedded
	}
	for _, n := range r.Nodes {
		if err := n.Restart(); err != nil {
			return err
		}
	}
	return r.WaitReady(startDeadline)
}

func (r *Redis) each(do func(*Process)) error {
	if r.embedded != nil {
		return ErrEmbedded
	}
	for _, n := range r.Nodes {
		do(n.Process)
	}
	return nil
}

// Mute takes away everybody's right to publish, until Unmute: messages are stored, and nobody hears of them.
func (r *Redis) Mute() error { return r.acl("-publish", "-spublish") }

// Unmute gives it back.
func (r *Redis) Unmute() error { return r.acl("+publish", "+spublish") }

func (r *Redis) acl(rules ...any) error {
	return r.DoAll(append([]any{"ACL", "SETUSER", "default"}, rules...)...)
}

// DoAll runs one command on each server with data.
func (r *Redis) DoAll(args ...any) error {
	for _, n := range r.Nodes {
		if _, err := n.Do(args...); err != nil {
			return fmt.Errorf("%v on %s: %w", args, n.Addr, err)
		}
	}
	return nil
}

// WaitReady returns when this Redis takes writes.
func (r *Redis) WaitReady(within time.Duration) error {
	err := Poll(within, func() error {
		switch r.Kind {
		case Embedded:
			_, err := r.Do("PING")
			return err
		case Cluster:
			return r.clusterReady()
		default:
			masters, err := r.Masters()
			if err != nil {
				return err
			}
			info, err := masters[0].info("replication")
			if err == nil && info["role"] != "master" {
				err = fmt.Errorf("%s is a %s", masters[0].Addr, info["role"])
			}
			return err
		}
	})
	if err != nil {
		return fmt.Errorf("redis %s: %w", r.Kind, err)
	}
	return nil
}

// quietUntil returns the end of the last quiet time that pulses asked for in any group (docs/redis-model.md, key line); zero:
// there was none.
func (r *Redis) quietUntil() (time.Time, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	var last int64
	look := func(ctx context.Context, c redis.Cmdable) error {
		keys := c.Scan(ctx, 0, "cg:*:line", 1000).Iterator()
		for keys.Next(ctx) {
			quiet, err := c.HGet(ctx, keys.Val(), "quiet").Int64()
			if err != nil && !errors.Is(err, redis.Nil) {
				return err
			}
			last = max(last, quiet)
		}
		return keys.Err()
	}
	var err error
	if r.Kind == Cluster {
		for _, n := range r.Nodes {
			err = errors.Join(err, look(ctx, n.client))
		}
	} else {
		err = look(ctx, r.client)
	}
	if last == 0 {
		return time.Time{}, err
	}
	return time.UnixMilli(last), err
}

// Reset brings a Redis back to what a new test expects: everything running, everything empty.
func (r *Redis) Reset() error {
	for _, n := range r.Nodes {
		n.Resume()
		if !n.Running() {
			if err := n.Restart(); err != nil {
				return err
			}
		}
	}
	if err := r.WaitReady(startDeadline); err != nil {
		return err
	}
	return r.FlushAll()
}
