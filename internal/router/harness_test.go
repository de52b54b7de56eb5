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
	if err := g.registry.Join(context.Background()); err != nil {
		g.t.Fatal(err)
	}
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

// A client is the other end of a WebSocket.
type client struct {
	*gatewaytest.Client
	t          *testing.T
	user       protocol.UserID
	registered gatewaytest.Frame
}

func (g *gateway) dial(user protocol.UserID, query string) *client {
	g.t.Helper()
	c, err := gatewaytest.Dial("ws"+strings.TrimPrefix(g.server.URL, "http")+"/?user="+url.QueryEscape(string(user))+query, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	c.Name = string(user)
	g.t.Cleanup(c.Cut)
	return &client{Client: c, t: g.t, user: user}
}

// connect brings a user to this gateway.
func (g *gateway) connect(user protocol.UserID) *client {
	g.t.Helper()
	c := g.dial(user, "")
	c.wantRegistered()
	return c
}

// hold brings a user's socket to this gateway; attach, register and follow are the test's.
func (g *gateway) hold(user protocol.UserID) (*client, *arrival) {
	g.t.Helper()
	c := g.dial(user, "&held=1")
	return c, <-g.arrivals
}

func (c *client) wantRegistered() {
	c.t.Helper()
	f, err := c.Next("registered", patience)
	if err != nil {
		c.t.Fatal(err)
	}
	c.registered = f
}

// watch does for a client of this gateway what the handler does, and ends it with the test.
func (g *gateway) watch(c *client, users ...protocol.UserID) []*Watch {
	g.t.Helper()
	conn := g.manager.ByConn(protocol.ConnID(c.registered.ConnID))
	watches, addresses := make([]*Watch, len(users)), make([]protocol.Address, len(users))
	for i, u := range users {
		watches[i], addresses[i] = NewWatch(u, conn), protocol.WatchAddress(u)
	}
	ctx := context.Background()
	g.router.Collect(watches...)
	for _, s := range g.registry.Hold(ctx, addresses...) {
		if s.Err != nil {
			g.t.Fatal(s.Err)
		}
	}
	states, err := g.registry.States(ctx, users...)
	if err != nil {
		g.t.Fatal(err)
	}
	answer := make([]protocol.UserPresence, len(users))
	for i := range states {
		answer[i] = protocol.UserPresence{User: users[i], State: states[i].State, Version: states[i].Version()}
	}
	conn.Send(protocol.AppendPresence(nil, []byte("answer"), answer))
	g.router.Tell(watches, states)
	g.t.Cleanup(func() { g.unwatch(watches...) })
	return watches
}

func (g *gateway) unwatch(watches ...*Watch) {
	g.router.Unwatch(watches...)
	for _, w := range watches {
		g.registry.Release(protocol.WatchAddress(w.user))
	}
}

// leave closes the socket and waits until the gateway has forgotten it.
func (c *client) leave(g *gateway) {
	c.t.Helper()
	id := protocol.ConnID(c.registered.ConnID)
	c.Cut()
	eventually(c.t, "the connection is gone", func() bool { return g.manager.ByConn(id) == nil })
	g.settle()
	eventually(c.t, "the registry forgot the connection", func() bool {
		locations, err := g.registry.Get(context.Background(), c.user)
		return err == nil && !slices.ContainsFunc(locations, func(l presence.Location) bool { return l.Conn == id })
	})
}

// messages waits for so many messages and returns all that came.
func (c *client) messages(n int) []gatewaytest.Frame {
	c.t.Helper()
	if err := c.WaitCount(n, patience, "message"); err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(5))
	}
	return c.Notes().Received
}

// wantMessages checks that exactly these came, in this order: "id" or "id@offset". A last message from g shows that nothing came after
// them: a channel is FIFO.
func (c *client) wantMessages(g *gateway, want ...string) []gatewaytest.Frame {
	c.t.Helper()
	mark := g.send("marker", c.user, newID("mark"), `"mark"`)
	mark.want(protocol.StatusRouted)
	var got []gatewaytest.Frame
	eventually(c.t, "the marker comes to "+c.Name, func() bool {
		got = c.Notes().Received
		return len(got) > 0 && got[len(got)-1].ID == string(mark.ID)
	})
	got = slices.DeleteFunc(got, func(f gatewaytest.Frame) bool { return f.Sender() == "marker" })
	var names []string
	for i, f := range got {
		name := f.ID
		if i < len(want) && strings.Contains(want[i], "@") {
			name += "@" + strconv.FormatUint(f.Offset, 10)
		}
		names = append(names, name)
	}
	if !slices.Equal(names, want) {
		c.t.Fatalf("%s got %v, want %v", c.Name, names, want)
	}
	return got
}

// wantNoHoles checks that offsets are 1, 2, 3, … and that nothing came twice.
func wantNoHoles(t *testing.T, who string, offsets []uint64, from uint64) {
	t.Helper()
	for i, o := range offsets {
		if o != from+uint64(i) {
			t.Fatalf("%s: offset %d stands at place %d, want %d", who, o, i, from+uint64(i))
		}
	}
}

