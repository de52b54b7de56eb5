package router

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// A client is the other end of a WebSocket.
type client struct {
	*gatewaytest.Client
	t          *testing.T
	user       protocol.UserID
	registered gatewaytest.Frame
}

func (g *gateway) dial(user protocol.UserID, query string) *client {
	g.t.Helper()
	c, err := gatewaytest.Dial("ws"+strings.TrimPrefix(g.server.URL, "http")+"/?user="+url.QueryEscape(string(user))+query, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	c.Name = string(user)
	g.t.Cleanup(c.Cut)
	return &client{Client: c, t: g.t, user: user}
}

// connect brings a user to this gateway.
func (g *gateway) connect(user protocol.UserID) *client {
	g.t.Helper()
	c := g.dial(user, "")
	c.wantRegistered()
	return c
}

// hold brings a user's socket to this gateway; attach, register and follow are the test's.
func (g *gateway) hold(user protocol.UserID) (*client, *arrival) {
	g.t.Helper()
	c := g.dial(user, "&held=1")
	return c, <-g.arrivals
}

func (c *client) wantRegistered() {
	c.t.Helper()
	f, err := c.Next("registered", patience)
	if err != nil {
		c.t.Fatal(err)
	}
	c.registered = f
}

// watch does for a client of this gateway what the handler does, and ends it with the test.
func (g *gateway) watch(c *client, users ...protocol.UserID) []*Watch {
	g.t.Helper()
	conn := g.manager.ByConn(protocol.ConnID(c.registered.ConnID))
	watches, addresses := make([]*Watch, len(users)), make([]protocol.Address, len(users))
	for i, u := range users {
		watches[i], addresses[i] = NewWatch(u, conn), protocol.WatchAddress(u)
	}
	ctx := context.Background()
	g.router.Collect(watches...)
	for _, s := range g.registry.Hold(ctx, addresses...) {
		if s.Err != nil {
			g.t.Fatal(s.Err)
		}
	}
	states, err := g.registry.States(ctx, users...)
	if err != nil {
		g.t.Fatal(err)
	}
	answer := make([]protocol.UserPresence, len(users))
	for i := range states {
		answer[i] = protocol.UserPresence{User: users[i], State: states[i].State, Version: states[i].Version()}
	}
	conn.Send(protocol.AppendPresence(nil, []byte("answer"), answer))
	g.router.Tell(watches, states)
	g.t.Cleanup(func() { g.unwatch(watches...) })
	return watches
}

func (g *gateway) unwatch(watches ...*Watch) {
	g.router.Unwatch(watches...)
	for _, w := range watches {
		g.registry.Release(protocol.WatchAddress(w.user))
	}
}

// leave closes the socket and waits until the gateway has forgotten it.
func (c *client) leave(g *gateway) {
	c.t.Helper()
	id := protocol.ConnID(c.registered.ConnID)
	c.Cut()
	eventually(c.t, "the connection is gone", func() bool { return g.manager.ByConn(id) == nil })
	g.settle()
	eventually(c.t, "the registry forgot the connection", func() bool {
		locations, err := g.registry.Get(context.Background(), c.user)
		return err == nil && !slices.ContainsFunc(locations, func(l presence.Location) bool { return l.Conn == id })
	})
}

// messages waits for so many messages and returns all that came.
func (c *client) messages(n int) []gatewaytest.Frame {
	c.t.Helper()
	if err := c.WaitCount(n, patience, "message"); err != nil {
		c.t.Fatalf("%v\n%s", err, c.Story(5))
	}
	return c.Notes().Received
}

// wantMessages checks that exactly these came, in this order: "id" or "id@offset". A last message from g shows that nothing came after
// them: a channel is FIFO.
func (c *client) wantMessages(g *gateway, want ...string) []gatewaytest.Frame {
	c.t.Helper()
	mark := g.send("marker", c.user, newID("mark"), `"mark"`)
	mark.want(protocol.StatusRouted)
	var got []gatewaytest.Frame
	eventually(c.t, "the marker comes to "+c.Name, func() bool {
		got = c.Notes().Received
		return len(got) > 0 && got[len(got)-1].ID == string(mark.ID)
	})
	got = slices.DeleteFunc(got, func(f gatewaytest.Frame) bool { return f.Sender() == "marker" })
	var names []string
	for i, f := range got {
		name := f.ID
		if i < len(want) && strings.Contains(want[i], "@") {
			name += "@" + strconv.FormatUint(f.Offset, 10)
		}
		names = append(names, name)
	}
	if !slices.Equal(names, want) {
		c.t.Fatalf("%s got %v, want %v", c.Name, names, want)
	}
	return got
}

// wantNoHoles checks that offsets are 1, 2, 3, … and that nothing came twice.
func wantNoHoles(t *testing.T, who string, offsets []uint64, from uint64) {
	t.Helper()
	for i, o := range offsets {
		if o != from+uint64(i) {
			t.Fatalf("%s: offset %d stands at place %d, want %d", who, o, i, from+uint64(i))
		}
	}
}
