package router

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/history"
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
	b.enter(a)
	return c, a
}

// enter is Attach, done at once.
func (b *bench) enter(a *arrival) {
	a.stay.Store(&Stay{address: a.address(), conn: a.conn})
	b.do(command{kind: commandAttach, address: a.address(), stay: a.stay.Load()})
}

// goLive is what Follow does at the end of its way: false when the log has to be read first.
func (b *bench) goLive(a *arrival, epoch string, offset uint64) bool {
	answer := make(chan bool, 1)
	b.do(command{
		kind: commandLive, address: a.address(), stay: a.stay.Load(), at: protocol.Position{Epoch: epoch, Offset: offset}, answer: answer,
	})
	b.out.Flush()
	return <-answer
}

// live makes a member live that has nothing to read.
func (b *bench) live(c *client, a *arrival, epoch string, offset uint64) {
	b.t.Helper()
	a.conn.Send(protocol.AppendRegistered(nil, &protocol.Registered{UserID: a.entry.User, ConnID: a.conn.ID(), Epoch: epoch, Offset: offset}))
	if !b.goLive(a, epoch, offset) {
		b.t.Fatalf("%s is not live at %s/%d", c.Name, epoch, offset)
	}
	c.wantRegistered()
}

// read is the answer of the log for a feed: so many messages of an epoch above the feed's position, up to the top. It returns whether the
// feed is whole.
func (b *bench) read(user protocol.UserID, log history.Log, more bool, offsets ...uint64) bool {
	a := protocol.UserAddress(user)
	page := history.Page{Log: log, More: more}
	for _, o := range offsets {
		page.Messages = append(page.Messages, history.Message{Offset: o, Frame: frameOf(user, log.Epoch, o)})
	}
	var at, next protocol.Position
	var repairing *waiting
	if f := b.feeds[a]; f != nil {
		at, repairing = f.position(), f.repairing
	}
	answer := make(chan bool, 1)
	b.do(command{kind: commandRepair, address: a, repairing: repairing, at: at, page: &page, next: &next, answer: answer})
	b.out.Flush()
	return <-answer
}

func (b *bench) detach(a *arrival) {
	b.do(command{kind: commandDetach, address: a.address(), stay: a.stay.Load()})
}

// stored opens an envelope with one stored message for a user.
func (b *bench) stored(user protocol.UserID, epoch string, offset uint64) {
	b.open(envelopeOf(b.number+1, record(user, epoch, offset)))
	b.out.Flush()
}

// record is one stored message as the send script writes it.
func record(user protocol.UserID, epoch string, offset uint64) string {
	frame, a := frameOf(user, epoch, offset), protocol.UserAddress(user)
	return fmt.Sprintf("%s %d %d %d\n%s%s", epoch, offset, len(a), len(frame), a, frame)
}

// frameOf is a message as it is stored. Its id is its position.
func frameOf(user protocol.UserID, epoch string, offset uint64) string {
	return string(protocol.AppendMessageHead(nil, &protocol.MessageHead{
		ID: fmt.Appendf(nil, "%s/%d", epoch, offset), From: "alice", To: []byte(user), Content: []byte(`0`), Ts: 1,
	}))
}

func envelopeOf(number uint64, records ...string) string {
	return "\x01m" + strconv.FormatUint(number, 10) + "\n" + strings.Join(records, "")
}

// logOf is a log of which everything is kept.
func logOf(epoch string, top uint64) history.Log {
	return history.Log{Epoch: epoch, First: 1, Top: top}
}
