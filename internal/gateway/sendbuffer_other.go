//go:build !unix

package gateway

import "syscall"

func boundSendBuffers(string, string, syscall.RawConn) error { return nil }
