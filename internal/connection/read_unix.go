//go:build unix

package connection

import (
	"io"
	"syscall"
)

// arrived reports whether there may be something to read, be it the end. False makes RawConn.Read wait for the poller and then ask again,
// which is answered without a look: should nothing have come after all, fill finds out. The poller tells of changes only, so what was
// there before must be seen here; this takes nothing of it.
func (c *Connection) arrived(fd uintptr) bool {
	if c.looked {
		return true
	}
	c.looked = true
	var b [1]byte
	for {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return err != syscall.EAGAIN
		}
	}
}

// attempt is one read system call. It always returns true: false would have RawConn.Read wait for the socket.
func (in *input) attempt(fd uintptr) bool {
	in.n, in.tried = 0, nil
	for {
		n, err := syscall.Read(int(fd), in.b[len(in.b):cap(in.b)])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
		case err != nil:
			in.tried = err
		case n == 0:
			in.tried = io.EOF
		default:
			in.n = n
		}
		return true
	}
}
