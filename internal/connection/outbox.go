package connection

import (
	"encoding/binary"
	"runtime"
	"sync"

	"chatgate/internal/protocol"
)

// The first byte of a frame we send (RFC 6455 §5.2): always final, never extended.
const (
	opText  = 0x80 | 0x1
	opClose = 0x80 | 0x8
	opPing  = 0x80 | 0x9
	opPong  = 0x80 | 0xA
)

// maxControlBytes is the payload of a control frame (RFC 6455 §5.5); a close frame's reason has two bytes less.
const maxControlBytes = 125

// reserveRounds bounds how often a full outbox is looked at again while the socket still takes what it gets.
const reserveRounds = 64

// closeNoStatus is what gorilla reports for a close frame without a code (RFC 6455 §7.1.5). It is never on the wire.
const closeNoStatus protocol.CloseCode = 1005

// chunk is a run of whole frames on its way to the socket. It belongs to the outbox while it is pending, and to whoever writes while it
// is current.
type chunk struct {
	b      []byte
	off    int // written of b
	frames int
	pong   bool // one of the frames is a pong

	try   func(fd uintptr) bool // attempt, bound once, so that a flush allocates nothing
	tried error                 // what attempt met, nil or a syscall.Errno
}

var chunks sync.Pool

func newChunk() *chunk {
	if ch, ok := chunks.Get().(*chunk); ok {
		return ch
	}
	ch := &chunk{b: make([]byte, 0, 1024)}
	ch.try = ch.attempt
	return ch
}

func (ch *chunk) recycle() {
	if cap(ch.b) > pooledBytes {
		ch.b = nil
	}
	ch.b, ch.off, ch.frames, ch.pong, ch.tried = ch.b[:0], 0, 0, false, nil
	chunks.Put(ch)
}

func (ch *chunk) rest() []byte { return ch.b[ch.off:] }

// AppendTextHeader appends the header of an unmasked text frame whose payload is that long.
func AppendTextHeader(dst []byte, payloadLen int) []byte {
	switch {
	case payloadLen <= 125:
		return append(dst, opText, byte(payloadLen))
	case payloadLen <= 0xFFFF:
		return binary.BigEndian.AppendUint16(append(dst, opText, 126), uint16(payloadLen))
	default:
		return binary.BigEndian.AppendUint64(append(dst, opText, 127), uint64(payloadLen))
	}
}

func textHeaderLen(payloadLen int) int {
	switch {
	case payloadLen <= 125:
		return 2
	case payloadLen <= 0xFFFF:
		return 4
	default:
		return 10
	}
}

// Append queues one text frame, without a system call; Flush sends. False: not taken, because the connection is closed, or because its
// client has let the outbox fill up, and then it is being closed as a slow consumer.
func (c *Connection) Append(payload []byte) bool {
	ch := c.reserve(textHeaderLen(len(payload)) + len(payload))
	if ch == nil {
		return false
	}
	ch.b = append(AppendTextHeader(ch.b, len(payload)), payload...)
	ch.frames++
	c.mu.Unlock()
	return true
}

// AppendFrame is Append for a message that has its frame header: in a fan-out it is put there once (AppendTextHeader).
func (c *Connection) AppendFrame(ws []byte) bool {
	ch := c.reserve(len(ws))
	if ch == nil {
		return false
	}
	ch.b = append(ch.b, ws...)
	ch.frames++
	c.mu.Unlock()
	return true
}

// Send is Append and Flush.
func (c *Connection) Send(payload []byte) bool {
	if !c.Append(payload) {
		return false
	}
	c.Flush()
	return true
}

// reserve returns the pending chunk with mu held, or nil, with mu free, when a frame of that size is not taken.
//
// What counts against the limits is what the client does not take, not what a batch happens to hold. So when the outbox is full and
// nobody is writing, it is flushed before it is judged; and when another goroutine is in the middle of an attempt, which takes
// microseconds, that one is asked to go on, and is given the processor. Its part does not count until the socket was found full, so at
// most twice the limit is ever held.
func (c *Connection) reserve(size int) *chunk {
	for round := 0; ; round++ {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			c.tally.refused()
			return nil
		}
		if !c.over(1, size) {
			return c.pend()
		}
		stuck := c.writer != nil
		trying := c.current != nil
		if trying {
			c.again = true
		}
		c.mu.Unlock()
		switch {
		case stuck || round == reserveRounds:
			c.tally.refused()
			c.Close(Cause{Kind: KindSlowConsumer})
			return nil
		case trying:
			runtime.Gosched()
		default:
			c.Flush()
		}
	}
}

