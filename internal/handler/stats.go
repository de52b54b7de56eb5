package handler

import (
	"sync/atomic"

	"chatgate/internal/protocol"
)

// counts counts what clients sent and what was refused.
type counts struct {
	frames, foreignOrigins, failedUpgrades, cursors atomic.Uint64
	errors                                          [len(protocol.Errors)]atomic.Uint64
}

func (c *counts) refused(code protocol.ErrorCode) {
	for i := range protocol.Errors {
		if protocol.Errors[i].Code == code {
			c.errors[i].Add(1)
			return
		}
	}
}

// Stats counts what the clients of this gateway did since it was made.
type Stats struct {
	Frames, ForeignOrigins, FailedUpgrades uint64
	Errors                                 map[protocol.ErrorCode]uint64 // every code
}

// Stats returns the counters.
func (h *Handler) Stats() Stats {
	s := Stats{
		Frames: h.counts.frames.Load(), ForeignOrigins: h.counts.foreignOrigins.Load(),
		FailedUpgrades: h.counts.failedUpgrades.Load(), Errors: make(map[protocol.ErrorCode]uint64, len(protocol.Errors)),
	}
	for i := range protocol.Errors {
		s.Errors[protocol.Errors[i].Code] = h.counts.errors[i].Load()
	}
	return s
}
