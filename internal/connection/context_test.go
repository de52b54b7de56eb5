package connection

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"chatgate/internal/protocol"
)

func TestBoundValuesAreReleasedOnceInReverse(t *testing.T) {
	g := newGate(t, nil)
	c, ws := g.dial()
	var mu sync.Mutex
	var released []any
	release := func(v any) {
		mu.Lock()
		defer mu.Unlock()
		released = append(released, v)
	}
	for _, kv := range []string{"a", "b", "c"} {
		if !c.Bind(kv, kv+"1", release) {
			t.Fatal("not bound")
		}
	}
	c.Bind("plain", 7, nil)
	c.Bind("b", "b2", release)
	if want := []any{"b1"}; !slices.Equal(released, want) {
		t.Fatalf("after binding b again: released %v, want %v", released, want)
	}
	if v, ok := c.Value("b"); !ok || v != "b2" {
		t.Errorf("b is %v, %t", v, ok)
	}
	if _, ok := c.Value("d"); ok {
		t.Error("d is bound")
	}
	ws.Close()
	g.wantEnd(c, KindNetwork, protocol.CloseAbnormal)
	if want := []any{"b1", "c1", "b2", "a1"}; !slices.Equal(released, want) {
		t.Errorf("released %v, want %v", released, want)
	}
	if c.Bind("late", "late", release) {
		t.Error("bound after the end")
	}
	if want := any("late"); released[len(released)-1] != want {
		t.Error("what came late was not released at once")
	}
	if _, ok := c.Value("a"); ok {
		t.Error("a can still be read")
	}
}

// Binding races with the end from many goroutines: every value is released exactly once, whichever came first.
func TestBindRacesWithTheEnd(t *testing.T) {
	g := newGate(t, nil)
	for range 30 {
		c, ws := g.dial()
		var bound, released atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for n := range 50 {
					bound.Add(1)
					c.Bind(string(rune('a'+(i+n)%10)), n, func(any) { released.Add(1) })
				}
			})
		}
		ws.Close()
		g.wantEnd(c, KindNetwork, protocol.CloseAbnormal)
		wg.Wait()
		if b, r := bound.Load(), released.Load(); b != r {
			t.Fatalf("%d bound, %d released", b, r)
		}
	}
}

func TestContextEndsWithTheConnection(t *testing.T) {
	g := newGate(t, nil)
	c, ws := g.dial()
	ctx := c.Context()
	if ctx != c.Context() {
		t.Error("two contexts")
	}
	if ctx.Err() != nil {
		t.Fatal("cancelled too early")
	}
	c.Close(Cause{Kind: KindKicked, By: "admin"})
	wantClosing(t, ws, protocol.CloseKicked)
	<-ctx.Done()
	var cause Cause
	if !errors.As(context.Cause(ctx), &cause) || cause.Kind != KindKicked || cause.By != "admin" {
		t.Errorf("context ended by %v", context.Cause(ctx))
	}

	// Asked for only after the end.
	c, ws = g.dial()
	ws.Close()
	g.wantEnd(c, KindNetwork, protocol.CloseAbnormal)
	if c.Context().Err() == nil {
		t.Error("a context of an ended connection lives")
	}
}

// Start hooks in order, then stop hooks in order, off the reader's path; values can be read in both, and are released after.
func TestHooksRunInOrder(t *testing.T) {
	var mu sync.Mutex
	var log []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, s)
	}
	g := newGate(t, func(cfg *Config) {
		cfg.OnStart = []func(*Connection){
			func(c *Connection) {
				c.Bind("k", "v", func(any) { note("released") })
				note("start 1")
			},
			func(*Connection) { note("start 2") },
		}
		cfg.OnStop = []func(*Connection, Cause){
			func(c *Connection, cause Cause) {
				v, _ := c.Value("k")
				note("stop 1 " + cause.Kind.String() + " " + v.(string))
			},
			func(*Connection, Cause) { note("stop 2") },
		}
	})
	c, ws := g.dial()
	poll(t, "start hooks have run", func() bool { return c.hooks.Load() == hooksStarted })
	ws.Close()
	g.wantEnd(c, KindNetwork, protocol.CloseAbnormal)
	if err := g.m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"start 1", "start 2", "stop 1 network v", "stop 2", "released"}
	if !slices.Equal(log, want) {
		t.Errorf("got %q, want %q", log, want)
	}
}

// The end comes while a start hook runs: the stop hook waits for it.
func TestStopHooksComeAfterStartHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		letGo := make(chan struct{})
		var order []string
		m := NewManager(&Config{})
		c := &Connection{id: "c", cfg: &Config{
			OnStart: []func(*Connection){func(*Connection) { <-letGo; order = append(order, "start") }},
			OnStop:  []func(*Connection, Cause){func(*Connection, Cause) { order = append(order, "stop") }},
		}}
		if err := m.Add(c); err != nil {
			t.Fatal(err)
		}
		cause := Cause{Kind: KindNetwork}.complete()
		c.cause.Store(&cause)
		c.stop(cause)
		synctest.Wait()
		if len(order) != 0 {
			t.Fatalf("%q before the start hook was done", order)
		}
		close(letGo)
		synctest.Wait()
		if want := []string{"start", "stop"}; !slices.Equal(order, want) {
			t.Errorf("got %q, want %q", order, want)
		}
	})
}

// A start hook hangs: messages are handled meanwhile, the connection ends, and Close waits for its hooks.
func TestCloseWaitsForAHangingHook(t *testing.T) {
	letGo := make(chan struct{})
	var order []string
	g := newGate(t, func(cfg *Config) {
		cfg.OnStart = []func(*Connection){func(*Connection) { <-letGo; order = append(order, "start") }}
		cfg.OnStop = []func(*Connection, Cause){func(*Connection, Cause) { order = append(order, "stop") }}
	})
	c, ws := g.dial()
	sendText(t, ws, "hello")
	wantText(t, ws, "hello")
	ws.Close()
	g.wantEnd(c, KindNetwork, protocol.CloseAbnormal)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.m.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("close with a hanging hook: %v", err)
	}
	close(letGo)
	if err := g.m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"start", "stop"}; !slices.Equal(order, want) {
		t.Errorf("got %q, want %q", order, want)
	}
}
