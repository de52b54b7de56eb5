//go:build !race

package gatewaytest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// wire is the client's end of a WebSocket, for load generators. They share the machine with what they measure, and one of them
// holds thousands of connections, so it does only what they need: small text frames both ways, pongs, no masking (a key of
// zeros is a valid key, and costs the server the same as any other).
//
// One goroutine reads. Any may write: each frame is one Write of the socket.
type wire struct {
	// Immutable after dialWire.
	nc net.Conn

	// Owned by the reader. What was read and not taken yet is buffer[from:to].
	buffer   []byte
	from, to int
}

// The opcodes of RFC 6455 §5.2 that matter here.
const (
	opText  = 1
	opClose = 8
	opPing  = 9
	opPong  = 10
)

// smallBuffer holds the largest frame that a gateway sends to a client without messages, and the answer to the handshake.
const smallBuffer = 768

// dialWire opens a WebSocket at ws://addr/ws. No frame longer than buffer bytes can be read.
func dialWire(addr string, buffer int) (*wire, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	w := &wire{nc: nc, buffer: make([]byte, buffer)}
	if err := w.shakeHands(addr); err != nil {
		nc.Close()
		return nil, fmt.Errorf("handshake with %s: %w", addr, err)
	}
	return w, nil
}

func (w *wire) shakeHands(host string) error {
	_, err := fmt.Fprintf(w.nc, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: Y2hhdGdhdGUgYmVuY2htYQ==\r\n\r\n", host)
	if err != nil {
		return err
	}
	for {
		head, _, complete := bytes.Cut(w.buffer[:w.to], []byte("\r\n\r\n"))
		if complete {
			if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
				return fmt.Errorf("the answer was %.60q", head)
			}
			w.from = len(head) + 4
			return nil
		}
		if w.to == len(w.buffer) {
			return errors.New("the answer is too long")
		}
		n, err := w.nc.Read(w.buffer[w.to:])
		if err != nil {
			return err
		}
		w.to += n
	}
}

// next returns the payload of the next text frame, valid until the next call. It answers pings.
func (w *wire) next() ([]byte, error) {
	for {
		op, payload, err := w.frame()
		if err != nil {
			return nil, err
		}
		switch op {
		case opText:
			return payload, nil
		case opPing:
			if err := w.write(appendFrame(nil, opPong, payload)); err != nil {
				return nil, err
			}
		case opClose:
			return nil, fmt.Errorf("closed by the server: %q", payload)
		}
	}
}

func (w *wire) frame() (op byte, payload []byte, err error) {
	if err := w.fill(2); err != nil {
		return 0, nil, err
	}
	op = w.buffer[w.from] & 0x0F
	header, size := 2, int(w.buffer[w.from+1])
	switch {
	case size == 126:
		header = 4
		if err := w.fill(header); err != nil {
			return 0, nil, err
		}
		size = int(binary.BigEndian.Uint16(w.buffer[w.from+2:]))
	case size == 127:
		header = 10
		if err := w.fill(header); err != nil {
			return 0, nil, err
		}
		size = int(binary.BigEndian.Uint64(w.buffer[w.from+2:]))
	case size > 127:
		return 0, nil, errors.New("a frame that is masked")
	}
	if err := w.fill(header + size); err != nil {
		return 0, nil, err
	}
	payload = w.buffer[w.from+header : w.from+header+size]
	w.from += header + size
	return op, payload, nil
}

// fill reads until the buffer holds size bytes that were not taken.
func (w *wire) fill(size int) error {
	if w.to-w.from >= size {
		return nil
	}
	if size > len(w.buffer) {
		return fmt.Errorf("a frame of %d bytes", size)
	}
	w.to = copy(w.buffer, w.buffer[w.from:w.to])
	w.from = 0
	n, err := io.ReadAtLeast(w.nc, w.buffer[w.to:], size-w.to)
	w.to += n
	return err
}

// write sends whole frames, from appendFrame.
func (w *wire) write(frames []byte) error {
	_, err := w.nc.Write(frames)
	return err
}

// appendFrame appends a frame as a client sends it.
func appendFrame(dst []byte, op byte, payload []byte) []byte {
	const final, masked = 0x80, 0x80
	dst = append(dst, final|op)
	switch size := len(payload); {
	case size < 126:
		dst = append(dst, masked|byte(size))
	case size < 1<<16:
		dst = binary.BigEndian.AppendUint16(append(dst, masked|126), uint16(size))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, masked|127), uint64(size))
	}
	return append(append(dst, 0, 0, 0, 0), payload...)
}
