package connection

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

const (
	// lastLook is how long farewell looks for more. What it looks for has come before the socket failed, so only a socket that fails in one
	// direction is waited for.
	lastLook = 50 * time.Millisecond
	// lastBytes is how much it looks through: what a kernel may have kept of a client that was held.
	lastBytes = 4 << 20
)

// farewell makes a goodbye of an end that a failed write found. Who sends a close frame and is gone resets the socket as soon as it is
// written to, and then the frame may not have been read yet, for a reader that was held above all. byClient is the close frame where the
// reader has come upon it by itself. On the reader.
func (c *Connection) farewell(byClient *websocket.CloseError) {
	var last *Cause
	if byClient != nil {
		last = &Cause{Kind: KindClientClose, Code: protocol.CloseCode(byClient.Code), Reason: byClient.Text}
	} else {
		last = c.lastWords()
	}
	if last != nil {
		c.cause.Store(last)
	}
}

// lastWords goes through the frames that have come and were not read, up to a close frame; nil: there is none.
func (c *Connection) lastWords() *Cause {
	var rest []byte
	if c.in != nil {
		rest = append(rest, c.in.rest()...)
	}
	skip, piece := c.frameLeft, make([]byte, inputBytes)
	for until, seen := time.Now().Add(lastLook), 0; seen < lastBytes; {
		for {
			n := min(skip, int64(len(rest)))
			rest, skip = rest[n:], skip-n
			size, known := frameSize(rest, c.cfg.Compression)
			if skip > 0 || !known {
				break
			}
			if rest[0] == opClose && size <= maxMaskedControl {
				if int64(len(rest)) < size {
					break
				}
				return closedBy(unmask(rest[:size]))
			}
			if size == math.MaxInt64 {
				return nil // no WebSocket from here on
			}
			skip = size
		}
		// Each time: whoever found that the socket fails may only now wake the reader, with a deadline that is over.
		_ = c.nc.SetReadDeadline(until)
		n, err := c.nc.Read(piece)
		c.tally.read(n)
		seen += n
		rest = append(rest, piece[:n]...)
		if n == 0 && err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(until)) {
			return nil
		}
	}
	return nil
}

// closedBy is the end that a client's close frame with this payload is; nil when it breaks RFC 6455 §7.4.
func closedBy(payload string) *Cause {
	code := closeNoStatus
	if len(payload) >= 2 {
		code = protocol.CloseCode(binary.BigEndian.Uint16([]byte(payload)))
	}
	reason := payload[min(2, len(payload)):]
	wrong := code < 1000 || 1004 <= code && code <= 1006 || 1014 < code && code < 3000 || code > 4999
	if len(payload) == 1 || len(payload) >= 2 && wrong || !utf8.ValidString(reason) {
		return nil
	}
	return &Cause{Kind: KindClientClose, Code: code, Reason: reason}
}
