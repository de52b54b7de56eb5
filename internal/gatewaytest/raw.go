package gatewaytest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Raw is a client that speaks bytes: what no library would send.
type Raw struct{ net.Conn }

// DialRaw connects. With buffer > 0 its kernel takes few bytes that nobody reads.
func DialRaw(addr string, buffer int) (*Raw, error) {
	d := net.Dialer{Timeout: 2 * Deadline}
	if buffer > 0 {
		d.Control = func(_, _ string, rc syscall.RawConn) (err error) {
			controlled := rc.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, buffer)
			})
			if controlled != nil {
				return controlled
			}
			return err
		}
	}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Raw{nc}, nil
}

// Handshake is a request that is let in, for a server at addr.
func Handshake(addr string) string {
	return "GET /ws HTTP/1.1\r\nHost: " + addr + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
}

// Upgrade shakes hands and registers, and reads no further than the 101: the rest stays where it is.
func (r *Raw) Upgrade(addr, user string) error {
	if _, err := r.Write([]byte(Handshake(addr))); err != nil {
		return err
	}
	_ = r.SetReadDeadline(time.Now().Add(2 * Deadline))
	defer func() { _ = r.SetReadDeadline(time.Time{}) }()
	// Byte by byte: what comes behind it is nobody's yet.
	head := make([]byte, 0, 512)
	for len(head) < 4 || string(head[len(head)-4:]) != "\r\n\r\n" {
		head = head[:len(head)+1]
		if _, err := io.ReadFull(r, head[len(head)-1:]); err != nil {
			return fmt.Errorf("after %q: %w", head, err)
		}
		if len(head) == cap(head) {
			return fmt.Errorf("an answer without an end: %q", head)
		}
	}
	if len(head) < 12 || string(head[9:12]) != "101" {
		return fmt.Errorf("answered %q", head)
	}
	_, err := r.Write(RawFrame(0x81, `{"type":"register","userId":"`+user+`"}`))
	return err
}

// Ended waits for the end of the connection, and returns what came until then, 64 KB at most.
func (r *Raw) Ended(within time.Duration) (said []byte, err error) {
	_ = r.SetReadDeadline(time.Now().Add(within))
	said, err = io.ReadAll(io.LimitReader(r, 64<<10))
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		return said, fmt.Errorf("still connected after %v; it said %.200q", within, said)
	}
	return said, nil // a reset is an end
}

// RawFrame is one masked frame. The first byte is the sender's.
func RawFrame(first byte, payload string) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0x25, 0x5A, 0x0F, 0x70} // below 0x80: zeros in its place are text
	b = append(b, mask[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^mask[i%4])
	}
	return b
}

// WriteRaw writes bytes under the client's frames, and reads what they bring like anything else.
func (c *Client) WriteRaw(b []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	_ = c.conn.NetConn().SetWriteDeadline(time.Now().Add(2 * Deadline))
	_, err := c.conn.NetConn().Write(b)
	return err
}

// Reset ends the connection with a reset, as a crashed machine's kernel does.
func (c *Client) Reset() {
	if tcp, ok := c.conn.NetConn().(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Cut()
}
