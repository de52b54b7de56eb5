//go:build !race

package router

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// join makes a user live whose client takes what it gets without looking at it: a client that parses would allocate in the same process.
func (b *bench) join(user protocol.UserID) *arrival {
	b.t.Helper()
	nc, err := net.Dial("tcp", b.g.server.Listener.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { nc.Close() })
	fmt.Fprintf(nc, "GET /?held=1&user=%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", user)
	answer, err := http.ReadResponse(bufio.NewReaderSize(nc, 16), nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		b.t.Fatalf("handshake: %v, %v", answer, err)
	}
	go func() { _, _ = io.Copy(io.Discard, nc) }()
	a := <-b.g.arrivals
	b.enter(a)
	if !b.goLive(a, "e1", 0) {
		b.t.Fatalf("%s is not live", user)
	}
	return a
}

// deliverMessage builds a frame once and appends it to each member's outbox: ten members cost no more allocations than one, and a
// message none at all but what an outbox needs to grow, which the pool gives.
func TestDeliverMessageAllocatesNothingForEachMember(t *testing.T) {
	b := newBench(t)
	users := map[protocol.UserID]int{"one": 1, "ten": 10, "fifty": 50}
	for user, members := range users {
		for range members {
			b.join(user)
		}
	}
	got := make(map[protocol.UserID]float64)
	for user := range users {
		offset := uint64(0)
		rec := protocol.Record{Address: protocol.UserAddress(user), Epoch: "e1", Frame: `{"type":"message","id":"m","from":"alice","to":"bob","content":"hi","ts":1`}
		run := func() {
			offset++
			rec.Offset = offset
			b.deliverMessage(&rec)
			b.out.Flush()
		}
		run()
		got[user] = testing.AllocsPerRun(100, run)
	}
	for user, allocations := range got {
		if allocations != got["one"] || allocations != 0 {
			t.Errorf("%d members: %v allocations for a message, 1 member: %v, want none", users[user], allocations, got["one"])
		}
	}
}

// A signal costs nothing for each member either.
func TestDeliveredSignalAllocatesNothingForEachMember(t *testing.T) {
	b := newBench(t)
	for range 10 {
		b.join("bob")
	}
	rec := protocol.Record{Address: "u:bob", Frame: `{"type":"message","id":"t","from":"alice","to":"bob","content":"typing","ts":1,"ephemeral":true`}
	run := func() {
		b.deliverMessage(&rec)
		b.out.Flush()
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations for a signal to ten members, want none", n)
	}
}

// A change of somebody whom fifty connections watch is built once: it costs what it costs for one.
func TestToldStatesAllocateNothingForEachWatcher(t *testing.T) {
	b := newBench(t)
	watchers := map[protocol.UserID]int{"one": 1, "fifty": 50}
	for user, n := range watchers {
		for range n {
			w := NewWatch(user, b.join(user).conn)
			b.collect([]*Watch{w})
			b.tell([]*Watch{w}, []protocol.UserState{{User: user, State: protocol.StateOffline, Epoch: "e1"}})
		}
	}
	got := make(map[protocol.UserID]float64)
	for user := range watchers {
		s := protocol.UserState{User: user, State: protocol.StateOnline, Epoch: "e1"}
		run := func() {
			s.N++
			b.hear(s)
			b.publish()
			b.out.Flush()
		}
		run()
		got[user] = testing.AllocsPerRun(100, run)
	}
	if got["fifty"] > got["one"] {
		t.Errorf("%v allocations for fifty watchers, %v for one", got["fifty"], got["one"])
	}
	if n := b.g.router.Stats().Told; n != 102*51 {
		t.Errorf("%d states told, want %d", n, 102*51)
	}
}

