package handler

import (
	"context"
	"sync"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// registering are the connections whose register is with Redis. The registry may have such a connection already, and a backend may
// have been told that it came, while nobody here finds it by its user yet: whoever is asked to do something with it waits for the end
// of its register, or he would leave it out.
type registering struct {
	mu  sync.Mutex
	all map[*connection.Connection]registration // guarded by mu
}

// registration is one register.
type registration struct {
	user protocol.UserID
	over chan struct{} // closed at its end, whatever came of it
}

func (x *registering) begin(c *connection.Connection, u protocol.UserID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.all == nil {
		x.all = make(map[*connection.Connection]registration)
	}
	x.all[c] = registration{u, make(chan struct{})}
}

// end may be called twice.
func (x *registering) end(c *connection.Connection) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if r, ok := x.all[c]; ok {
		close(r.over)
		delete(x.all, c)
	}
}

// of returns the connections that register as this user.
func (x *registering) of(u protocol.UserID) (conns []*connection.Connection) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for c, r := range x.all {
		if r.user == u {
			conns = append(conns, c)
		}
	}
	return conns
}

// await waits until a connection does not register any more; false: ctx ended before.
func (x *registering) await(ctx context.Context, c *connection.Connection) bool {
	x.mu.Lock()
	r, ok := x.all[c]
	x.mu.Unlock()
	if !ok {
		return true
	}
	select {
	case <-r.over:
		return true
	case <-ctx.Done():
		return false
	}
}
