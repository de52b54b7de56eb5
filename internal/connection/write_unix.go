//go:build unix

package connection

import (
	"net"
	"syscall"
)

// bareSocket returns the way to write to nc without blocking; nil: there is none, because something stands between nc and the socket.
func bareSocket(nc net.Conn) syscall.RawConn {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil
	}
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// attempt is one write system call. It always returns true: false would have RawConn.Write wait for the socket.
func (ch *chunk) attempt(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), ch.rest())
		if err == syscall.EINTR {
			continue
		}
		if n > 0 {
			ch.off += n
		}
		ch.tried = err
		return true
	}
}
