package connection

import (
	"fmt"

	"chatgate/internal/protocol"
)

// Check verifies the invariants of the indexes, for the debug endpoint. Registering waits while it looks at every connection.
func (m *Manager) Check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.check()
}

// check verifies that the two indexes and the counts agree. It is called with mu held, or while nothing changes.
func (m *Manager) check() error {
	if err := m.checkConns(); err != nil {
		return err
	}
	return m.checkUsers()
}

// checkConns looks from each connection to its user.
func (m *Manager) checkConns() (err error) {
	count := 0
	m.connToUser.Range(func(key, value any) bool {
		id, c := key.(protocol.ConnID), value.(*Connection)
		count++
		listed := 0
		for _, other := range m.ByUser(c.User()) {
			if other == c {
				listed++
			}
		}
		switch {
		case id != c.id:
			err = fmt.Errorf("connection %s is entered as %s", c.id, id)
		case c.manager != m:
			err = fmt.Errorf("connection %s is of another manager", c.id)
		case c.indexed && listed != 1:
			err = fmt.Errorf("connection %s is listed %d times for its user", c.id, listed)
		case !c.indexed && listed != 0:
			err = fmt.Errorf("connection %s is listed for its user, but not marked so", c.id)
		case c.inFlight.Load() < 0:
			err = fmt.Errorf("connection %s released more than it acquired", c.id)
		}
		return err == nil
	})
	if err == nil && count != m.Count() {
		err = fmt.Errorf("count is %d, connections are %d", m.Count(), count)
	}
	return err
}

// checkUsers looks from each user to the connections.
func (m *Manager) checkUsers() (err error) {
	users := 0
	m.userToConn.Range(func(key, value any) bool {
		user, conns := key.(protocol.UserID), value.([]*Connection)
		users++
		if len(conns) == 0 {
			err = fmt.Errorf("a user is listed without connections")
		}
		for _, c := range conns {
			switch {
			case !m.has(c):
				err = fmt.Errorf("connection %s is listed for a user, but not entered", c.id)
			case c.User() != user:
				err = fmt.Errorf("connection %s is listed for another user", c.id)
			}
		}
		return err == nil
	})
	if err == nil && users != m.Users() {
		err = fmt.Errorf("users count is %d, users are %d", m.Users(), users)
	}
	return err
}
