package router

import (
	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// feed is one address on this gateway: its local connections and the last
// position that was given to them. It belongs to its group's deliverer.
type feed struct {
	epoch   string
	offset  uint64
	members []member
}

// member is one connection of a feed. While it is being attached (waiting is not
// nil) live messages are kept for it, until the position it starts at is known.
type member struct {
	conn    *connection.Connection
	waiting *waiting
	// after is the offset this member started behind, when the feed was not there
	// yet: what is not above it was stored before the member came. 0: passed.
	after uint64
}

// waiting holds messages that arrived between attaching and going live.
type waiting struct {
	bytes    int
	overflow bool
	messages []waitingMessage
}

type waitingMessage struct {
	epoch  string
	offset uint64
	frame  string
}

func (f *feed) find(c *connection.Connection) int {
	for i := range f.members {
		if f.members[i].conn == c {
			return i
		}
	}
	return -1
}

// attach begins to keep messages of an address for a connection. It must come
// before the connection is entered in the registry, so that nothing published to
// this gateway for it is missed. Nothing is delivered before Live.
func (r *Router) Attach(a protocol.Address, c *connection.Connection) {
	r.command(a, command{kind: commandAttach, address: a, conn: c})
}

// Live lets an attached connection have its messages: first the frame (its
// `registered`), then what came since at, then each as it arrives. It returns when
// the frame is in the outbox, so answers to later frames come behind it.
func (r *Router) Live(a protocol.Address, c *connection.Connection, at protocol.Position, frame []byte) {
	done := make(chan struct{})
	r.command(a, command{kind: commandLive, address: a, conn: c, at: at, frame: frame, done: done})
	select {
	case <-done:
	case <-r.deliverers[r.cfg.Layout.GroupIndex(a)].stopped:
	}
}

// Detach ends a connection's part in an address.
func (r *Router) Detach(a protocol.Address, c *connection.Connection) {
	r.command(a, command{kind: commandDetach, address: a, conn: c})
}

func (r *Router) command(a protocol.Address, cmd command) {
	d := r.deliverers[r.cfg.Layout.GroupIndex(a)]
	select {
	case d.commands <- cmd:
	case <-d.stopped:
	}
}

type commandKind uint8

const (
	commandAttach commandKind = iota
	commandLive
	commandDetach
)

// command changes a feed, in order with what is delivered.
type command struct {
	kind    commandKind
	address protocol.Address
	conn    *connection.Connection
	at      protocol.Position
	frame   []byte
	done    chan struct{} // of commandLive; closed when it is done
}

func (d *deliverer) do(cmd command) {
	f := d.feeds[cmd.address]
	switch cmd.kind {
	case commandAttach:
		if f == nil {
			f = &feed{}
			d.feeds[cmd.address] = f
		}
		f.members = append(f.members, member{conn: cmd.conn, waiting: &waiting{}})
	case commandLive:
		defer close(cmd.done)
		if f == nil {
			return
		}
		if i := f.find(cmd.conn); i >= 0 && f.members[i].waiting != nil {
			d.live(f, &f.members[i], cmd)
		}
	case commandDetach:
		if f == nil {
			return
		}
		if i := f.find(cmd.conn); i >= 0 {
			last := len(f.members) - 1
			f.members[i] = f.members[last]
			f.members[last] = member{}
			f.members = f.members[:last]
		}
		if len(f.members) == 0 {
			delete(d.feeds, cmd.address)
		}
	}
}

// live hands a member what it waited for. The position came from the script that
// entered it in the registry; what was stored later was published here, so the
// two leave no hole.
func (d *deliverer) live(f *feed, m *member, cmd command) {
	w := m.waiting
	m.waiting = nil
	alone := len(f.members) == 1 || f.epoch == ""
	if alone {
		f.epoch, f.offset = cmd.at.Epoch, cmd.at.Offset
	}
	if f.epoch == cmd.at.Epoch && f.offset < cmd.at.Offset {
		m.after = cmd.at.Offset
	}
	d.out.Append(m.conn, cmd.frame)
	for i := range w.messages {
		x := &w.messages[i]
		if x.epoch == "" || x.epoch == cmd.at.Epoch && x.offset <= cmd.at.Offset {
			continue
		}
		d.out.AppendFrame(m.conn, d.frame(x.epoch, x.offset, x.frame))
		if alone {
			f.epoch, f.offset = x.epoch, x.offset
		}
		d.router.counts.delivered.Add(1)
	}
	if w.overflow {
		// It came while more arrived than may wait: a resume fills the hole.
		m.conn.Close(connection.Cause{Kind: connection.KindSlowConsumer})
	}
}
