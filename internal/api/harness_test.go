//go:build !secondpass

package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/history"
	"chatgate/internal/keyspace"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// patience is how long a test waits for what must happen, and what a call may take that has to wait.
const patience = 20 * time.Second

// A line is between a gateway and Redis, and can lose what goes over it in either direction.
type line struct {
	mu     sync.Mutex
	before func(ctx context.Context, command string) error // guarded by mu; an error: it isn't sent
	after  func(command string) error                      // guarded by mu; an error: it was done, and the answer is lost
}

var errLost = errors.New("lost on the way")

func (x *line) set(before func(ctx context.Context, command string) error, after func(command string) error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.before, x.after = before, after
}

// over has commands go over the line. Those of a pipeline are lost together.
func (x *line) over(ctx context.Context, cmds []redis.Cmder, send func() error) error {
	name := cmds[0].Name()
	if name == "hello" || name == "client" {
		return send() // a new connection introduces itself
	}
	x.mu.Lock()
	before, after := x.before, x.after
	x.mu.Unlock()
	var err error
	if before != nil {
		err = before(ctx, name)
	}
	if err == nil {
		if err = send(); after == nil || after(name) == nil {
			return err
		}
		err = errLost
	}
	for _, cmd := range cmds {
		cmd.SetErr(err)
	}
	return err
}

func (x *line) DialHook(next redis.DialHook) redis.DialHook { return next }

func (x *line) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return x.over(ctx, []redis.Cmder{cmd}, func() error { return next(ctx, cmd) })
	}
}

func (x *line) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return x.over(ctx, cmds, func() error { return next(ctx, cmds) })
	}
}

// losing loses the commands with this name.
func losing(name string) func(string) error {
	return func(command string) error {
		if command == name {
			return errLost
		}
		return nil
	}
}

// A node is an API with all that is behind it in a gateway, but for clients: its connections are entries.
type node struct {
	*API
	redis       *gatewaytest.Redis
	client      redis.UniversalClient
	line        *line
	registry    *presence.Registry
	revocations *auth.Revocations

	mu   sync.Mutex
	held []*presence.Entry // guarded by mu; or the registry would take them for ghosts
}

// settings are what a test may change of a node.
type settings struct {
	api      Config
	question func(context.Context, *router.Asked) bool
}

// nodeID is the gateway that a node is.
const nodeID protocol.GatewayID = "a-1"

// eachKind runs a test on the Redis of a first run and on a real one. What is tested here doesn't depend on how the keyspace is grouped.
func eachKind(t *testing.T, run func(t *testing.T, r *gatewaytest.Redis)) {
	for _, kind := range []gatewaytest.Kind{gatewaytest.Embedded, gatewaytest.Standalone} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			run(t, gatewaytest.Shared(t, kind))
		})
	}
}

