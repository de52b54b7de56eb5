package connection

import (
	"context"
	"time"
)

const (
	maxSweep = time.Second
	minSweep = 10 * time.Millisecond
)

// Run sweeps until ctx ends. It is the one timer of all connections.
func (m *Manager) Run(ctx context.Context) error {
	interval := m.interval()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	last := m.cfg.now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := m.cfg.now()
		m.sweep(last, now, interval)
		last = now
	}
}

// sweep checks, unless this process was paused since the last sweep: then the silence was ours, and what clients sent meanwhile lies in
// the kernel. The readers get until the next sweep to read it.
func (m *Manager) sweep(last, now instant, interval time.Duration) {
	if time.Duration(now-last) <= 2*interval+maxSweep {
		m.CheckHealth(timeOf(now))
	}
}

// interval is a tenth of the shortest limit, so that no limit is exceeded by more than that.
func (m *Manager) interval() time.Duration {
	shortest := 10 * maxSweep
	for _, limit := range []time.Duration{
		m.cfg.PingAfter, m.cfg.PongWait, m.cfg.SilenceTimeout, m.cfg.MessageTimeout, m.cfg.RegisterTimeout, m.cfg.MaxAge,
	} {
		if limit > 0 {
			shortest = min(shortest, limit)
		}
	}
	return max(shortest/10, minSweep)
}

// CheckHealth holds every connection against the limits of time, as of now: first it collects those that need something, then it acts.
// Nothing of it waits for a client.
func (m *Manager) CheckHealth(now time.Time) {
	type ending struct {
		c    *Connection
		kind Kind
	}
	var pings []*Connection
	var ends []ending
	at, wall := instantOf(now), m.cfg.wall()
	m.ForEach(func(c *Connection) bool {
		switch kind, ping := c.judge(at, wall); {
		case kind != KindUnknown:
			ends = append(ends, ending{c, kind})
		case ping:
			pings = append(pings, c)
		}
		return true
	})
	for _, e := range ends {
		e.c.Close(Cause{Kind: e.kind})
	}
	for _, c := range pings {
		c.ping(at)
	}
}

// judge returns the limit that the connection exceeds, or whether it should be pinged. It changes nothing.
func (c *Connection) judge(now instant, wall int64) (end Kind, ping bool) {
	if c.closing() {
		return KindUnknown, false // its read deadline ends it
	}
	cfg := c.cfg
	if passed(now, c.since, cfg.MaxAge) {
		return KindMaxAge, false
	}
	if c.expired(wall) {
		return KindTokenExpired, false
	}
	known := c.identity.Load() != nil
	if c.busy.Load() && (known || !c.waiting.Load()) {
		// Nobody listens to it, held or not: its silence is ours. But who is held before he has registered has sent much else in its place.
		return KindUnknown, false
	}
	if !known && passed(now, c.registerFrom.Load(), cfg.RegisterTimeout) {
		return KindRegisterTimeout, false
	}
	if began := c.messageBegan.Load(); began != 0 && passed(now, began, cfg.MessageTimeout) {
		return KindMessageTimeout, false
	}
	if passed(now, c.lastPing.Load(), cfg.SilenceTimeout) {
		return KindHeartbeatTimeout, false
	}
	heard := c.lastByte.Load()
	if sent := c.pingSent.Load(); sent != 0 && heard < sent {
		if passed(now, sent, cfg.PongWait) {
			return KindPingTimeout, false
		}
		return KindUnknown, false
	}
	return KindUnknown, passed(now, heard, cfg.PingAfter)
}

// passed reports whether the limit, if there is one, has run out since from.
func passed(now, from instant, limit time.Duration) bool {
	return limit > 0 && now-from >= int64(limit)
}

// ping asks the client for a sign of life.
func (c *Connection) ping(now instant) {
	c.pingSent.Store(now)
	c.appendPing()
	c.Flush()
	c.tally.ping()
}
