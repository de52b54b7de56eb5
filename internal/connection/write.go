package connection

import (
	"errors"
	"os"
	"syscall"
	"time"
)

const (
	// flushRounds is how often one Flush goes on with what others appended meanwhile, before it leaves the rest to the writer goroutine.
	flushRounds = 8
	// writeBytes is what the writer goroutine gives to the socket at a time; each piece has WriteTimeout.
	writeBytes = 16 << 10
)

// Flush sends what is pending, and never waits: one attempt without blocking, and what the socket does not take is left to a writer
// goroutine. When another goroutine is writing, it goes on with what is pending now.
func (c *Connection) Flush() {
	c.mu.Lock()
	if c.current != nil {
		c.again = true
		c.mu.Unlock()
		return
	}
	ch := c.take()
	c.mu.Unlock()
	if ch != nil {
		c.write(ch)
	}
}

// take makes the pending chunk the current one; nil: nothing to write. mu is held, and current is nil or the caller's own, done with.
func (c *Connection) take() *chunk {
	c.again = false
	c.current = nil
	if !c.aborted {
		c.current, c.pending = c.pending, nil
	}
	return c.current
}

// write tries to get rid of ch, the current chunk, without blocking.
func (c *Connection) write(ch *chunk) {
	if c.raw == nil {
		c.startWriter(ch)
		return
	}
	for range flushRounds {
		ch.tried = nil
		before := ch.off
		err := c.raw.Write(ch.try)
		if err == nil {
			err = ch.tried
		}
		c.tally.wrote(ch.off - before)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			c.startWriter(ch)
			return
		case err != nil:
			c.fail(ch, Cause{Kind: KindNetwork, Err: err})
			return
		case len(ch.rest()) > 0:
			c.startWriter(ch) // the socket is full: the next attempt would say EAGAIN
			return
		}
		if ch = c.written(ch); ch == nil {
			return
		}
	}
	c.startWriter(ch)
}

// written gives back the current chunk, all of which was written, and returns the next one; nil: this goroutine writes no more.
func (c *Connection) written(ch *chunk) *chunk {
	c.tally.framesOut(ch.frames)
	c.mu.Lock()
	if ch.pong && c.owesPong && !c.closed {
		c.pong(c.owedPong)
		c.owedPong, c.owesPong = "", false
		c.again = true
	}
	var next *chunk
	if c.again {
		next = c.take()
	}
	c.current = next
	if next == nil {
		c.stopWriter()
	}
	shut := c.halfClose && next == nil && c.pending == nil
	c.mu.Unlock()
	ch.recycle()
	if shut {
		c.closeWrite()
	}
	return next
}

// stopWriter notes that the writer goroutine, if there is one, writes no more. mu is held.
func (c *Connection) stopWriter() {
	if c.writer != nil {
		close(c.writer)
		c.writer = nil
	}
}

// fail ends the writing, and the connection if it still lives.
func (c *Connection) fail(ch *chunk, cause Cause) {
	c.Close(cause)
	c.mu.Lock()
	c.abort()
	c.reset = true
	c.current = nil
	c.stopWriter()
	c.mu.Unlock()
	c.tally.discarded(ch.frames)
	ch.recycle()
}

// abort lets nothing more be appended or written, and throws away what is pending. mu is held.
func (c *Connection) abort() {
	c.closed, c.aborted = true, true
	c.owedPong, c.owesPong = "", false
	if c.pending == nil {
		return
	}
	c.reset = true
	c.tally.discarded(c.pending.frames)
	c.pending.recycle()
	c.pending = nil
}

// startWriter leaves ch, the current chunk, to a writer goroutine, unless the connection gave up meanwhile. finish sets aborted before it
// waits for writers, so none is started that it would not join.
func (c *Connection) startWriter(ch *chunk) {
	c.mu.Lock()
	if c.aborted {
		c.reset = true
		c.current = nil
		c.mu.Unlock()
		c.tally.discarded(ch.frames)
		ch.recycle()
		return
	}
	c.writer = make(chan struct{})
	c.writers.Add(1)
	c.mu.Unlock()
	c.tally.writer(1)
	go c.drain(ch)
}

// drain is the writer goroutine: it writes, blocking, until nothing is asked for any more.
func (c *Connection) drain(ch *chunk) {
	defer c.writers.Done()
	defer c.tally.writer(-1)
	for ch != nil {
		if err := c.writeAll(ch); err != nil {
			cause := Cause{Kind: KindNetwork, Err: err}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				cause.Kind = KindSlowConsumer
			}
			c.fail(ch, cause)
			return
		}
		// Before current is given up: afterwards another goroutine may be writing, and an expired deadline would fail its attempt.
		_ = c.nc.SetWriteDeadline(time.Time{})
		ch = c.written(ch)
	}
}

// writeAll writes ch piece by piece.
func (c *Connection) writeAll(ch *chunk) error {
	for b := ch.rest(); len(b) > 0; b = ch.rest() {
		if c.cfg.WriteTimeout > 0 {
			_ = c.nc.SetWriteDeadline(time.Now().Add(c.cfg.WriteTimeout))
		}
		// Close for a slow consumer sets aborted and then an expired deadline. Either ours came first and is replaced, or we see aborted.
		c.mu.Lock()
		aborted := c.aborted
		c.mu.Unlock()
		if aborted {
			return errAborted
		}
		n, err := c.nc.Write(b[:min(len(b), writeBytes)])
		c.tally.wrote(n)
		c.mu.Lock()
		ch.off += n
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

var errAborted = errors.New("connection: writing was given up")