// sent is a message on its way.
type sent struct {
	*Message
	t       *testing.T
	at      time.Time
	answers atomic.Int32
	done    chan struct{} // closed with the first answer

	// Written before done is closed.
	result Result
	took   time.Duration
}

var ids atomic.Uint64

func newID(prefix string) string { return prefix + strconv.FormatUint(ids.Add(1), 10) }

// make prepares a message.
func (g *gateway) message(from, to protocol.UserID, id, content string) *sent {
	s := &sent{t: g.t, done: make(chan struct{})}
	s.Message = &Message{
		To: protocol.UserAddress(to), From: from, ID: []byte(id), Content: []byte(content), Ts: time.Now().UnixMilli(), HasID: true,
	}
	s.Frame = protocol.AppendMessageHead(nil, &protocol.MessageHead{ID: s.ID, From: from, To: []byte(to), Content: s.Content, Ts: s.Ts})
	s.Origin = protocol.AppendMessageOrigin(nil, &protocol.MessageOrigin{ID: s.ID, From: from, To: []byte(to), Gateway: g.id})
	s.Done = func(_ *connection.Batch, m *Message) {
		if s.answers.Add(1) == 1 {
			s.result, s.took = m.Result, time.Since(s.at)
			close(s.done)
		}
	}
	g.mu.Lock()
	g.sent = append(g.sent, s)
	g.mu.Unlock()
	return s
}

// post gives a message to the router.
func (g *gateway) post(s *sent) *sent {
	var out connection.Batch
	s.at = time.Now()
	g.router.Send(&out, s.Message)
	out.Flush()
	return s
}

// send sends a stored message.
func (g *gateway) send(from, to protocol.UserID, id, content string) *sent {
	return g.post(g.message(from, to, id, content))
}

// sendUntilTaken repeats a message until Redis answers again, as a client does.
func (g *gateway) sendUntilTaken(from, to protocol.UserID, id, content string) *sent {
	g.t.Helper()
	var s *sent
	eventually(g.t, "message "+id+" is taken", func() bool {
		s = g.send(from, to, id, content)
		return s.answer().Err == nil
	})
	return s
}

// signal sends an ephemeral message.
func (g *gateway) signal(from, to protocol.UserID, id, content string) *sent {
	s := g.message(from, to, id, content)
	s.Ephemeral = true
	s.Frame = protocol.AppendMessageHead(nil, &protocol.MessageHead{
		ID: s.ID, From: from, To: []byte(to), Content: s.Content, Ts: s.Ts, Ephemeral: true,
	})
	return g.post(s)
}

// answer waits for what became of the message.
func (s *sent) answer() Result {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.t.Fatalf("message %s was not answered within %v", s.ID, patience)
	}
	return s.result
}

func (s *sent) answered() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *sent) want(status protocol.Status) Result {
	s.t.Helper()
	r := s.answer()
	if r.Err != nil || r.Status != status {
		s.t.Fatalf("message %s: %s, want %s", s.ID, r.text(), status)
	}
	return r
}

func (s *sent) wantRouted(offset uint64, devices int) Result {
	s.t.Helper()
	r := s.want(protocol.StatusRouted)
	if r.Offset != offset || r.Devices != devices {
		s.t.Fatalf("message %s: %s, want offset %d and %d devices", s.ID, r.text(), offset, devices)
	}
	return r
}

func (s *sent) wantStored(offset uint64) Result {
	s.t.Helper()
	r := s.want(protocol.StatusStored)
	if r.Offset != offset || r.Devices != 0 {
		s.t.Fatalf("message %s: %s, want offset %d and no devices", s.ID, r.text(), offset)
	}
	return r
}

func (s *sent) wantCode(code protocol.ErrorCode) *protocol.ReplyError {
	s.t.Helper()
	r := s.answer()
	if r.Err == nil || r.Err.Code != code {
		s.t.Fatalf("message %s: %s, want %s", s.ID, r.text(), code)
	}
	return r.Err
}

func (s *sent) wantAnswer(want Result) {
	s.t.Helper()
	if r := s.answer(); r != want {
		s.t.Fatalf("message %s: %s, want the first answer, %s", s.ID, r.text(), want.text())
	}
}