// start starts a node. Only tests of time wait for what does not come: everything else may take as long as a busy machine needs.
func start(t *testing.T, r *gatewaytest.Redis, tune ...func(*settings)) *node {
	t.Helper()
	s := settings{api: DefaultConfig()}
	s.api.Gateway, s.api.Open = nodeID, true
	s.api.Deadline, s.api.AskWait = patience, patience
	edge(t, func(c *Config) { s.api.Log = c.Log })
	for _, f := range tune {
		f(&s)
	}
	o, err := redis.ParseURL(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	o.MaxRetries, o.ContextTimeoutEnabled, o.ReadTimeout, o.DisableIdentity = -1, true, patience, true
	n := &node{redis: r, line: &line{}, client: redis.NewClient(o)}
	n.client.AddHook(n.line)
	n.registry = n.newRegistry(nodeID)
	rc := router.DefaultConfig()
	rc.Gateway, rc.Log, rc.Attempt, rc.OnQuestion = nodeID, s.api.Log, patience, s.question
	rc.Everyone = func(func(*connection.Connection) bool) {}
	rc.History = history.New(n.client, history.DefaultConfig())
	s.api.Registry, s.api.History, s.api.Router = n.registry, rc.History, router.New(n.client, n.client, n.registry, rc)
	ac := auth.DefaultRevocationsConfig()
	ac.Log, ac.Timeout, ac.Every = s.api.Log, patience, 50*time.Millisecond
	n.revocations = auth.NewRevocations(n.client, ac)
	s.api.Revocations, s.api.Snapshot = n.revocations, func() []byte { return []byte("{}") }
	if n.API, err = New(s.api); err == nil {
		err = n.registry.Join(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{n.registry.Run, s.api.Router.Run, n.revocations.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		_ = n.client.Close()
	})
	return n
}

// newRegistry is the hand of a gateway in the registry. Its lease outlasts the test, so that one that does not run is not taken for dead; and its pulse may be
// late for a while, as it is on a busy machine, before Redis is taken for one that was away.
func (n *node) newRegistry(id protocol.GatewayID) *presence.Registry {
	pc := presence.DefaultConfig()
	pc.Gateway, pc.Pulse, pc.Quiet, pc.Lease, pc.Timeout = id, 500*time.Millisecond, 500*time.Millisecond, 10*patience, patience
	pc.Each = n.each
	return presence.New(n.client, pc)
}

// join has another gateway live that hears nothing and says nothing.
func (n *node) join(t *testing.T, id protocol.GatewayID) {
	t.Helper()
	if err := n.newRegistry(id).Join(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// each yields the connections of the node.
func (n *node) each(yield func(*presence.Entry) bool) {
	n.mu.Lock()
	held := slices.Clone(n.held)
	n.mu.Unlock()
	for _, e := range held {
		if !yield(e) {
			return
		}
	}
}

// hold enters a connection of a user. Nobody closes it when it is told to go.
func (n *node) hold(t *testing.T, u protocol.UserID, id protocol.ConnID) {
	t.Helper()
	e := &presence.Entry{Conn: id, User: u, Since: time.Now().UnixMilli()}
	n.mu.Lock()
	n.held = append(n.held, e)
	n.mu.Unlock()
	if _, err := n.registry.Register(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

// call makes a call, and wants this status.
func (n *node) call(t *testing.T, want int, method, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := ask(n, method, Base+path, "", body)
	if r.Code != want {
		t.Errorf("%s %s: %d %s, want %d", method, path, r.Code, r.Body, want)
	}
	return r
}

// into reads the answer to a call.
func into[A any](t *testing.T, r *httptest.ResponseRecorder) (answer A) {
	t.Helper()
	if err := json.Unmarshal(r.Body.Bytes(), &answer); err != nil {
		t.Fatalf("%s: %v", r.Body, err)
	}
	return answer
}

// wantCode holds an answer against a code.
func wantCode(t *testing.T, r *httptest.ResponseRecorder, code Code) {
	t.Helper()
	wantProblem(t, r.Code, r.Header(), r.Body.Bytes(), code, "")
}

// takes has the node take commands until the test is over.
func (n *node) takes(t *testing.T, takeover time.Duration, scopes ...Scope) {
	t.Helper()
	commands := NewCommands(n.client, n.API, CommandsConfig{Gateway: nodeID, Log: n.log, Scopes: scopes, Takeover: takeover, Timeout: patience})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = commands.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// put puts a command into the stream, under an id.
func (n *node) put(t *testing.T, id, operation, body string) {
	t.Helper()
	if _, err := n.redis.Do("XADD", keyspace.Commands(), id, "op", operation, "body", body, "reply", "r"); err != nil {
		t.Fatal(err)
	}
}

// replied waits for so many answers to commands, and returns the last one with its status.
func (n *node) replied(t *testing.T, many int) (status, answer string) {
	t.Helper()
	eventually(t, "the command is answered", func() bool {
		all, err := n.redis.Client().XRange(t.Context(), keyspace.Replies("r"), "-", "+").Result()
		if err != nil || len(all) < many {
			return false
		}
		status, _ = all[many-1].Values["status"].(string)
		answer, _ = all[many-1].Values["answer"].(string)
		return true
	})
	return status, answer
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := gatewaytest.Poll(patience, func() error {
		if !ok() {
			return errors.New("it is not so")
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
