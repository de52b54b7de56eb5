package gateway

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// door is the public listener with a limit on sockets: those that have not been upgraded yet and those that have. Whoever connects and
// says nothing costs an open file until the deadline of the headers cuts him, and is nobody's to refuse before. So that such clients can't
// take the files that Redis, the internal listener and living clients need, accepting pauses short of the limit of open files. The kernel
// keeps who comes meanwhile waiting, and refuses when its queue is full.
//
// Running out of files all the same, because the limit was lowered or the files went elsewhere, is a pause, too, and no end.
type door struct {
	net.Listener
	log      *slog.Logger
	budget   int        // sockets; 0: no limit
	upgraded func() int // sockets that net/http has handed over

	raw    atomic.Int64 // sockets that net/http still has
	paused atomic.Bool
	pauses atomic.Uint64

	closing sync.Once
	closed  chan struct{}

	// Owned by Accept.
	told time.Time // when a pause was last logged
}

const (
	// doorLook is how often a paused door looks for room.
	doorLook = 10 * time.Millisecond
	// doorTells is how often pauses are logged at most: under attack there may be many a second.
	doorTells = 10 * time.Second
)

// openDoor returns a door for a process that may open so many files (0 = no limit). Half of what limits.max-connections leaves over is for
// handshakes, the other half for everything that is no client.
func openDoor(l net.Listener, files uint64, upgraded func() int, log *slog.Logger) *door {
	d := &door{Listener: l, log: log, upgraded: upgraded, closed: make(chan struct{})}
	if files > 0 {
		most := AutoConnections.Number(files, 1)
		d.budget = most + (int(files)-most)/2
	}
	return d
}

// state follows a socket of net/http's through its life there.
func (d *door) state(_ net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		d.raw.Add(1)
	case http.StateHijacked, http.StateClosed:
		d.raw.Add(-1)
	}
}

func (d *door) sockets() int { return int(d.raw.Load()) + d.upgraded() }

// Accept waits for room, then for a client. net/http calls it from one goroutine.
func (d *door) Accept() (net.Conn, error) {
	for {
		if d.budget > 0 && d.sockets() >= d.budget {
			// Room for one is taken at once; some more keeps the door from swinging.
			if !d.pause(d.budget-max(1, d.budget/50), nil) {
				return nil, net.ErrClosed
			}
		}
		c, err := d.Listener.Accept()
		if err == nil {
			return c, nil
		}
		if !isOutOfFiles(err) {
			return nil, err
		}
		// What makes room need not be one of our sockets, so it is tried again soon in any case.
		if !d.pause(d.sockets()-1, err) {
			return nil, net.ErrClosed
		}
	}
}

// pause waits until at most so many sockets are left; for a shortage of files (why) half a second at most. False: the door was closed.
func (d *door) pause(most int, why error) bool {
	began := time.Now()
	if !d.paused.Swap(true) {
		d.pauses.Add(1)
	}
	telling := began.Sub(d.told) >= doorTells
	if telling {
		d.told = began
		d.log.Warn("accepting is paused: no open files to spare", "sockets", d.sockets(), "budget", d.budget, "err", why)
	}
	tick := time.NewTicker(doorLook)
	defer tick.Stop()
	for d.sockets() > most && (why == nil || time.Since(began) < 500*time.Millisecond) {
		select {
		case <-d.closed:
			return false
		case <-tick.C:
		}
	}
	if why == nil {
		d.resume(telling, began)
		return true
	}
	// Whether there are files again only the next attempt tells; the door counts as open when it was one.
	select {
	case <-d.closed:
		return false
	case <-tick.C:
	}
	if filesLeft() {
		d.resume(telling, began)
	}
	return true
}

func (d *door) resume(telling bool, began time.Time) {
	d.paused.Store(false)
	if telling {
		d.log.Info("accepting again", "sockets", d.sockets(), "dur", time.Since(began).Round(time.Millisecond))
	}
}

// Close ends a pause, too.
func (d *door) Close() error {
	d.closing.Do(func() { close(d.closed) })
	return d.Listener.Close()
}

func isOutOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
