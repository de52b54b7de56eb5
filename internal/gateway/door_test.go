package gateway

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// shortListener is out of files as often as it says, and hands out nothing else but connections.
type shortListener struct {
	net.Listener
	short atomic.Int32
}

func (l *shortListener) Accept() (net.Conn, error) {
	if l.short.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return new(net.TCPConn), nil
}

func (l *shortListener) Close() error { return nil }

// A door before a listener that never waits, and how many sockets were upgraded behind it.
func newDoor(files uint64) (*door, *shortListener, *atomic.Int64) {
	l, upgraded := new(shortListener), new(atomic.Int64)
	return openDoor(l, files, func() int { return int(upgraded.Load()) }, slog.New(slog.DiscardHandler)), l, upgraded
}

// accepted takes one connection and has net/http hold it.
func accepted(t *testing.T, d *door) {
	t.Helper()
	c, err := d.Accept()
	if err != nil {
		t.Fatal(err)
	}
	d.state(c, http.StateNew)
}

// accepting takes one in another goroutine.
func accepting(d *door) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := d.Accept()
		done <- err
	}()
	return done
}

func wantPoll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// Sockets count whether net/http has them or not; those that were handed over are counted where they went.
func TestDoorPausesAtItsBudgetAndOpensAgain(t *testing.T) {
	d, _, upgraded := newDoor(200) // 100 clients at most, and 50 that have not been upgraded
	if d.budget != 150 {
		t.Fatalf("a budget of %d", d.budget)
	}
	for range 150 {
		accepted(t, d)
	}
	for range 100 {
		d.state(nil, http.StateHijacked)
		upgraded.Add(1)
	}
	waiting := accepting(d)
	wantPoll(t, "paused", d.paused.Load)
	d.state(nil, http.StateClosed) // room for one is not enough
	d.state(nil, http.StateClosed)
	select {
	case <-waiting:
		t.Fatal("accepted at 148 of 150")
	case <-time.After(10 * doorLook):
	}
	upgraded.Add(-1)
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	if d.paused.Load() || d.pauses.Load() != 1 || d.raw.Load() != 48 {
		t.Errorf("paused %v, %d times, %d raw", d.paused.Load(), d.pauses.Load(), d.raw.Load())
	}
}

func TestDoorOutlivesAShortageOfFiles(t *testing.T) {
	d, l, _ := newDoor(0)
	l.short.Store(2)
	waiting := accepting(d)
	wantPoll(t, "paused", func() bool { return d.pauses.Load() > 0 })
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	if d.paused.Load() {
		t.Error("still paused")
	}
}

func TestClosedDoorPausesNoMore(t *testing.T) {
	d, _, upgraded := newDoor(200)
	upgraded.Store(1000)
	waiting := accepting(d)
	wantPoll(t, "paused", d.paused.Load)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want it closed", err)
	}
}
