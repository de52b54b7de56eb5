//go:build !unix

package connection

import (
	"net"
	"syscall"
)

// bareSocket: without a write that does not block, the writer goroutine does all writing.
func bareSocket(net.Conn) syscall.RawConn { return nil }

func (ch *chunk) attempt(uintptr) bool { return true }
