package connection

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

// readBufferBytes is the least that gorilla takes: it is held at rest. What comes from the socket in larger pieces is in an input, and a
// message that is longer is read straight into its own buffer.
const readBufferBytes = maxControlBytes

// noWriteBuffers keeps gorilla from giving each connection a write buffer. Nothing is ever taken from it: all data frames are framed
// here, and gorilla's own close frames need none.
var noWriteBuffers sync.Pool

// Upgrade answers a WebSocket handshake. On an error the reply was written and the request is over. Otherwise the caller owes one call
// of Run, and should return from the HTTP handler first: net/http's buffers go with it.
//
// A client that sends frames before it got the 101 is refused (RFC 6455 §4.1 has it wait), unless the kernel still held them, in which
// case they are read like any others.
func Upgrade(w http.ResponseWriter, r *http.Request, u *websocket.Upgrader, id protocol.ConnID, cfg *Config) (*Connection, error) {
	lean := *u
	lean.EnableCompression = cfg.Compression
	if lean.ReadBufferSize == 0 {
		lean.ReadBufferSize = readBufferBytes
	}
	if lean.WriteBufferPool == nil {
		lean.WriteBufferPool = &noWriteBuffers
	}
	c := &Connection{id: id, remote: r.RemoteAddr, cfg: cfg}
	ws, err := lean.Upgrade(&hijacker{ResponseWriter: w, c: c}, r, nil)
	if err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	c.ws = ws
	c.raw = bareSocket(c.nc)
	c.upgraded = true
	now := cfg.now()
	c.since = now
	c.lastByte.Store(now)
	c.lastPing.Store(now)
	c.registerFrom.Store(now)
	ws.SetReadLimit(cfg.MaxFrameBytes)
	ws.SetPingHandler(c.pinged)
	ws.SetPongHandler(c.ponged)
	ws.SetCloseHandler(c.clientClosed)
	return c, nil
}

// hijacker hands gorilla our socket in place of net/http's.
type hijacker struct {
	http.ResponseWriter
	c *Connection
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, brw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.c.nc = below(nc)
	return (*socket)(h.c), brw, nil
}

// below is the socket under something that read ahead of HTTP, the header of a proxy, and is done with it. What was read together with the
// header net/http has taken.
func below(nc net.Conn) net.Conn {
	if outer, ok := nc.(interface{ Raw() net.Conn }); ok {
		return outer.Raw()
	}
	return nc
}

// socket is the Connection as gorilla sees it: the net.Conn under its frames. It is the same memory under another name.
type socket Connection

func (s *socket) Read(p []byte) (int, error) {
	c := (*Connection)(s)
	if c.waits() && c.frameLeft == 0 && (c.in == nil || len(c.in.rest()) == 0) {
		if err := c.firstByte(); err != nil {
			return 0, err
		}
	}
	return c.feed(p)
}

// Write passes the handshake through. After it gorilla writes only one thing by itself: a close frame, when what it reads breaks the
// protocol or the limit. That becomes a Close, so that our own closing frame goes first.
func (s *socket) Write(p []byte) (int, error) {
	c := (*Connection)(s)
	if !c.upgraded {
		return c.nc.Write(p)
	}
	c.refuse(closeOf(p))
	return len(p), nil
}

func (s *socket) Close() error                      { return s.nc.Close() }
func (s *socket) LocalAddr() net.Addr               { return s.nc.LocalAddr() }
func (s *socket) RemoteAddr() net.Addr              { return s.nc.RemoteAddr() }
func (s *socket) SetReadDeadline(t time.Time) error { return s.nc.SetReadDeadline(t) }

// SetDeadline and SetWriteDeadline are gorilla's during the handshake; afterwards the write deadline is the writer goroutine's.
func (s *socket) SetDeadline(t time.Time) error {
	if s.upgraded {
		return nil
	}
	return s.nc.SetDeadline(t)
}

func (s *socket) SetWriteDeadline(t time.Time) error {
	if s.upgraded {
		return nil
	}
	return s.nc.SetWriteDeadline(t)
}