func (r Result) text() string {
	if r.Err != nil {
		return fmt.Sprintf("%s (%s, retry after %d ms)", r.Err.Code, r.Err.Message, r.Err.RetryAfterMs)
	}
	return fmt.Sprintf("%s %s/%d devices %d ts %d", r.Status, r.Epoch, r.Offset, r.Devices, r.Ts)
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

// stream returns the offsets of what the address's stream holds, and its frames.
func (c *cluster) stream(user protocol.UserID) (offsets []uint64, frames []string) {
	c.t.Helper()
	entries, err := c.redis.Client().XRange(context.Background(), keyspace.Stream(protocol.UserAddress(user)), "-", "+").Result()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		off, _, _ := strings.Cut(e.ID, "-")
		n, err := strconv.ParseUint(off, 10, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		offsets = append(offsets, n)
		frames = append(frames, fmt.Sprint(e.Values["1"]))
	}
	return offsets, frames
}

// wantStream checks what is stored for the user, by message id, from offset 1 on.
func (c *cluster) wantStream(user protocol.UserID, want ...string) {
	c.t.Helper()
	offsets, frames := c.stream(user)
	wantNoHoles(c.t, "the stream of "+string(user), offsets, 1)
	var got []string
	for _, f := range frames {
		var m struct{ ID string }
		// A stored frame lacks only its position and the brace behind it.
		if err := json.Unmarshal([]byte(f+"}"), &m); err != nil {
			c.t.Fatalf("stored frame %q: %v", f, err)
		}
		got = append(got, m.ID)
	}
	if !slices.Equal(got, want) {
		c.t.Fatalf("stored for %s: %v, want %v", user, got, want)
	}
}

// A head is field h of a log's hash, as keyspace/lua/log.lua describes it.
type head struct {
	epoch    string
	top      uint64
	line     string
	gen      int
	count    int
	since    int64 // s
	extended int64 // s
	cursor   string
}

func (c *cluster) head(user protocol.UserID) head {
	c.t.Helper()
	text, err := c.redis.Client().HGet(context.Background(), keyspace.Log(protocol.UserAddress(user)), "h").Result()
	if err != nil {
		c.t.Fatal(err)
	}
	var h head
	if _, err := fmt.Sscan(text, &h.epoch, &h.top, &h.line, &h.gen, &h.count, &h.since, &h.extended, &h.cursor); err != nil {
		c.t.Fatalf("head %q: %v", text, err)
	}
	return h
}

func (c *cluster) setHead(user protocol.UserID, h head) {
	c.t.Helper()
	text := fmt.Sprintf("%s %d %s %d %d %d %d %s", h.epoch, h.top, h.line, h.gen, h.count, h.since, h.extended, h.cursor)
	if err := c.redis.Client().HSet(context.Background(), keyspace.Log(protocol.UserAddress(user)), "h", text).Err(); err != nil {
		c.t.Fatal(err)
	}
}

// A tap sits on the line to Redis: it counts what goes over it, and can hold, delay and lose calls of scripts.
type tap struct {
	mu      sync.Mutex
	calls   map[string]int                             // guarded by mu; commands by lower-case name
	held    chan struct{}                              // guarded by mu; scripts wait until it is closed; nil: they don't
	before  func(redis.Cmder)                          // guarded by mu; called with each script
	refuse  func(context.Context, redis.Cmder) error   // guarded by mu; an error is the script's, which isn't sent
	after   func(redis.Cmder, error) error             // guarded by mu; may replace the answer of a script
	pipe    func(context.Context, []redis.Cmder) error // guarded by mu; an error is the pipeline's, which isn't sent
	entered chan struct{}                              // one token for each script that came to a hold; never closed
}

func newTap() *tap { return &tap{calls: make(map[string]int), entered: make(chan struct{}, 1024)} }

// hold keeps calls from being made until the function it returns is called.
func (x *tap) hold() (release func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	held := make(chan struct{})
	x.held = held
	return sync.OnceFunc(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.held == held {
			x.held = nil
		}
		close(held)
	})
}

// set changes what the tap does.
func (x *tap) set(f func(*tap)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f(x)
}

// count returns how often the commands went over the line.
func (x *tap) count(names ...string) (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, name := range names {
		n += x.calls[name]
	}
	return n
}

func (x *tap) DialHook(next redis.DialHook) redis.DialHook { return next }

func (x *tap) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		x.mu.Lock()
		x.calls[cmd.Name()]++
		held, before, after, refuse := x.held, x.before, x.after, x.refuse
		x.mu.Unlock()
		if n := cmd.Name(); n != "evalsha" && n != "eval" {
			return next(ctx, cmd) // a new connection introduces itself
		}
		if before != nil {
			before(cmd)
		}
		if held != nil {
			x.entered <- struct{}{}
			select {
			case <-held:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if refuse != nil {
			if err := refuse(ctx, cmd); err != nil {
				return err
			}
		}
		err := next(ctx, cmd)
		if after != nil {
			err = after(cmd, err)
		}
		return err
	}
}

func (x *tap) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		x.mu.Lock()
		for _, cmd := range cmds {
			x.calls[cmd.Name()]++
		}
		pipe := x.pipe
		x.mu.Unlock()
		if len(cmds) > 0 && cmds[0].Name() == "client" {
			return next(ctx, cmds) // a new connection introduces itself
		}
		if pipe != nil {
			if err := pipe(ctx, cmds); err != nil {
				return err
			}
		}
		return next(ctx, cmds)
	}
}
