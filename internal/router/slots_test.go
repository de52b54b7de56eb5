//go:build !race

package router

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// An operator moves bob's partition to another master of the Cluster, while alice sends without pause. While the slot is torn between two
// masters a message may be refused; what is acknowledged is stored once, at its offset, and each has its event. The channel moves too: b subscribes on the new
// master within moments, and bob hears again.
func TestPartitionThatMovesToAnotherMaster(t *testing.T) {
	t.Parallel()
	r, within := gatewaytest.StartCluster(t), gatewaytest.Busier(t)
	town := newCluster(t, r)
	a, b := town.gateway("a", prompt, withEvents), town.gateway("b", prompt)
	bob := b.connect("bob")
	a.send("alice", "bob", "before", `0`).wantRouted(1, 1)

	ctx, stop := context.WithCancel(context.Background())
	var all []*sent
	var talking sync.WaitGroup
	talking.Go(func() {
		for ctx.Err() == nil {
			s := a.send("alice", "bob", newID("m"), `0`)
			all = append(all, s)
			s.answer()
			<-time.After(time.Millisecond)
		}
	})
	began := time.Now()
	if err := r.MoveSlot(keyspace.Log(protocol.UserAddress("bob"))); err != nil {
		t.Fatal(err)
	}
	moved := time.Now()
	t.Logf("the slot moved in %v", moved.Sub(began))
	heard := len(bob.Notes().Received)
	eventually(t, "bob hears again", func() bool { return len(bob.Notes().Received) > heard })
	t.Logf("bob heard again after %v", time.Since(moved))
	if d := time.Since(moved); d > within(3*time.Second) {
		t.Errorf("bob heard nothing for %v", d)
	}
	stop()
	talking.Wait()

	stored := make(map[string]uint64)
	offsets, frames := town.stream("bob")
	wantNoHoles(t, "bob's stream", offsets, offsets[0])
	for i, f := range frames {
		if stored[f] != 0 {
			t.Errorf("stored twice: %s", f)
		}
		stored[f] = offsets[i]
	}
	told := town.events("u:bob")
	if len(told) != len(offsets) {
		t.Errorf("%d messages are stored, and there are %d events", len(offsets), len(told))
	}
	for i, m := range told {
		if f := strings.Fields(m.sent); len(f) != 5 || f[2] != strconv.FormatUint(offsets[0]+uint64(i), 10) {
			t.Errorf("event %d is of %q", i+1, m.sent)
		}
	}
	refused, slowest := 0, time.Duration(0)
	for _, s := range all {
		slowest = max(slowest, s.took)
		switch e := s.result.Err; {
		case e == nil && s.result.Offset >= offsets[0] && stored[string(s.Frame)] != s.result.Offset:
			t.Errorf("message %s: %s, stored at %d", s.ID, s.result.text(), stored[string(s.Frame)])
		case e != nil && e.Code == protocol.CodeUnavailable && stored[string(s.Frame)] != 0:
			t.Errorf("message %s was refused as certainly not stored, and is stored", s.ID)
		case e != nil:
			refused++
		}
	}
	t.Logf("%d messages, %d refused, the slowest answer took %v", len(all), refused, slowest)
	if refused > len(all)/2 || slowest > within(unknownWithin) {
		t.Errorf("%d of %d messages were refused, the slowest answer took %v", refused, len(all), slowest)
	}
}
