package connection

import (
	"compress/flate"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

// pooledBytes is the largest buffer, of reading or writing, that is kept for the next user.
const pooledBytes = 64 << 10

// readBuffer holds one message while it is read and handled.
type readBuffer struct{ b []byte }

var readBuffers = sync.Pool{New: func() any { return &readBuffer{b: make([]byte, 0, 1024)} }}

// Run reads until the connection has ended, and hands each text message to handle, whose argument is valid until it returns. It is
// called once, by the goroutine that is the reader from then on, and returns when the socket is closed and what it held is given back.
// Only hooks may then still be running, and with them the values they can read.
//
// toll is called when control frames have come, before anything behind them is handled, and now and then in a message of very many
// fragments: like handle it may ask what came, and hold the reader. nil: they cost nothing.
func (c *Connection) Run(handle func(frame []byte), toll func()) Cause {
	defer c.finish() // also when handle panics
	c.toll = toll
	c.linger(c.read(handle))
	return *c.cause.Load()
}

// read returns the error that ended the reading, never nil. On a bare socket it waits here, a few calls deep: see stack.
func (c *Connection) read(handle func([]byte)) error {
	if c.waits() {
		for {
			if err := c.message(handle); err != nil {
				return err
			}
		}
	}
	arrived := c.arrived // bound once
	for {
		c.looked = false
		if err := c.raw.Read(arrived); err != nil {
			return err
		}
		if err := c.manager.stacks.lend(c, handle); err != nil {
			return err
		}
	}
}

// waits reports whether gorilla waits for what comes, at rest too: something stands between us and the socket (TLS), or nobody lends a
// stack.
func (c *Connection) waits() bool { return c.raw == nil || c.manager == nil }

// turn reads what has come, handles it, and holds nothing afterwards but the beginning of what it can't hand on yet.
func (c *Connection) turn(handle func([]byte)) error {
	if err := c.fill(); err != nil {
		return err
	}
	for c.begins() {
		if err := c.message(handle); err != nil {
			return err
		}
	}
	c.returnReadBuffer()
	c.returnInput()
	if c.in != nil {
		c.begun()
	}
	return nil
}

// message has one message handled. It waits until it has come.
func (c *Connection) message(handle func([]byte)) error {
	kind, r, err := c.ws.NextReader()
	if err != nil {
		return err
	}
	c.tally.frameIn()
	if c.closing() {
		return nil // the next NextReader throws the message away; what counts now is the client's close frame
	}
	if kind != websocket.TextMessage {
		c.Close(Cause{Kind: KindBadData, Reason: "binary message"})
		return nil
	}
	frame, err := c.readMessage(r)
	if err != nil {
		return err
	}
	if c.closing() {
		return nil
	}
	if c.expires.Load() != 0 && c.expired(c.cfg.wall()) {
		c.Close(Cause{Kind: KindTokenExpired}) // before the sweep has, which a process that was paused is late with
		return nil
	}
	c.came.Frames++
	c.came.Bytes = max(c.came.Bytes, int64(len(frame))) // what is inflated costs what it would have cost as it is
	c.busy.Store(true)
	handle(frame)
	c.Text()
	c.busy.Store(false)
	return nil
}

// readMessage reads to the end of a message, or to its first byte that is no UTF-8 (RFC 6455 §8.1), and then the connection is closing.
// gorilla has checked its announced length against the limit before it is read.
func (c *Connection) readMessage(r io.Reader) ([]byte, error) {
	if c.rbuf == nil {
		c.rbuf = readBuffers.Get().(*readBuffer)
	}
	c.inMessage = true
	c.begun()
	b := c.rbuf.b[:0]
	valid := 0 // of b
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		c.rbuf.b = b
		switch {
		case c.cfg.MaxFrameBytes > 0 && int64(len(b)) > c.cfg.MaxFrameBytes: // inflated: its size on the wire was checked
			c.refuse(Cause{Kind: KindTooLarge})
			return nil, errInflated
		case notDeflated(err), err == io.EOF && c.in != nil && (c.frameLeft > 0 || !c.last): // it may say that it ends before its last frame does
			err = io.ErrUnexpectedEOF
			c.refuse(Cause{Kind: KindBadData, Code: protocol.CloseInvalidPayload, Reason: "not compressed as RFC 7692 has it"})
			return nil, err
		}
		whole := len(b)
		if err != io.EOF {
			whole -= unfinished(b[valid:])
		}
		if !utf8.Valid(b[valid:whole]) {
			c.Close(Cause{Kind: KindBadData, Code: protocol.CloseInvalidPayload, Reason: "text that is not UTF-8"})
			err = io.EOF // as far as we care
		}
		valid = whole
		if err == io.EOF {
			c.inMessage = false
			c.messageBegan.Store(0)
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

var errInflated = errors.New("connection: a message is too large when it is inflated")

// notDeflated reports whether an error of reading is that of a compressed message which is broken. None of the network's is like these: see
// ended.
func notDeflated(err error) bool {
	var corrupt flate.CorruptInputError
	return err == io.ErrUnexpectedEOF || errors.As(err, &corrupt)
}

// unfinished is how many bytes at the end of b are the beginning of a character.
func unfinished(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) { // also where it can't become one
				return 0
			}
			return n
		}
	}
	return 0
}

