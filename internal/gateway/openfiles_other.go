//go:build !unix

package gateway

// OpenFileLimit is 0: this system has no such limit.
func OpenFileLimit() uint64 { return 0 }

// filesLeft reports whether this process can open another file.
func filesLeft() bool { return true }