// Roomy reports whether at most half of what the outbox takes, by bytes and by frames, waits for the client, and a frame of that size
// fits too: room enough for whoever sends a backlog at the client's pace. A frame always fits when nothing waits.
func (c *Connection) Roomy(size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil && c.writer == nil {
		return true
	}
	return !c.over(max(1, c.cfg.OutboxFrames/2), max(size, c.cfg.OutboxBytes/2))
}

// Takes reports whether the outbox holds so many further frames, of so many bytes in all, whether or not the client takes any of them.
func (c *Connection) Takes(frames, bytes int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.over(frames, bytes)
}

// held is what waits for the client, in bytes.
func (c *Connection) held() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil {
		n += len(c.pending.b)
	}
	// What is being written changes in the hands of whoever writes it, unless that is the writer goroutine.
	if c.writer != nil && c.current != nil {
		n += len(c.current.rest())
	}
	return n
}

// Held is what waits for all clients, and for the one that has most waiting, in bytes. It looks at every connection.
func (m *Manager) Held() (all, most int) {
	m.ForEach(func(c *Connection) bool {
		n := c.held()
		all, most = all+n, max(most, n)
		return true
	})
	return all, most
}

// over reports whether further frames would exceed a limit. mu is held.
func (c *Connection) over(frames, size int) bool {
	if c.pending != nil {
		size += len(c.pending.b)
		frames += c.pending.frames
	}
	if c.writer != nil && c.current != nil {
		size += len(c.current.rest())
		frames += c.current.frames
	}
	return c.cfg.OutboxBytes > 0 && size > c.cfg.OutboxBytes || c.cfg.OutboxFrames > 0 && frames > c.cfg.OutboxFrames
}

// pend returns the chunk that takes further frames. mu is held.
func (c *Connection) pend() *chunk {
	if c.pending == nil {
		c.pending = newChunk()
	}
	return c.pending
}

// Control frames are not held to the limits, but each is bounded: one ping until it is answered, a pong in what is being written, two in
// what comes after it, one close frame.

func (c *Connection) appendPing() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		ch := c.pend()
		ch.b = append(ch.b, opPing, 0)
	}
}

// appendPong answers a ping. While an earlier pong waits to be written only the latest ping is remembered, which RFC 6455 §5.5.3 allows.
// One that is being written does not count: the answer to the ping after it keeps its place before what is appended later.
func (c *Connection) appendPong(data string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case c.pending != nil && c.pending.pong:
		c.owedPong, c.owesPong = data, true
	default:
		c.pong(data)
	}
}

// pong puts a pong into the outbox. mu is held.
func (c *Connection) pong(data string) {
	ch := c.pend()
	ch.b = append(append(ch.b, opPong, byte(len(data))), data...)
	ch.pong = true
}

// appendClose puts the closing frame, unless the client closed by itself, and the close frame there as the last of all. mu is held.
func (c *Connection) appendClose(cause *Cause) {
	ch := c.pend()
	if cause.Kind != KindClientClose {
		payload := protocol.AppendClosing(nil, &protocol.Closing{
			Code: cause.Code, Reason: cause.Reason, AfterMs: cause.AfterMs, WindowMs: cause.WindowMs, By: cause.By, At: cause.At,
		})
		ch.b = append(AppendTextHeader(ch.b, len(payload)), payload...)
		ch.frames++
	}
	if cause.Code == closeNoStatus {
		ch.b = append(ch.b, opClose, 0)
		return
	}
	reason := cause.Reason
	if cause.Kind == KindClientClose {
		reason = "" // the echo is of the code
	}
	reason = cut(reason, maxControlBytes-2)
	ch.b = append(ch.b, opClose, byte(2+len(reason)))
	ch.b = binary.BigEndian.AppendUint16(ch.b, uint16(cause.Code))
	ch.b = append(ch.b, reason...)
}
