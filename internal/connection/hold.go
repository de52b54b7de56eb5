package connection

import (
	"cmp"
	"time"
)

// Acquire takes a place in the in-flight window. Only the reader calls it, and it waits there until Release makes room: the socket is
// not read meanwhile, and TCP tells the client. False: the connection is closing, and nothing was taken.
func (c *Connection) Acquire() bool {
	limit := int32(c.cfg.InFlight)
	for !c.closing() {
		n := c.inFlight.Load()
		if limit <= 0 || n < limit {
			if c.inFlight.CompareAndSwap(n, n+1) {
				return true
			}
			continue
		}
		c.hold(limit)
	}
	return false
}

// hold waits until there may be room, or the connection closes. It announces itself, then looks again: a Release that came before the
// announcement is seen by the look, a later one sees the announcement; the same goes for Close. A wake-up left over from before only
// makes one round more.
func (c *Connection) hold(limit int32) {
	c.beginWaiting()
	if c.inFlight.Load() >= limit && !c.closing() {
		<-c.wake
	}
	c.endWaiting()
}

func (c *Connection) beginWaiting() {
	if c.wake == nil {
		c.wake = make(chan struct{}, 1)
	}
	c.waiting.Store(true)
}

func (c *Connection) endWaiting() {
	c.lastByte.Store(c.cfg.now()) // held, not silent
	c.waiting.Store(false)
}

// Came is what a client has sent: messages and control frames, and the bytes of their WebSocket frames.
type Came struct {
	Frames int
	Bytes  int64
}

// Came is what has come since it was last asked for, the message that is being handled included. Only the reader asks.
func (c *Connection) Came() Came {
	came := c.came
	c.came = Came{}
	return came
}

// pay has paid for what came, before more is read or the frame behind it is begun: control frames, and what a message has in bytes that are
// only headers. Its end may never come, and until then nobody else would count them.
func (c *Connection) pay() {
	if c.toll != nil && (c.came.Frames > 0 || c.inMessage && c.came.Bytes > c.cfg.plentyBytes()) && !c.closing() {
		c.toll()
	}
}

// plentyBytes is more than a message needs that isn't cut into bits.
func (cfg *Config) plentyBytes() int64 { return 2 * cmp.Or(cfg.MaxFrameBytes, pooledBytes) }

// Hold keeps the reader from reading on for that long: TCP tells the client. Only the reader calls it. False: the connection is closing,
// which ends it at once.
func (c *Connection) Hold(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	c.beginWaiting()
	defer c.endWaiting()
	for !c.closing() {
		select {
		case <-timer.C:
			return true
		case <-c.wake: // by Close, or by a Release, which is nothing to this
		}
	}
	return false
}

// Aside runs what the reader waits for besides its client, who counts as held meanwhile and not as silent. Only the reader calls it.
func (c *Connection) Aside(wait func()) {
	c.beginWaiting()
	defer c.endWaiting()
	wait()
}

// Release gives back what Acquire took. Any goroutine, once for each Acquire that returned true.
func (c *Connection) Release() {
	if c.inFlight.Add(-1) < 0 {
		panic("connection: Release without Acquire")
	}
	c.wakeReader()
}

func (c *Connection) wakeReader() {
	if !c.waiting.Load() {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}
