//go:build !secondpass

package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }

// patience is how long a test waits for what should come within a second or two. Only failures wait it out.
const patience = 30 * time.Second

// secret of every webhook here.
const secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// A world is a Redis with events, and the Hooks of some gateways.
type world struct {
	*testing.T
	redis  *gatewaytest.Redis
	layout keyspace.Layout
	kept   int64

	messages bool // there are events of messages
	calm     bool // no lease ends and no call is given up, however busy the machine is

	user, password string // of the gateways; empty: Redis' default user
}

func newWorld(t *testing.T, r *gatewaytest.Redis) *world {
	t.Helper()
	return &world{T: t, redis: r, layout: keyspace.Layout{Sharded: r.Kind == gatewaytest.Cluster}, kept: 100_000}
}

// happening writes a number and an entry in one step, as the scripts of presence do. A carrier that sees a sink for the first
// time, and meets the number without its entry, believes that the event was trimmed before, and counts nothing as waiting when it comes.
var happening = redis.NewScript(`
local n = redis.call('HINCRBY', KEYS[2], 'ev', 1)
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'n', n, unpack(ARGV, 2))`)

// happen writes one event.
func (w *world) happen(user string, fields ...any) {
	w.Helper()
	g := w.layout.GroupOf(protocol.UserAddress(protocol.UserID(user)))
	w.happenIn(g, append([]any{"type", "connect", "user", user, "ms", time.Now().UnixMilli()}, fields...)...)
}

func (w *world) happenIn(g keyspace.Group, fields ...any) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	keys := []string{keyspace.Events(g), keyspace.Numbers(g)}
	if err := happening.Run(ctx, w.redis.Client(), keys, append([]any{w.kept}, fields...)...).Err(); err != nil && !errors.Is(err, redis.Nil) {
		w.Fatal(err)
	}
}

// said writes an event of a message as the send script does.
func (w *world) said(from, to string, content string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	g := w.layout.GroupOf(protocol.UserAddress(protocol.UserID(to)))
	n, err := w.redis.Client().HIncrBy(ctx, keyspace.Numbers(g), "evm", 1).Result()
	if err == nil {
		id := []byte("m" + strconv.FormatInt(n, 10))
		head := protocol.MessageHead{ID: id, From: protocol.UserID(from), To: []byte(to), Content: []byte(content), Ts: 1795310105000}
		origin := protocol.MessageOrigin{
			ID: id, From: head.From, To: head.To, Gateway: "edge-1-k3j5x8ab", Conn: "019ab8e4", Device: "phone", Meta: `{"contestId":7}`,
		}
		err = w.redis.Client().XAdd(ctx, &redis.XAddArgs{
			Stream: keyspace.MessageEvents(g), MaxLen: w.kept, Approx: true, Values: []any{
				"n", n, "type", "message", "ms", time.Now().UnixMilli(), "sent", fmt.Sprintf("r 9fK2mQx7aZ %d 2 1795310105000", n),
				"origin", protocol.AppendMessageOrigin(nil, &origin), "frame", protocol.AppendMessageHead(nil, &head),
			},
		}).Err()
	}
	if err != nil {
		w.Fatal(err)
	}
}

// A node is the Hooks of one gateway.
type node struct {
	hooks  *Hooks
	client redis.UniversalClient
	stop   func() // as a gateway that drains does
}

// gateway starts the Hooks of one gateway. Its times are a fraction of those in production.
func (w *world) gateway(name string, sinks ...SinkConfig) *node {
	w.Helper()
	cfg := DefaultConfig()
	cfg.Gateway, cfg.Layout = protocol.GatewayID(name+"-1"), w.layout
	cfg.Lease, cfg.Renew, cfg.Poll, cfg.StopWait = time.Second, 200*time.Millisecond, 50*time.Millisecond, time.Second
	if w.calm {
		cfg.Lease, cfg.Timeout = patience, patience
	}
	cfg.Log = newSilent()
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(w.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	cfg.Sinks, cfg.Messages = sinks, w.messages
	for i := range sinks {
		if err := sinks[i].Validate(); err != nil {
			w.Fatal(err)
		}
	}
	n := &node{client: w.client()}
	cfg.Connect = func(url string) (redis.UniversalClient, error) {
		o, err := redis.ParseURL(url)
		if err != nil {
			return nil, err
		}
		return redis.NewClient(o), nil
	}
	var err error
	if n.hooks, err = New(n.client, cfg); err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.hooks.Run(ctx)
	}()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			<-done
			_ = n.client.Close()
		})
	}
	w.Cleanup(n.stop)
	return n
}

