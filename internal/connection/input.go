package connection

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"sync"
)

// inputBytes is how much is read from the socket at a time: dozens of small frames. Nothing of it is held at rest.
const inputBytes = 4 << 10

// input is what came from a bare socket and gorilla has not been given yet. It belongs to the reader, from the arrival of bytes until
// all of them are used.
type input struct {
	b    []byte
	used int // of b

	try   func(fd uintptr) bool // attempt, bound once, so that reading allocates nothing
	n     int                   // what attempt read
	tried error                 // what attempt met, nil or a syscall.Errno
}

var inputs sync.Pool

func newInput() *input {
	if in, ok := inputs.Get().(*input); ok {
		return in
	}
	in := &input{b: make([]byte, 0, inputBytes)}
	in.try = in.attempt
	return in
}

func (in *input) rest() []byte { return in.b[in.used:] }

// room moves what is not used to the front, and returns the space behind it. Only a part of a header or of a control frame is ever left
// when more is wanted, so there is some.
func (in *input) room() []byte {
	in.b = in.b[:copy(in.b, in.rest())]
	in.used = 0
	return in.b[len(in.b):cap(in.b)]
}

// fill reads once, without waiting. Nothing having come is no error.
func (c *Connection) fill() error {
	if c.in == nil {
		c.in = newInput()
	}
	c.pay()
	in := c.in
	in.room()
	if err := c.raw.Read(in.try); err != nil {
		return err
	}
	if in.tried != nil {
		return in.tried
	}
	in.b = in.b[:len(in.b)+in.n]
	c.received(in.n)
	return nil
}

// received notes that bytes came.
func (c *Connection) received(n int) {
	if n > 0 {
		c.lastByte.Store(c.cfg.now())
		c.tally.read(n)
	}
}

// firstByte waits for the first byte of a frame, for a reader that waits in gorilla. Between messages it holds nothing meanwhile.
func (c *Connection) firstByte() error {
	if !c.inMessage {
		c.returnReadBuffer()
	}
	c.returnInput()
	n, err := c.nc.Read(c.first[:])
	c.received(n)
	if n == 0 {
		return cmp.Or(err, io.ErrNoProgress)
	}
	c.in = newInput()
	c.in.b = append(c.in.b, c.first[0])
	return nil
}

// feed is what gorilla reads from. It never gets anything past the end of a frame, so at the end of a message it holds nothing back, and
// the reader may rest. In the middle of a message it waits.
func (c *Connection) feed(p []byte) (int, error) {
	for c.frameLeft == 0 {
		size, known := frameSize(c.in.rest(), c.cfg.Compression)
		if known {
			if odd := oddity(c.in.rest(), c.cfg.Compression); odd != nil {
				c.refuse(Cause{Kind: KindProtocol, Reason: odd.Error()})
				return 0, odd
			}
			c.pay()
			c.frameLeft = size
			if c.in.rest()[0]&0x8 == 0 {
				c.last = c.in.rest()[0]&0x80 != 0
			}
			c.came.Bytes += size
			break
		}
		c.begun()
		n, err := c.nc.Read(c.in.room())
		c.in.b = c.in.b[:len(c.in.b)+n]
		c.received(n)
		if n == 0 && err != nil {
			return 0, ended(err)
		}
	}
	if int64(len(p)) > c.frameLeft {
		p = p[:c.frameLeft]
	}
	var n int
	var err error
	if rest := c.in.rest(); len(rest) > 0 {
		n = copy(p, rest)
		c.in.used += n
	} else {
		n, err = c.nc.Read(p)
		c.received(n)
	}
	c.frameLeft -= int64(n)
	return n, ended(err)
}

// ended makes the end of a TLS connection that says no goodbye one like TCP's. Inflating has the same error for a message that is cut short.
func ended(err error) error {
	if err == io.ErrUnexpectedEOF {
		return io.EOF
	}
	return err
}

// begins reports whether something for gorilla has come: a message, a close frame, or what breaks the protocol. gorilla would wait for
// the message behind a ping or a pong, so these are answered here when they come between messages.
func (c *Connection) begins() bool {
	for c.frameLeft == 0 {
		b := c.in.rest()
		size, known := frameSize(b, c.cfg.Compression)
		switch {
		case !known:
			return false
		case b[0]&0x8 == 0 || size > maxMaskedControl:
			return true
		case size > int64(len(b)):
			return false
		case b[0] == opPing:
			_ = c.pinged(unmask(b[:size]))
		case b[0] == opPong:
			_ = c.ponged("")
		default:
			return true
		}
		c.came.Bytes += size
		c.in.used += int(size)
	}
	return true // a message that was not read to its end, because the connection is closing: gorilla throws it away
}

// maxMaskedControl is the size of a client's largest control frame.
const maxMaskedControl = 2 + 4 + maxControlBytes

// frameSize is how long the frame of a client is whose beginning is b, header included; false: too little of it has come. A frame that
// breaks RFC 6455 §5.2 or §5.5 is said to be endless: gorilla may have all of it, and refuses it.
func frameSize(b []byte, compression bool) (size int64, known bool) {
	if len(b) < 2 {
		return 0, false
	}
	short := b[1] & 0x7F
	masked := b[1]&0x80 != 0
	control := b[0]&0x8 != 0
	reserved := byte(0x70)
	if compression {
		reserved &^= rsv1
	}
	if b[0]&reserved != 0 || b[0]&0x7 > 2 || !masked || control && (b[0]&0x80 == 0 || short > maxControlBytes) {
		return math.MaxInt64, true
	}
	header, payload := 2+4, uint64(short)
	switch short {
	case 126:
		if header += 2; len(b) >= header {
			payload = uint64(binary.BigEndian.Uint16(b[2:]))
		}
	case 127:
		if header += 8; len(b) >= header {
			payload = binary.BigEndian.Uint64(b[2:])
		}
	}
	switch {
	case len(b) < header:
		return 0, false
	case payload > math.MaxInt64-maxMaskedControl:
		return math.MaxInt64, true
	}
	return int64(header) + int64(payload), true
}

// rsv1 is the bit of a header that says that a message is compressed (RFC 7692 §6).
const rsv1 = 0x40

// oddity says what is wrong with a frame of that header, of which two bytes have come, where gorilla would let it pass.
func oddity(header []byte, compression bool) error {
	switch opcode := header[0] & 0xF; {
	case header[0] == opClose && header[1] == 0x80|1:
		return errOddClose
	case compression && header[0]&rsv1 != 0 && (opcode == 0 || opcode&0x8 != 0):
		return errOddBit
	}
	return nil
}

var (
	// No code fits into one byte: RFC 6455 §5.5.1 has either none or two of them. gorilla takes it for a close without a code.
	errOddClose = errors.New("close frame of one byte")
	// Only the first frame of a message says that it is compressed (RFC 7692 §6.1).
	errOddBit = errors.New("a frame that can't be compressed says that it is")
)

// unmask is the payload of a whole control frame.
func unmask(frame []byte) string {
	mask, payload := frame[2:6], frame[6:]
	clear := make([]byte, len(payload))
	for i, b := range payload {
		clear[i] = b ^ mask[i%4]
	}
	return string(clear)
}

// returnInput gives the buffer back, unless it holds a part of something.
func (c *Connection) returnInput() {
	if c.in != nil && len(c.in.rest()) == 0 {
		c.dropInput()
	}
}

func (c *Connection) dropInput() {
	if c.in != nil {
		c.in.b, c.in.used = c.in.b[:0], 0
		inputs.Put(c.in)
		c.in = nil
	}
}