// begun notes that a part of something has come: from now on the rest of it has MessageTimeout. It changes nothing while what began
// earlier is not complete, so that a client can't stretch a message by sending it slowly, or in ever more fragments.
func (c *Connection) begun() {
	if c.messageBegan.Load() == 0 {
		c.messageBegan.Store(c.lastByte.Load())
	}
}

// control notes that a control frame is complete. Between fragments it ends nothing.
func (c *Connection) control() {
	c.came.Frames++
	if !c.inMessage {
		c.messageBegan.Store(0)
	}
}

func (c *Connection) returnReadBuffer() {
	if c.rbuf == nil {
		return
	}
	if cap(c.rbuf.b) <= pooledBytes {
		readBuffers.Put(c.rbuf)
	}
	c.rbuf = nil
}

// Text notes that a text frame came. Run calls it after the frame was handled, so that time spent waiting for us, in Acquire or
// elsewhere, never counts as the client's silence.
func (c *Connection) Text() {
	now := c.cfg.now()
	c.lastPing.Store(now)
	c.lastByte.Store(now)
}

// pinged answers a ping. On the reader.
func (c *Connection) pinged(data string) error {
	c.control()
	c.appendPong(data)
	c.Flush()
	return nil
}

func (c *Connection) ponged(string) error {
	c.control()
	return nil
}

// clientClosed answers the client's close frame with its own code, as RFC 6455 §5.5.1 has it. No closing frame: the client knows. On
// the reader, which returns with a *websocket.CloseError right after.
func (c *Connection) clientClosed(code int, text string) error {
	c.Close(Cause{Kind: KindClientClose, Code: protocol.CloseCode(code), Reason: text})
	return nil
}

// refuse ends the connection for what it read, which can't be read on as WebSocket. On the reader, inside of gorilla.
func (c *Connection) refuse(cause Cause) {
	c.refused = true
	c.Close(cause)
}

// closeOf is what the close frame means that gorilla would send.
func closeOf(frame []byte) Cause {
	cause := Cause{Kind: KindProtocol}
	if len(frame) >= 4 {
		cause.Code = protocol.CloseCode(binary.BigEndian.Uint16(frame[2:]))
		cause.Reason = string(frame[4:])
	}
	if cause.Code == protocol.CloseTooBig {
		cause.Kind = KindTooLarge
		cause.Reason = ""
	}
	return cause
}

// linger makes sure that there is a cause, and lets the closing handshake end: at most CloseWait after Close.
func (c *Connection) linger(err error) {
	var byClient *websocket.CloseError
	// gorilla reports an end without a close frame as a close frame with 1006.
	handshaken := errors.As(err, &byClient) && byClient.Code != websocket.CloseAbnormalClosure
	if errors.Is(err, websocket.ErrReadLimit) {
		c.refused = true
		c.Close(Cause{Kind: KindTooLarge})
	}
	switch failed := c.cause.Load(); {
	case failed != nil && failed.Kind == KindNetwork && handshaken:
		c.farewell(byClient)
	case failed != nil && failed.Kind == KindNetwork:
		c.farewell(nil)
	case !handshaken:
		c.Close(Cause{Kind: KindNetwork, Err: err})
	}
	if c.cause.Load().abrupt() {
		return
	}
	if c.refused {
		// The client is still sending what we can't read. Closing now would reset the socket and could destroy the close frame on its
		// way, so shut our side and read on until the client has seen it.
		c.shutWrite()
		c.discard()
	}
	if handshaken || c.refused {
		c.awaitWriter(c.cfg.CloseWait)
	}
}

// discard reads and forgets until the client ends or the read deadline set by Close passes.
func (c *Connection) discard() {
	if c.rbuf == nil {
		c.rbuf = readBuffers.Get().(*readBuffer)
	}
	b := c.rbuf.b[:cap(c.rbuf.b)]
	for {
		n, err := c.nc.Read(b)
		c.tally.read(n)
		if err != nil {
			return
		}
	}
}

// awaitWriter waits until what is to be written is written: by the writer goroutine, or by another goroutine in the middle of a Flush,
// which is a matter of microseconds and so is looked at again rather than signalled.
func (c *Connection) awaitWriter(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		c.mu.Lock()
		writer := c.writer
		done := c.aborted || c.current == nil && c.pending == nil
		c.mu.Unlock()
		switch {
		case done:
			return
		case writer != nil:
			select {
			case <-writer:
			case <-timer.C:
				return
			}
		default:
			select {
			case <-time.After(flushLook):
			case <-timer.C:
				return
			}
		}
	}
}

// flushLook is how often awaitWriter looks whether another goroutine's Flush is over.
const flushLook = 200 * time.Microsecond