func newSilent() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// kill takes Redis away from a gateway: for everyone else that is the same as kill -9.
func (n *node) kill() { _ = n.client.Close() }

// client is one that repeats nothing by itself, as the gateway's.
func (w *world) client() redis.UniversalClient {
	o := &redis.UniversalOptions{
		Username: w.user, Password: w.password, DialTimeout: time.Second, ReadTimeout: time.Second, WriteTimeout: time.Second, ContextTimeoutEnabled: true,
		MaxRetries: -1, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if w.calm {
		o.DialTimeout, o.ReadTimeout, o.WriteTimeout = patience, patience, patience
	}
	switch w.redis.Kind {
	case gatewaytest.Embedded:
		one, err := redis.ParseURL(w.redis.URL)
		if err != nil {
			w.Fatal(err)
		}
		o.Addrs = []string{one.Addr}
	case gatewaytest.Cluster:
		o.IsClusterMode = true
		for _, n := range w.redis.Nodes {
			o.Addrs = append(o.Addrs, n.Addr)
		}
	default:
		masters, err := w.redis.Masters()
		if err != nil {
			w.Fatal(err)
		}
		o.Addrs = []string{masters[0].Addr}
	}
	return redis.NewUniversalClient(o)
}

// webhookTo is a sink with an impatient temper.
func webhookTo(r *gatewaytest.Receiver, filter Filter) SinkConfig {
	s := sinkNamed("web", filter)
	s.Webhook = &WebhookConfig{URL: r.URL, Secret: secret, Allow: []string{"127.0.0.0/8"}}
	return s
}

func sinkNamed(name string, filter Filter) SinkConfig {
	return SinkConfig{
		Name: name, Filter: filter, Batch: 20, Parallel: 4, Timeout: 500 * time.Millisecond,
		RetryAfter: 20 * time.Millisecond, RetryMost: 200 * time.Millisecond,
	}
}

func (w *world) eventually(done func() error) {
	w.Helper()
	if err := gatewaytest.Poll(patience, done); err != nil {
		w.Fatal(err)
	}
}

// wantEach waits until each of so many users had exactly these many events, in order, and returns how many came again.
func (w *world) wantEach(r *gatewaytest.Receiver, users, events int) (again int) {
	w.Helper()
	w.eventually(func() error {
		all, twice, err := r.Once()
		if err != nil {
			w.Fatal(err)
		}
		again = twice
		if len(all) != users*events {
			return fmt.Errorf("%d events came, want %d", len(all), users*events)
		}
		return nil
	})
	all, _, _ := r.Once()
	next := make(map[string]int)
	for _, e := range all {
		if want := strconv.Itoa(next[e.User]); string(e.Meta) != want {
			w.Fatalf("%s: event %s after %s others", e.User, e.Meta, want)
		}
		next[e.User]++
	}
	return again
}

// happenEach lets so many events happen to each user, in turn; each carries its place in meta.
func (w *world) happenEach(users, from, to int) {
	w.Helper()
	for i := from; i < to; i++ {
		for u := range users {
			w.happen("user"+strconv.Itoa(u), "meta", strconv.Itoa(i))
		}
	}
}

// wantSettled waits until the gateways together have nothing left to carry, and returns what they did.
func (w *world) wantSettled(nodes ...*node) (sum SinkStats) {
	w.Helper()
	w.eventually(func() error {
		sum = SinkStats{}
		for _, n := range nodes {
			s := n.hooks.Stats()[0]
			sum.Groups += s.Groups
			sum.Backlog += s.Backlog
			sum.Delivered += s.Delivered
			sum.Filtered += s.Filtered
			sum.Refused += s.Refused
			sum.Lost += s.Lost
			sum.Again += s.Again
			sum.Failures += s.Failures
		}
		if want := int64(len(w.layout.Groups())); sum.Groups != want || sum.Backlog != 0 {
			return fmt.Errorf("%d groups are carried of %d, and %d events wait", sum.Groups, want, sum.Backlog)
		}
		return nil
	})
	return sum
}

// silentServer takes what is sent to it and answers nothing. It returns its URL.
func silentServer(t *testing.T) string {
	t.Helper()
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else it doesn't notice that the client is gone
		select {
		case <-r.Context().Done():
		case <-done:
		}
	}))
	t.Cleanup(func() {
		close(done)
		server.Close()
	})
	return server.URL
}
