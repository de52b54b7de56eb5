package handler

import (
	"context"
	"sync"
	"time"

	"chatgate/internal/history"
	"chatgate/internal/protocol"
)

// cursors collects what devices confirm: only the last word of each matters, so a
// client may confirm every message.
type cursors struct {
	mu      sync.Mutex
	pending map[device]words // guarded by mu
}

// words are what a device confirmed since the last call: the furthest of its
// epoch, and the last. The furthest may be beyond what the log reaches to, which
// only Redis can say; then the last one still counts.
type words struct{ furthest, last history.Cursor }

type device struct {
	address protocol.Address
	user    protocol.UserID
	id      protocol.DeviceID
}

func (c *cursors) note(x history.Cursor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		c.pending = make(map[device]words)
	}
	k := device{x.Address, x.User, x.Device}
	w := c.pending[k]
	if w.furthest.At.Epoch != x.At.Epoch || w.furthest.At.Offset <= x.At.Offset {
		w.furthest = x
	}
	w.last = x
	c.pending[k] = w
}

// cursorBatch is how many cursors one call moves at most, give or take one.
const cursorBatch = 256

func (c *cursors) take() []history.Cursor {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]history.Cursor, 0, min(len(c.pending), cursorBatch))
	for k, w := range c.pending {
		if len(out) >= cursorBatch {
			break
		}
		out = append(out, w.furthest)
		if w.last != w.furthest {
			out = append(out, w.last)
		}
		delete(c.pending, k)
	}
	return out
}

// Run writes down what devices confirmed, each CursorWindow, until ctx ends and
// everything is written. What Redis doesn't take is dropped: such a device gets
// some messages a second time, and knows them by their ids.
func (h *Handler) Run(ctx context.Context) error {
	tick := time.NewTicker(h.cfg.CursorWindow)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			h.flushCursors()
			return nil
		case <-tick.C:
			h.flushCursors()
		}
	}
}

func (h *Handler) flushCursors() {
	for batch := h.cursors.take(); len(batch) > 0; batch = h.cursors.take() {
		moved, err := h.history.Keep(context.Background(), batch...)
		h.counts.cursors.Add(uint64(moved))
		if err != nil {
			h.cfg.Log.Warn("cursors not written", "count", len(batch), "err", err)
			return
		}
	}
}