// An envelope is taken apart without a copy: its messages cost no allocation, whatever their number.
func TestOpeningAnEnvelopeAllocatesNothing(t *testing.T) {
	b := newBench(t)
	b.join("bob")
	var records []string
	for i := range 64 {
		records = append(records, record("nobody"+protocol.UserID(strconv.Itoa(i)), "e1", 1))
	}
	envelope := envelopeOf(1, records...)
	if n := testing.AllocsPerRun(100, func() { b.open(envelope) }); n != 0 {
		t.Errorf("%v allocations for an envelope of 64 messages, want none", n)
	}
	if n := b.g.router.Stats().Unheld; n != 101*64 {
		t.Errorf("%d messages were looked at, want %d", n, 101*64)
	}
}

// Where something could be traced costs nothing while nobody traces, and while somebody else is.
func TestATraceOfNobodyOrOfOthersAllocatesNothing(t *testing.T) {
	b := newBench(t)
	b.join("bob")
	f := b.feeds["u:bob"]
	m := &Message{To: "u:bob", From: "alice", ID: []byte("m1"), Content: []byte(`"hi"`), Result: Result{Status: protocol.StatusRouted, Epoch: "e1", Offset: 7}}
	const frame = `{"type":"message","id":"m1","from":"alice","to":"bob","content":"hi","ts":1`
	x := &b.g.router.traces
	run := func() {
		x.sent(protocol.TraceTaken, m)
		x.sent(protocol.TraceAnswered, m)
		x.arrived(protocol.TraceDelivered, "", "u:bob", f, "e1", 7, frame, 1)
		b.g.router.TraceConnection(protocol.TraceRegistered, "bob", "c1", "", "")
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations while nobody traces, want none", n)
	}
	other := &trace{user: "carol", address: "u:carol", quotedUser: `"carol"`, events: make(chan protocol.TraceEvent, 1)}
	x.add(other)
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations while somebody else is traced, want none", n)
	}
	x.remove(other)
	if x.active.Load() != nil || len(other.events) != 0 {
		t.Errorf("traces are left, or told: %d", len(other.events))
	}
	own := &trace{user: "bob", address: "u:bob", quotedUser: `"bob"`, events: make(chan protocol.TraceEvent, 3)}
	x.add(own)
	defer x.remove(own)
	run()
	if len(own.events) != 3 || own.lost.Load() != 1 {
		t.Errorf("bob's trace has %d events and lost %d, want 3 and 1", len(own.events), own.lost.Load())
	}
}

// What the lane computes for a message reuses the message's own buffers.
func TestPreparingAMessageAllocatesNothing(t *testing.T) {
	m := &Message{From: "alice", ID: []byte("m1"), Content: []byte(`"hi"`), Ts: 1795309124904}
	run := func() {
		m.hash()
		m.prepare(7)
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
	var r Result
	line := fmt.Sprintf("r 0123456789a 42 3 %d", m.Ts)
	if n := testing.AllocsPerRun(100, func() {
		if err := r.parse(line); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for reading a result, want none", n)
	}
}

// A message for everyone is built once: a hundred connections cost what one does.
func TestAMessageForEveryoneAllocatesNothingForEachConnection(t *testing.T) {
	b := newBench(t)
	all := make([]*arrival, 100)
	for i := range all {
		all[i] = b.join("bob")
	}
	got := make(map[int]float64)
	for _, n := range []int{1, len(all)} {
		b.g.router.cfg.Everyone = func(yield func(*connection.Connection) bool) {
			for _, a := range all[:n] {
				if !yield(a.conn) {
					return
				}
			}
		}
		before := b.g.router.Stats().Delivered
		run := func() {
			b.g.router.everyone.deliver(`{"type":"message","id":"news","from":"ops","content":"hear","ts":1,"ephemeral":true`)
		}
		run()
		got[n] = testing.AllocsPerRun(100, run)
		if told := b.g.router.Stats().Delivered - before; told != uint64(102*n) {
			t.Errorf("%d deliveries, want %d", told, 102*n)
		}
	}
	if got[100] > got[1] {
		t.Errorf("%v allocations for a hundred connections, %v for one", got[100], got[1])
	}
}
