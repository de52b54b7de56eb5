package connection

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chatgate/internal/protocol"
)

func TestIndexesFollowAddIdentifyRemove(t *testing.T) {
	g := newGate(t, nil)
	a1, ws1 := g.dial()
	a2, ws2 := g.dial()
	b, _ := g.dial()
	if g.m.Count() != 3 || g.m.Users() != 0 {
		t.Fatalf("%d connections of %d users, want 3 of 0", g.m.Count(), g.m.Users())
	}
	if g.m.Identify(a1) {
		t.Error("a connection without identity was entered")
	}
	g.identify(a1, "alice")
	g.identify(a2, "alice")
	g.identify(b, "bob")
	if g.m.Identify(a1) {
		t.Error("entered twice")
	}
	if got := g.m.ByUser("alice"); len(got) != 2 || got[0] != a1 || got[1] != a2 {
		t.Errorf("alice has %v", got)
	}
	if g.m.ByConn(a1.ID()) != a1 || g.m.ByConn("nobody") != nil || g.m.ByUser("nobody") != nil {
		t.Error("looking up gave the wrong ones")
	}
	if g.m.Users() != 2 {
		t.Errorf("%d users, want 2", g.m.Users())
	}
	if err := g.m.Check(); err != nil {
		t.Error(err)
	}
	before := g.m.ByUser("alice")
	ws1.Close()
	poll(t, "alice has one", func() bool { return len(g.m.ByUser("alice")) == 1 })
	if before[0] != a1 || before[1] != a2 {
		t.Error("a slice that was given out has changed")
	}
	ws2.Close()
	poll(t, "alice is gone", func() bool { return g.m.ByUser("alice") == nil && g.m.Count() == 1 })
	if g.m.Users() != 1 {
		t.Errorf("%d users, want 1", g.m.Users())
	}
	g.m.Remove(a1) // again
	if g.m.Identify(a1) {
		t.Error("a connection that is gone was entered")
	}
	n := 0
	g.m.ForEach(func(c *Connection) bool { n++; return c == b })
	if n != 1 {
		t.Errorf("saw %d connections, want 1", n)
	}
}

func TestSecondConnectionOfTheSameIdIsRefused(t *testing.T) {
	g := newGate(t, nil)
	c, _ := g.dial()
	twin := &Connection{id: c.ID(), cfg: g.cfg}
	if err := g.m.Add(twin); !errors.Is(err, ErrDuplicate) {
		t.Errorf("got %v", err)
	}
	g.m.Remove(twin)
	if g.m.ByConn(c.ID()) != c {
		t.Error("the twin took the first one with it")
	}
}

