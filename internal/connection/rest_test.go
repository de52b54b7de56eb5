//go:build !race

package connection

import (
	"runtime"
	"runtime/metrics"
	"strconv"
	"testing"
)

// stacksInUse is what all goroutines have as stacks, in bytes, with what was freed given back.
func stacksInUse() int64 {
	runtime.GC()
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// A connection that has read, handled and answered something holds the stack of one goroutine that never grew, once it rests.
func TestStackAtRestIsSmall(t *testing.T) {
	const conns, limit = 1000, 2<<10 + 512
	g := newGate(t, nil)
	var clients []*rawClient
	before := stacksInUse()
	for range conns {
		_, r := g.rawDial(0)
		clients = append(clients, r)
	}
	for i, r := range clients {
		r.send(opText, strconv.Itoa(i))
		r.wantFrame(opText, strconv.Itoa(i))
		r.send(opPong, "")
	}
	var each int64
	poll(t, "every reader rests", func() bool {
		each = (stacksInUse() - before) / conns
		return each <= limit
	})
	t.Logf("%d bytes each", each)
}
