//go:build !race

package connection

import (
	"fmt"
	"strings"
	"testing"
)

// wantNoAllocs runs f often enough that what is amortized vanishes, and not so often that its one processor, which clients have to
// share, could not read what is sent.
func wantNoAllocs(t *testing.T, what string, f func()) {
	t.Helper()
	f()
	if n := testing.AllocsPerRun(50, f); n != 0 {
		t.Errorf("%s: %v allocations", what, n)
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	g := newGate(t, nil)
	payload := []byte(strings.Repeat("x", 100))
	frame := append(AppendTextHeader(nil, len(payload)), payload...)

	c, r := g.rawDial(0)
	drainClient(r)
	g.identify(c, "alice")
	wantNoAllocs(t, "append and flush", func() { c.Append(payload); c.Flush() })
	wantNoAllocs(t, "append 100 frames and flush", func() {
		for range 100 {
			c.AppendFrame(frame)
		}
		c.Flush()
	})
	found := 0
	wantNoAllocs(t, "ByUser", func() { found += len(g.m.ByUser("alice")) })
	id := c.ID()
	wantNoAllocs(t, "ByConn", func() {
		if g.m.ByConn(id) == c {
			found++
		}
	})
	wantNoAllocs(t, "Count", func() { found += g.m.Count() })
	wantNoAllocs(t, "a sweep in which nothing is due", func() { g.m.CheckHealth(timeOf(g.cfg.now())) })
	wantNoAllocs(t, "Acquire and Release", func() { c.Acquire(); c.Release() })
	g.wantAlive(c)
	if found == 0 {
		t.Error("nothing found")
	}
}

// A room of 1, of 16 and of 32: members cost nothing.
func TestFanOutAllocatesNothingForEachMember(t *testing.T) {
	g := newGate(t, nil)
	frame := append(AppendTextHeader(nil, 100), strings.Repeat("x", 100)...)
	for _, members := range []int{1, 16, 32} {
		var conns []*Connection
		for range members {
			c, r := g.rawDial(0)
			drainClient(r)
			conns = append(conns, c)
		}
		var batch Batch
		wantNoAllocs(t, fmt.Sprint(members, " members"), func() {
			for _, c := range conns {
				batch.AppendFrame(c, frame)
			}
			batch.Flush()
		})
	}
}
