package hook

import (
	"sync/atomic"
	"time"
)

// counts is what a carrier did since New, and where it stands.
type counts struct {
	delivered, filtered, refused, again, lost, failures, failedCalls atomic.Uint64

	groups, backlog, oldest atomic.Int64
}

// measure notes where the groups stand that this gateway carries. It is called by
// run, which owns them.
func (c *carrier) measure() {
	var groups, backlog, oldest int64
	for _, h := range c.hauls {
		if !h.held {
			continue
		}
		groups++
		backlog += max(0, int64(h.top)-int64(h.acked)-int64(len(h.acks)))
		if len(h.batch) > 0 && (oldest == 0 || h.batch[0].Ms < oldest) {
			oldest = h.batch[0].Ms
		}
	}
	c.counts.groups.Store(groups)
	c.counts.backlog.Store(backlog)
	c.counts.oldest.Store(oldest)
}

// SinkStats is one sink as this gateway sees it. Counters only grow.
type SinkStats struct {
	Name string `json:"name"`
	// Groups is how many groups of events this gateway carries to it. Backlog is how
	// many of their events the sink has not taken, OldestSeconds how old the first is.
	Groups        int64 `json:"groups"`
	Backlog       int64 `json:"backlog"`
	OldestSeconds int64 `json:"oldest_seconds"`
	// Failing counts the failures since the last success; 0: all is well.
	Failing int `json:"failing"`

	Delivered   uint64 `json:"delivered"`    // the sink took them
	Filtered    uint64 `json:"filtered"`     // not meant for it
	Refused     uint64 `json:"refused"`      // it will never take them, and they are logged
	Again       uint64 `json:"read_again"`   // perhaps delivered twice
	Lost        uint64 `json:"lost"`         // fell out of retention before it took them
	Failures    uint64 `json:"failures"`     // attempts that ended in an error
	FailedCalls uint64 `json:"failed_calls"` // to Redis
}

// Stats returns the figures of each sink, in the order of the configuration.
func (h *Hooks) Stats() []SinkStats {
	all := make([]SinkStats, len(h.carriers))
	for i, c := range h.carriers {
		n := &c.counts
		all[i] = SinkStats{
			Name: c.name, Groups: n.groups.Load(), Backlog: n.backlog.Load(), Failing: c.gate.closed(),
			Delivered: n.delivered.Load(), Filtered: n.filtered.Load(), Refused: n.refused.Load(), Again: n.again.Load(),
			Lost: n.lost.Load(), Failures: n.failures.Load(), FailedCalls: n.failedCalls.Load(),
		}
		if ms := n.oldest.Load(); ms > 0 {
			all[i].OldestSeconds = max(0, int64(time.Since(time.UnixMilli(ms)).Seconds()))
		}
	}
	return all
}
