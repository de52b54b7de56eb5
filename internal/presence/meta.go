package presence

import (
	"context"
	"strconv"
	"strings"

	"chatgate/internal/protocol"
)

// The meta of a connection is its gateway's to say: the registry has a copy, for the
// event of its end should the gateway be killed, and for whoever looks. So a change
// is made here first, and is said to Redis with its number until Redis is known to
// have it: at once, and with every refresh, where it costs a failover or an emptied
// Redis nothing to lose it.

// meta is one that was set after the connection registered.
type meta struct {
	number uint64 // 1, 2, 3, … for each connection
	text   string
}

// MetaNow is the meta of the connection: what it registered with, or was set last.
func (e *Entry) MetaNow() string {
	if m := e.meta.Load(); m != nil {
		return m.text
	}
	return e.Meta
}

// metaNow is MetaNow, and which one it is: 0 is that of the register.
func (e *Entry) metaNow() (text string, number uint64) {
	if m := e.meta.Load(); m != nil {
		return m.text, m.number
	}
	return e.Meta, 0
}

// fenceAndMeta is how refresh.lua is told of an entry: a connection whose meta never
// changed costs nothing beside its fence.
func (e *Entry) fenceAndMeta() any {
	m := e.meta.Load()
	if m == nil {
		return e.Fence()
	}
	return strconv.FormatUint(e.Fence(), 10) + "\x1f" + strconv.FormatUint(m.number, 10) + "\x1f" + m.text
}

// rebinding is a changed meta on its way to Redis.
type rebinding struct {
	entry *Entry
	told  chan error
}

// SetMeta binds another meta to a registered connection: a JSON object of at most
// MaxMetaBytes. One goroutine at a time may do that for an entry. It has it when
// SetMeta returns; what Redis said of it comes on the channel, within Timeout: nil,
// ErrEnding, or ErrUnavailable. Then it will hear of it with the next refresh, or
// with the end of the connection.
func (r *Registry) SetMeta(e *Entry, text string) <-chan error {
	q := &rebinding{entry: e, told: make(chan error, 1)}
	switch now, number := e.metaNow(); {
	case text != now:
		e.meta.Store(&meta{number: number + 1, text: text})
	case number == 0: // Redis has it since it registered
		q.told <- nil
		return q.told
	}
	switch {
	case e.life.Load() != entryHeld:
		q.told <- ErrEnding
	case !r.Answers(protocol.UserAddress(e.User)):
		q.told <- ErrUnavailable
	default:
		r.groupOf(e.User).metas.add(q)
	}
	return q.told
}

func (r *Registry) runMetas(g *group, b []*rebinding) {
	entries := make([]*Entry, len(b))
	for i, q := range b {
		entries[i] = q.entry
	}
	lines, err := r.askAbout(context.Background(), g, entries, 0)
	if err != nil {
		// What waits behind a call that Redis didn't answer would wait as long again.
		for _, q := range append(b, g.metas.drain()...) {
			q.told <- err
		}
		return
	}
	for i, q := range b {
		r.judge(q.entry, lines[i])
		switch {
		case strings.HasPrefix(lines[i], "o"):
			q.told <- nil
		case lines[i] == "a":
			q.told <- ErrUnavailable // it is being registered again, with this meta
		default:
			q.told <- ErrEnding
		}
	}
}
