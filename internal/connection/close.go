package connection

import (
	"crypto/tls"
	"net"
	"time"
	"unicode/utf8"
)

// expired is a deadline in the past.
var expired = time.Unix(1, 0)

// Close ends the connection; the first cause wins, and later calls do nothing. (A socket that failed under a client's goodbye ends by that:
// see farewell.) It never waits. The client gets a closing frame and a
// close frame, where its socket still takes them, and has CloseWait to answer; then Run returns. A client that can't be reached any more
// (KindNetwork, KindSlowConsumer) is not waited for, and one that left a ping unanswered has been waited for.
func (c *Connection) Close(cause Cause) {
	cause = cause.complete()
	if !c.cause.CompareAndSwap(nil, &cause) {
		return
	}
	c.wakeReader()
	if cause.abrupt() {
		c.giveUp(&cause)
		return
	}
	c.mu.Lock()
	if !c.closed {
		c.appendClose(&cause)
		c.closed = true
	}
	c.mu.Unlock()
	_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.CloseWait))
	c.Flush()
	if cause.Kind == KindPingTimeout {
		_ = c.nc.SetReadDeadline(expired)
	}
}

// giveUp frees what the outbox holds and wakes whoever reads or writes. A slow consumer whose socket was not found full, because its
// outbox was never flushed, gets the closing frame in one attempt.
func (c *Connection) giveUp(cause *Cause) {
	c.mu.Lock()
	var last *chunk
	if cause.Kind == KindSlowConsumer && c.raw != nil && c.current == nil && !c.closed {
		c.appendClose(cause)
		last = c.take()
	}
	c.abort()
	c.mu.Unlock()
	if last != nil {
		c.tryLast(last)
	}
	// The deadlines, not nc.Close: closing a TLS connection may wait. finish closes.
	_ = c.nc.SetDeadline(expired)
}

// tryLast writes what the socket takes of ch, the current chunk, and forgets the rest.
func (c *Connection) tryLast(ch *chunk) {
	err := c.raw.Write(ch.try)
	c.tally.wrote(ch.off)
	whole := err == nil && len(ch.rest()) == 0
	if whole {
		c.tally.framesOut(ch.frames)
	} else {
		c.tally.discarded(ch.frames)
	}
	c.mu.Lock()
	c.current = nil
	c.reset = c.reset || !whole
	c.mu.Unlock()
	ch.recycle()
}

// cut shortens s to at most n bytes, between characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// shutWrite shuts the sending side of the socket once everything is written.
func (c *Connection) shutWrite() {
	c.mu.Lock()
	c.halfClose = true
	now := c.current == nil && c.pending == nil
	c.mu.Unlock()
	if now {
		c.closeWrite()
	}
}

func (c *Connection) closeWrite() {
	if nc, ok := c.nc.(interface{ CloseWrite() error }); ok {
		_ = nc.CloseWrite()
	}
}

// finish gives back everything the connection held. It is the end of Run, on the reader.
func (c *Connection) finish() {
	if !c.closing() {
		c.Close(Cause{Kind: KindInternal}) // handle panicked
	}
	cause := c.cause.Load()
	c.mu.Lock()
	c.abort()
	writing := c.writer != nil
	c.mu.Unlock()
	if writing {
		_ = c.nc.SetDeadline(expired)
	}
	c.writers.Wait()
	c.closeSocket(cause)
	c.inMessage = false
	c.returnReadBuffer()
	c.dropInput()
	c.endContext(cause)
	if c.manager == nil {
		c.release()
		return
	}
	c.tally.ended(cause.Kind)
	c.stop(*cause)
}

// closeSocket closes the socket. When frames were thrown away, because the client reads no more, the kernel shall not keep what it has
// of them, which could be megabytes for minutes.
func (c *Connection) closeSocket(cause *Cause) {
	c.mu.Lock()
	reset := c.reset
	c.mu.Unlock()
	nc := c.nc
	if t, ok := nc.(*tls.Conn); ok && (reset || cause.abrupt()) {
		nc = below(t.NetConn()) // closing t would wait for its last record to be written
	}
	if t, ok := nc.(*net.TCPConn); ok && reset {
		_ = t.SetLinger(0)
	}
	_ = nc.Close()
}
