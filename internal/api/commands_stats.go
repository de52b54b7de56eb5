package api

import "sync/atomic"

type commandCounts struct {
	done, refused, dead, left, takenOver, failedCalls atomic.Uint64

	length, inHand, oldest atomic.Int64 // as the stream last said
}

// CommandStats tells of commands. Counters only grow, and are this gateway's; the others are of the stream, and the same on all.
type CommandStats struct {
	On            bool  `json:"on"`
	Backlog       int64 `json:"backlog"` // not done, those in hand among them
	InHand        int64 `json:"in_hand"`
	OldestSeconds int64 `json:"oldest_seconds"`

	Done        uint64 `json:"done"`
	Refused     uint64 `json:"refused"`    // what was wrong with them was answered
	Dead        uint64 `json:"dead"`       // given up
	Left        uint64 `json:"left"`       // could not be done, and are tried again later
	TakenOver   uint64 `json:"taken_over"` // from a gateway that died or could not do them
	FailedCalls uint64 `json:"failed_calls"`
}

// Stats returns the figures.
func (c *Commands) Stats() CommandStats {
	n := &c.counts
	return CommandStats{
		On: len(c.cfg.Scopes) > 0, Backlog: n.length.Load(), InHand: n.inHand.Load(), OldestSeconds: n.oldest.Load() / 1000,
		Done: n.done.Load(), Refused: n.refused.Load(), Dead: n.dead.Load(), Left: n.left.Load(), TakenOver: n.takenOver.Load(),
		FailedCalls: n.failedCalls.Load(),
	}
}
