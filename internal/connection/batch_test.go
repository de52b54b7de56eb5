package connection

import (
	"fmt"
	"sync"
	"testing"
)

func TestBatchFlushesEachConnectionOnce(t *testing.T) {
	g := newGate(t, nil)
	a, wsA := g.dial()
	b, wsB := g.dial()
	var batch Batch
	frame := append(AppendTextHeader(nil, 4), "both"...)
	for i := range 3 {
		batch.Append(a, fmt.Appendf(nil, "a%d", i))
	}
	batch.AppendFrame(a, frame)
	batch.AppendFrame(b, frame)
	if n := batch.Len(); n != 2 {
		t.Errorf("%d to flush, want 2", n)
	}
	batch.Flush()
	if n := batch.Len(); n != 0 {
		t.Errorf("%d to flush after the flush", n)
	}
	for i := range 3 {
		wantText(t, wsA, fmt.Sprintf("a%d", i))
	}
	wantText(t, wsA, "both")
	wantText(t, wsB, "both")

	// What is refused is not touched.
	a.Close(Cause{Kind: KindKicked})
	if batch.Append(a, []byte("late")) || batch.AppendFrame(a, frame) || batch.Len() != 0 {
		t.Error("a closed connection was touched")
	}
}

// One batch has touched a connection and takes its time; the other's frame does not wait for it.
func TestBatchesDoNotWaitForEachOther(t *testing.T) {
	g := newGate(t, nil)
	c, ws := g.dial()
	var slow, fast Batch
	slow.Append(c, []byte("one"))
	fast.Append(c, []byte("two"))
	slow.Append(c, []byte("three"))
	fast.Flush()
	for _, want := range []string{"one", "two", "three"} {
		wantText(t, ws, want)
	}
	slow.Append(c, []byte("four"))
	slow.Flush()
	wantText(t, ws, "four")
	if c.touched.Load() != nil {
		t.Error("a mark was left")
	}
}

// Many batches on the same few connections, flushed at their own pace: every frame arrives without anyone else's help, and in its
// goroutine's order. The last frame of each goroutine is the one a lost mark would leave behind.
func TestNoFrameIsLeftUnflushed(t *testing.T) {
	g := newGate(t, func(cfg *Config) { cfg.OutboxBytes, cfg.OutboxFrames = 0, 0 })
	const members, producers, rounds = 4, 6, 300
	var conns [members]*Connection
	var clients [members]*rawClient
	for i := range members {
		conns[i], clients[i] = g.rawDial(0)
	}
	for range 3 {
		var wg sync.WaitGroup
		for p := range producers {
			wg.Go(func() {
				var batch Batch
				for i := range rounds {
					for _, c := range conns {
						batch.Append(c, fmt.Appendf(nil, "%d %d", p, i))
					}
					if i%(p+1) == 0 {
						batch.Flush()
					}
				}
				batch.Flush()
			})
		}
		for _, r := range clients {
			var next [producers]int
			for range producers * rounds {
				_, payload, err := r.frame()
				if err != nil {
					t.Fatal(err)
				}
				var p, i int
				if _, err := fmt.Sscan(string(payload), &p, &i); err != nil || next[p] != i {
					t.Fatalf("got %q, want %d of producer %d (%v)", payload, next[p], p, err)
				}
				next[p]++
			}
		}
		wg.Wait()
	}
	for _, c := range conns {
		if c.touched.Load() != nil {
			t.Error("a mark was left")
		}
	}
}
