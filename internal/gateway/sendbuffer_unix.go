//go:build unix

package gateway

import "syscall"

// sendBufferBytes is what the kernel keeps for a client that reads nothing, beside the outbox. Left to itself Linux lets it grow to
// megabytes for a client that has read well before. It bounds what one client can be sent a round trip: 128 KB is 640 KB a second to the
// other side of the world.
const sendBufferBytes = 128 << 10

// boundSendBuffers sets it on a listener; what is accepted inherits it, without a system call for each.
func boundSendBuffers(_, _ string, rc syscall.RawConn) (err error) {
	controlled := rc.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBufferBytes)
	})
	if controlled != nil {
		return controlled
	}
	return err
}
