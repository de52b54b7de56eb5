package connection

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"chatgate/internal/protocol"
)

// ErrClosed says that the Manager takes no more connections.
var ErrClosed = errors.New("connection: manager is closed")

// ErrDuplicate says that a connection of that id is there already.
var ErrDuplicate = errors.New("connection: id is in use")

// Manager is this gateway's indexes of its connections. Looking up takes no lock and allocates nothing. The two maps change together,
// under mu; outside of it they never disagree.
type Manager struct {
	// Immutable after NewManager.
	cfg *Config

	// Any goroutine reads; written under mu.
	userToConn sync.Map // protocol.UserID -> []*Connection, never changed once stored, never empty
	connToUser sync.Map // protocol.ConnID -> *Connection
	count      atomic.Int64
	users      atomic.Int64

	// Any goroutine.
	added   atomic.Uint64
	tallies [tallyShards]tally
	stacks  stacks

	// Guarded by mu.
	mu      sync.Mutex
	closed  bool
	owed    int           // for each connection added, its Remove and the end of its hooks
	stopped chan struct{} // closed with closed
	idle    chan struct{} // closed when closed and nothing is owed
}

// NewManager makes a Manager for connections that were upgraded with the same Config.
func NewManager(cfg *Config) *Manager {
	return &Manager{cfg: cfg, stopped: make(chan struct{}), idle: make(chan struct{})}
}

// Add enters the connection, which its caller then owes a Run and a Remove, and starts its OnStart hooks. It comes before Run and before
// any other goroutine knows the connection. On an error the connection is the caller's to Close and Run.
func (m *Manager) Add(c *Connection) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	if _, there := m.connToUser.Load(c.id); there {
		m.mu.Unlock()
		return ErrDuplicate
	}
	c.manager = m
	c.tally = &m.tallies[m.added.Add(1)%tallyShards]
	m.owed += 2
	m.count.Add(1)
	m.connToUser.Store(c.id, c)
	m.mu.Unlock()
	c.start()
	return nil
}

// Identify enters the connection into the index of users, under the user of its Identity. False: it has none, is entered already, or is
// no longer here.
func (m *Manager) Identify(c *Connection) bool {
	user := c.User()
	if user == "" {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.indexed || !m.has(c) {
		return false
	}
	old := m.ByUser(user)
	conns := make([]*Connection, len(old)+1)
	copy(conns, old)
	conns[len(old)] = c
	m.userToConn.Store(user, conns)
	if len(old) == 0 {
		m.users.Add(1)
	}
	c.indexed = true
	return true
}

// Remove takes the connection out of both indexes. Calling it again does nothing.
func (m *Manager) Remove(c *Connection) {
	m.mu.Lock()
	if !m.has(c) {
		m.mu.Unlock()
		return
	}
	m.connToUser.Delete(c.id)
	m.count.Add(-1)
	if c.indexed {
		c.indexed = false
		m.removeFromUser(c)
	}
	m.mu.Unlock()
	m.leave()
}

// removeFromUser takes c out of its user's connections. mu is held.
func (m *Manager) removeFromUser(c *Connection) {
	user := c.User()
	old := m.ByUser(user)
	if len(old) == 1 {
		m.userToConn.Delete(user)
		m.users.Add(-1)
		return
	}
	conns := make([]*Connection, 0, len(old)-1)
	for _, other := range old {
		if other != c {
			conns = append(conns, other)
		}
	}
	m.userToConn.Store(user, conns)
}

func (m *Manager) has(c *Connection) bool { return m.ByConn(c.id) == c }

// leave pays one of the two things a connection owes.
func (m *Manager) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owed--
	if m.closed && m.owed == 0 {
		close(m.idle)
	}
}

// ByUser returns the user's connections on this gateway; nil: none. The slice never changes and must not be changed.
func (m *Manager) ByUser(user protocol.UserID) []*Connection {
	if conns, ok := m.userToConn.Load(user); ok {
		return conns.([]*Connection)
	}
	return nil
}

// ByConn returns the connection of that id; nil: not on this gateway.
func (m *Manager) ByConn(id protocol.ConnID) *Connection {
	if c, ok := m.connToUser.Load(id); ok {
		return c.(*Connection)
	}
	return nil
}

// Count is the number of connections, in constant time.
func (m *Manager) Count() int { return int(m.count.Load()) }

// Users is the number of users with a connection here, in constant time.
func (m *Manager) Users() int { return int(m.users.Load()) }

// ForEach calls f for each connection until it returns false. Connections that come or go meanwhile may be missed or shown.
func (m *Manager) ForEach(f func(*Connection) bool) {
	m.connToUser.Range(func(_, c any) bool { return f(c.(*Connection)) })
}

// closeTick is the finest step in which CloseAll spreads.
const closeTick = 10 * time.Millisecond

// CloseAll closes every connection that is here now, evenly over the window, and returns when the last was told; 0: at once. Close ends
// the window early.
func (m *Manager) CloseAll(cause Cause, window time.Duration) {
	all := make([]*Connection, 0, m.Count())
	m.ForEach(func(c *Connection) bool {
		all = append(all, c)
		return true
	})
	if window > 0 && len(all) > 0 {
		all = m.closeSpread(all, cause, window)
	}
	for _, c := range all {
		c.Close(cause)
	}
}

// closeSpread closes evenly until the window is over, and returns those that were not reached.
func (m *Manager) closeSpread(all []*Connection, cause Cause, window time.Duration) []*Connection {
	ticker := time.NewTicker(closeTick)
	defer ticker.Stop()
	begin := time.Now()
	for done := 0; ; {
		due := int(float64(len(all)) * min(1, float64(time.Since(begin))/float64(window)))
		for ; done < due; done++ {
			all[done].Close(cause)
		}
		if done == len(all) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-m.stopped:
			return all[done:]
		}
	}
}

// Close takes no more connections, closes those that are here (KindDraining), and waits until each was removed and its hooks have run.
// When ctx ends first, the sockets that are left are cut off and the context's error is returned. Close may be called again, to wait on.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		close(m.stopped)
		if m.owed == 0 {
			close(m.idle)
		}
	}
	m.mu.Unlock()
	m.CloseAll(Cause{Kind: KindDraining}, 0)
	m.stacks.close()
	select {
	case <-m.idle:
		return nil
	case <-ctx.Done():
	}
	m.ForEach(func(c *Connection) bool {
		_ = c.nc.SetDeadline(expired)
		return true
	})
	return context.Cause(ctx)
}
