package hook

import (
	"context"
	"os"
	"sync"
)

// file appends one line of JSON for each event. Whoever rotates it just renames it:
// before each batch it is looked whether the path still leads to the open file.
type file struct {
	path string

	mu   sync.Mutex // guards the rest: groups are delivered side by side
	open *os.File   // nil: at the next batch
	disk bool       // open is a file on a disk, and no pipe or device
	torn bool       // the last write, of whomever, may have left half a line
}

func newFile(path string) *file { return &file{path: path} }

// deliver writes all events with one write, and returns when the disk has them.
func (f *file) deliver(_ context.Context, events []*Event) (taken, refused int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.ready(); err != nil {
		return 0, 0, err
	}
	var lines []byte
	if f.torn {
		lines = append(lines, '\n')
	}
	for _, e := range events {
		lines = append(e.appendJSON(lines), '\n')
	}
	n, err := f.open.Write(lines)
	f.torn = f.torn && n == 0 || n > 0 && n < len(lines)
	if err == nil && f.disk {
		err = f.open.Sync()
	}
	if err != nil {
		return 0, 0, err
	}
	return len(events), 0, nil
}

// ready opens the file, again when another one has its name.
func (f *file) ready() error {
	if f.path == "-" {
		f.open = os.Stdout
		return nil
	}
	if f.open != nil {
		is, err1 := f.open.Stat()
		there, err2 := os.Stat(f.path)
		if err1 == nil && err2 == nil && os.SameFile(is, there) {
			return nil
		}
		_ = f.open.Close() // everything in it was synced
		f.open = nil
	}
	// Events tell who was where: not for everyone on the machine.
	open, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	is, err := open.Stat()
	if err != nil {
		_ = open.Close()
		return err
	}
	f.open, f.disk = open, is.Mode().IsRegular()
	f.torn = f.disk && !endsWithLine(f.path, is.Size())
	return nil
}

// endsWithLine reports whether a file ends where a line does. Whoever wrote to it before may have been killed in the middle of one, and what
// is appended to half a line is no JSON. A file that may not be read counts as torn: an empty line hurts less.
func endsWithLine(path string, size int64) bool {
	if size == 0 {
		return true
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var last [1]byte
	_, err = f.ReadAt(last[:], size-1)
	return err == nil && last[0] == '\n'
}

func (f *file) close() error {
	if !f.mu.TryLock() {
		return nil // a write stands still, and goes with the process
	}
	defer f.mu.Unlock()
	if f.open == nil || f.path == "-" {
		return nil
	}
	return f.open.Close()
}
