//go:build !secondpass

package router

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"chatgate/internal/protocol"
)

// state is what Redis or the channel says of a user: "online e1.3", or "" when Redis has no state of him.
func state(t *testing.T, user protocol.UserID, s string) protocol.UserState {
	t.Helper()
	if s == "" {
		return protocol.UserState{User: user, State: protocol.StateOffline}
	}
	word, version, _ := strings.Cut(s, " ")
	epoch, number, _ := strings.Cut(version, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return protocol.UserState{User: user, State: protocol.PresenceState(word), Epoch: epoch, N: n, Since: 7}
}

// watch is a client that was answered this state of a user.
func (b *bench) watch(c *client, a *arrival, user protocol.UserID, answered string) *Watch {
	b.t.Helper()
	w := NewWatch(user, a.conn)
	b.collect([]*Watch{w})
	b.answered(w, answered)
	return w
}

func (b *bench) answered(w *Watch, s string) {
	b.t.Helper()
	b.tell([]*Watch{w}, []protocol.UserState{state(b.t, w.user, s)})
	b.flush()
}

func (b *bench) flush() {
	b.publish()
	b.out.Flush()
}

// says opens an envelope with a state, and takes the next number.
func (b *bench) says(user protocol.UserID, s string) {
	b.t.Helper()
	x := state(b.t, user, s)
	b.open(fmt.Sprintf("\x01s%d\n%s\x1f%s\x1f%s\x1f%d\x1f%d", b.number+1, user, x.State, x.Epoch, x.N, x.Since))
	b.flush()
}

// wantDoubt wants a read of states to be under way.
func (b *bench) wantDoubt(want bool) {
	b.t.Helper()
	if b.deliverer.reading != want {
		b.t.Fatalf("states are being read: %t, want %t", !want, want)
	}
}

// readState is the answer to the read under way; the one of the real Redis doesn't count here.
func (b *bench) readState(user protocol.UserID, s string) {
	b.t.Helper()
	b.readStates(state(b.t, user, s))
}

func (b *bench) readStates(states ...protocol.UserState) {
	b.t.Helper()
	b.wantDoubt(true)
	for (<-b.commands).kind != commandStates { // feeds are compared with their logs, which isn't the matter here
	}
	b.do(command{kind: commandStates, states: states})
	b.flush()
}

// wantTold checks what a client was told of a user so far: "online e1.3", or "offline" without version.
func (b *bench) wantTold(c *client, user protocol.UserID, want ...string) {
	b.t.Helper()
	b.flush()
	eventually(b.t, fmt.Sprint(c.Name, " is told ", want), func() bool { return len(c.Told(string(user))) >= len(want) })
	// What else there is comes before this.
	mark := protocol.AppendHeartbeat(nil, 1, false)
	b.g.manager.ByConn(protocol.ConnID(c.registered.ConnID)).Send(mark)
	if _, err := c.Next("heartbeat", patience); err != nil {
		b.t.Fatal(err)
	}
	var got []string
	for _, s := range c.Told(string(user)) {
		got = append(got, strings.TrimSpace(s.State+" "+s.Version))
		if (s.LastSeen != 0) != (s.State == "offline" && (s.Version != "" || s.LastSeen == 7)) {
			b.t.Errorf("told %+v", s)
		}
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		b.t.Fatalf("%s was told %v of %s, want %v", c.Name, got, user, want)
	}
}

// watcher is a live client of the bench.
func (b *bench) watcher(user protocol.UserID) (*client, *arrival) {
	b.t.Helper()
	c, a := b.attach(user)
	b.live(c, a, "e1", 0)
	return c, a
}
