package presence

import (
	"context"
	_ "embed"
	"strconv"
	"time"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

//go:embed lua/remove.lua
var removeSource string

// departure is one connection that leaves the registry.
type departure struct {
	entry *Entry
	end   End
}

// Remove takes a connection out of the registry, in the background; end is
// stamped on its disconnect event. An entry that was never registered is left
// alone. What Redis doesn't take is found by the pulse, when the index says more
// than is held, or reaped with this gateway.
func (r *Registry) Remove(e *Entry, end End) {
	e.ended.CompareAndSwap(0, time.Now().UnixMilli())
	e.end.CompareAndSwap(nil, &end) // before life says that it is there
	before := e.life.Swap(entryGone)
	if before == entryGone {
		return
	}
	g := r.groupOf(e.User)
	if before == entryHeld {
		g.held.Add(-1)
	}
	g.removes.add(&departure{entry: e, end: end})
}

func (r *Registry) runRemoves(g *group, b []*departure) {
	keys := r.removeKeys(g, r.cfg.Gateway)
	args := []any{
		string(r.cfg.Gateway), keyspace.ChannelPrefix(g.name), r.cfg.Grace.Milliseconds(),
		protocol.NewEpoch(), r.cfg.EventsKept, "",
	}
	for _, d := range b {
		e, fence, lived := d.entry, "", ""
		if f := d.entry.Fence(); f != 0 {
			fence = strconv.FormatUint(f, 10)
		}
		if ended := e.ended.Load(); ended != 0 { // Redis may hear of it much later
			lived = strconv.FormatInt(max(0, ended-e.Since), 10)
		}
		keys = append(keys, userKeys(e.User)...)
		// Its last meta may not have reached Redis yet.
		text, number := e.metaNow()
		if number == 0 {
			text = ""
		}
		args = append(args, string(e.Conn), fence, string(e.User), d.end.Cause, lived, d.end.Kind, d.end.Code, text)
	}
	if _, err := r.run(context.Background(), r.remove, keys, args); err != nil {
		r.retryRemoves(g, b)
		return
	}
	r.calls.removed.Add(uint64(len(b)))
}

// retryRemoves puts departures back while Redis is away. They wait for the next
// pulse that succeeds rather than for a timer, so an outage costs nothing. It may
// be long, and clients try again and again: what is too many is forgotten here
// and found later as a ghost.
func (r *Registry) retryRemoves(g *group, b []*departure) {
	g.removes.park(b, max(256, maxParked/len(r.groups)))
}

// maxParked bounds the removals that wait for Redis, a few MB.
const maxParked = 16384

func (r *Registry) removeKeys(g *group, owner protocol.GatewayID) []string {
	return []string{
		keyspace.Leases(g.name), keyspace.Line(g.name), keyspace.Own(g.name, owner),
		keyspace.Offlines(g.name), keyspace.Events(g.name), keyspace.Tombstones(g.name),
		keyspace.Numbers(g.name), keyspace.Snapshots(g.name),
	}
}

func userKeys(u protocol.UserID) []string {
	return []string{
		keyspace.Conns(u), keyspace.Holders(protocol.UserAddress(u)), keyspace.State(u),
		keyspace.Holders(protocol.WatchAddress(u)),
	}
}
