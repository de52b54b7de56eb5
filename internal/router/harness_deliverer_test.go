package router

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// A bench is a deliverer that runs only when the test lets it: envelopes and commands come in the order the test says. Its connections
// are real.
type bench struct {
	*deliverer
	t *testing.T
	g *gateway
}

func newBench(t *testing.T, tune ...func(*settings)) *bench {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	g := net.makeGateway("a", tune...)
	// Its sessions end with Detach, which must find a deliverer that has stopped.
	close(g.router.deliverers[0].stopped)
	return &bench{deliverer: newDeliverer(g.router, g.router.deliverers[0].group), t: t, g: g}
}

func (b *bench) attach(user protocol.UserID) (*client, *arrival) {
	b.t.Helper()
	c, a := b.g.hold(user)
	b.do(command{kind: commandAttach, address: a.address(), conn: a.conn})
	return c, a
}

func (b *bench) live(c *client, a *arrival, epoch string, offset uint64) {
	b.t.Helper()
	done := make(chan struct{})
	b.do(command{
		kind: commandLive, address: a.address(), conn: a.conn, at: protocol.Position{Epoch: epoch, Offset: offset}, done: done,
		frame: protocol.AppendRegistered(nil, &protocol.Registered{UserID: a.entry.User, ConnID: a.conn.ID(), Epoch: epoch, Offset: offset}),
	})
	<-done
	b.out.Flush()
	c.wantRegistered()
}

func (b *bench) detach(a *arrival) {
	b.do(command{kind: commandDetach, address: a.address(), conn: a.conn})
}

// stored opens an envelope with one stored message for a user.
func (b *bench) stored(user protocol.UserID, epoch string, offset uint64) {
	b.open(envelopeOf(b.number+1, record(user, epoch, offset)))
	b.out.Flush()
}

// record is one stored message as the send script writes it. Its id is its position.
func record(user protocol.UserID, epoch string, offset uint64) string {
	frame := protocol.AppendMessageHead(nil, &protocol.MessageHead{
		ID: fmt.Appendf(nil, "%s/%d", epoch, offset), From: "alice", To: []byte(user), Content: []byte(`0`), Ts: 1,
	})
	a := protocol.UserAddress(user)
	return fmt.Sprintf("%s %d %d %d\n%s%s", epoch, offset, len(a), len(frame), a, frame)
}

func envelopeOf(number uint64, records ...string) string {
	return "\x01m" + strconv.FormatUint(number, 10) + "\n" + strings.Join(records, "")
}
