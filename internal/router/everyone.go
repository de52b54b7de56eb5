package router

import (
	"context"
	"errors"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
)

// everyone hands messages for everyone to all registered connections of this
// gateway, beside the deliverers: with many connections that takes longer than
// anybody should wait for his own message.
type everyone struct {
	queue[string] // of frames without a position

	// Owned by its one worker.
	wire []byte
	out  connection.Batch
}

func newEveryone(r *Router) *everyone {
	e := &everyone{queue: queue[string]{router: r, length: everyoneWaits, workers: 1}}
	e.work = e.deliver
	return e
}

const (
	// everyoneWaits is how many messages for everyone may wait on a gateway; what
	// comes then is dropped there, and counted.
	everyoneWaits = 64
	// everyoneSlice is how many connections are appended to between two flushes.
	everyoneSlice = 64
)

// ErrTooLarge says that a frame is larger than clients were told to expect.
var ErrTooLarge = errors.New("router: frame too large")

// Reach says to whom a message for everyone was handed.
type Reach struct {
	Gateways int // living ones that received it
	// Missing are gateways that should be alive and didn't: just killed, most
	// likely.
	Missing []protocol.GatewayID
	// Unknown are those of which Redis did not say whether they have.
	Unknown []protocol.GatewayID
}

// Broadcast hands a message to every registered connection of the cluster: one
// envelope for each living gateway, no log and no number, so at most once. A
// connection that comes meanwhile may get it or not. The error is ErrTooLarge, or
// that of Redis, and then nobody got it. Who repeats it because of gateways that are
// unknown may tell some people twice.
func (r *Router) Broadcast(ctx context.Context, m *protocol.MessageHead) (Reach, error) {
	envelope := protocol.AppendEveryone(nil, m)
	// The version and the kind come off, the tail of the frame is still to come.
	if len(protocol.AppendMessageTail(envelope[2:], "", 0)) > protocol.MaxFrameBytes {
		return Reach{}, ErrTooLarge
	}
	living, err := r.registry.Living(ctx)
	if err != nil {
		return Reach{}, err
	}
	parcels := make([]*parcel, len(living))
	for i, gw := range living {
		parcels[i] = &parcel{group: r.controlGroup(gw), gateway: gw, payload: envelope}
	}
	_ = r.publish(ctx, parcels) // each parcel says what became of it
	var reach Reach
	for _, p := range parcels {
		switch {
		case p.lost:
			reach.Unknown = append(reach.Unknown, p.gateway)
		case p.receivers > 0:
			reach.Gateways++
		default:
			reach.Missing = append(reach.Missing, p.gateway)
		}
	}
	if len(reach.Unknown) == 0 {
		r.counts.broadcasts.Add(1)
	}
	return reach, nil
}

// deliver builds the frame once; each connection costs one append.
func (e *everyone) deliver(frame string) {
	e.wire = appendWire(e.wire[:0], "", 0, frame)
	n := 0
	e.router.cfg.Everyone(func(c *connection.Connection) bool {
		if e.out.AppendFrame(c, e.wire) {
			e.router.counts.delivered.Add(1)
		}
		if n++; n%everyoneSlice == 0 {
			e.out.Flush()
		}
		return true
	})
	e.out.Flush()
}
