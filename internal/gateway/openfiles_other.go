//go:build !unix

package gateway

// OpenFileLimit is 0: this system has no such limit.
func OpenFileLimit() uint64 { return 0 }
