//go:build unix

package gateway

import "syscall"

// OpenFileLimit is how many files, sockets included, this process may have open; 0 = no limit, or none that could be found
// out. The Go runtime has raised the soft limit to the hard one by now.
func OpenFileLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	const unlimited = 1 << 31 // more than any kernel hands out, and what RLIM_INFINITY is everywhere
	if limit.Cur >= unlimited {
		return 0
	}
	return uint64(limit.Cur)
}

// filesLeft reports whether this process can open another file.
func filesLeft() bool {
	fd, err := syscall.Dup(0)
	if err == nil {
		_ = syscall.Close(fd)
	}
	return !isOutOfFiles(err)
}