// Readers run through the indexes without a lock while connections come and go: what they see is always whole.
func TestIndexesUnderLoad(t *testing.T) {
	cfg := DefaultConfig()
	m := NewManager(&cfg)
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for u := range 5 {
					user := protocol.UserID(fmt.Sprint(u))
					for _, c := range m.ByUser(user) {
						if c.User() != user {
							t.Error("another user's connection")
							return
						}
					}
				}
				if err := m.Check(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for w := range 4 {
		writers.Go(func() {
			for i := range 500 {
				c := &Connection{id: protocol.ConnID(fmt.Sprintf("%d-%d", w, i)), cfg: &cfg}
				if err := m.Add(c); err != nil {
					t.Error(err)
				}
				c.Identify(Identity{User: protocol.UserID(fmt.Sprint(i % 5))})
				m.Identify(c)
				m.Remove(c)
				m.leave() // in place of a Run
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	if m.Count() != 0 || m.Users() != 0 || m.owed != 0 {
		t.Errorf("%d connections of %d users left, %d owed", m.Count(), m.Users(), m.owed)
	}
	if err := m.check(); err != nil {
		t.Error(err)
	}
}

// A checker that has never failed proves nothing.
func TestCheckFindsEachDisagreement(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*Manager, *Connection)
		want  string
	}{
		"count":                {func(m *Manager, _ *Connection) { m.count.Add(1) }, "count is"},
		"users":                {func(m *Manager, _ *Connection) { m.users.Add(1) }, "users count is"},
		"not entered":          {func(m *Manager, c *Connection) { m.connToUser.Delete(c.id); m.count.Add(-1) }, "not entered"},
		"not listed":           {func(m *Manager, _ *Connection) { m.userToConn.Delete(protocol.UserID("alice")) }, "listed 0 times"},
		"listed twice":         {func(m *Manager, c *Connection) { m.userToConn.Store(c.User(), []*Connection{c, c}) }, "listed 2 times"},
		"listed for another":   {func(m *Manager, c *Connection) { m.userToConn.Store(protocol.UserID("bob"), []*Connection{c}) }, "another user"},
		"empty user":           {func(m *Manager, _ *Connection) { m.userToConn.Store(protocol.UserID("bob"), []*Connection{}) }, "without connections"},
		"mark forgotten":       {func(_ *Manager, c *Connection) { c.indexed = false }, "not marked"},
		"wrong id":             {func(m *Manager, c *Connection) { m.connToUser.Store(protocol.ConnID("x"), c) }, "entered as"},
		"another manager":      {func(_ *Manager, c *Connection) { c.manager = nil }, "another manager"},
		"released without end": {func(_ *Manager, c *Connection) { c.inFlight.Add(-1) }, "released more"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			m := NewManager(&cfg)
			c := &Connection{id: "c", cfg: &cfg}
			if err := m.Add(c); err != nil {
				t.Fatal(err)
			}
			c.Identify(Identity{User: "alice"})
			m.Identify(c)
			if err := m.check(); err != nil {
				t.Fatalf("before: %v", err)
			}
			tc.spoil(m, c)
			if err := m.check(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want something with %q", err, tc.want)
			}
		})
	}
}

// The drain: everyone is told, evenly over the window.
func TestCloseAllIsSpread(t *testing.T) {
	g := newGate(t, nil)
	const n = 20
	var ends []time.Time
	var mu sync.Mutex
	var clients sync.WaitGroup
	for range n {
		_, ws := g.dial()
		clients.Go(func() {
			wantClosing(t, ws, protocol.CloseDraining)
			mu.Lock()
			defer mu.Unlock()
			ends = append(ends, time.Now())
		})
	}
	begin := time.Now()
	g.m.CloseAll(Cause{Kind: KindDraining, WindowMs: 300}, 300*time.Millisecond)
	if took := time.Since(begin); took < 250*time.Millisecond {
		t.Errorf("took %s", took)
	}
	clients.Wait()
	if spread := ends[n-1].Sub(ends[0]); spread < 150*time.Millisecond {
		t.Errorf("all ended within %s", spread)
	}
	poll(t, "all are gone", func() bool { return g.m.Count() == 0 })
	if got := g.m.Stats().Ends[KindDraining]; got != n {
		t.Errorf("counted %d ends, want %d", got, n)
	}
}

// Clear-all on stop: nobody is taken any more, everybody is told, and Close returns when the last one is gone, though a window was
// under way.
func TestCloseEndsEverything(t *testing.T) {
	g := newGate(t, nil)
	var clients sync.WaitGroup
	for range 10 {
		_, ws := g.dial()
		clients.Go(func() { wantClosing(t, ws, protocol.CloseDraining) })
	}
	spreading := make(chan struct{})
	go func() {
		defer close(spreading)
		g.m.CloseAll(Cause{Kind: KindDraining}, time.Hour)
	}()
	if err := g.m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-spreading
	clients.Wait()
	if g.m.Count() != 0 {
		t.Errorf("%d left", g.m.Count())
	}
	c, ws := g.dial()
	wantClosing(t, ws, protocol.CloseDraining)
	g.wantEnd(c, KindDraining, protocol.CloseDraining)
	if err := g.m.Add(&Connection{id: "late", cfg: g.cfg}); !errors.Is(err, ErrClosed) {
		t.Errorf("added after Close: %v", err)
	}
}

// Clients that don't answer the close frame are cut off when the time is up.
func TestCloseCutsWhoDoesNotAnswer(t *testing.T) {
	g := newGate(t, nil)
	c, _ := g.rawDial(0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.m.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	g.wantEnd(c, KindDraining, protocol.CloseDraining)
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	if err := new(Config).Validate(); err != nil {
		t.Errorf("everything off: %v", err)
	}
	cfg := DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
	cfg.PingAfter = -1
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "PingAfter") {
		t.Errorf("got %v", err)
	}
	cfg = DefaultConfig()
	cfg.OutboxBytes = 1000
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "OutboxBytes") {
		t.Errorf("got %v", err)
	}
}
