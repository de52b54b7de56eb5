package handler

import "sync"

// turns decides who may touch a session: its reader, while it handles a frame, or a
// command of the cluster. Neither is ever held up by the other's lock: a command
// that comes while a frame is handled is left with the reader, which does it next;
// the reader waits only while a command is done, as it would for a frame.
type turns struct {
	mu      sync.Mutex
	taken   bool          // guarded by mu
	over    bool          // guarded by mu; the session has ended
	waiting []func()      // guarded by mu; commands that whoever has the turn does next
	freed   chan struct{} // guarded by mu; the reader waits here; nil: it doesn't
}

// commandsWait is how many commands may wait for one session.
const commandsWait = 64

// take gives the turn to the reader.
func (t *turns) take() {
	for {
		t.mu.Lock()
		if !t.taken {
			t.taken = true
			t.mu.Unlock()
			return
		}
		if t.freed == nil {
			t.freed = make(chan struct{})
		}
		freed := t.freed
		t.mu.Unlock()
		<-freed
	}
}

// give does what waits, and gives the turn back.
func (t *turns) give() {
	for {
		t.mu.Lock()
		if len(t.waiting) == 0 {
			t.waiting, t.taken = nil, false
			if t.freed != nil {
				close(t.freed)
				t.freed = nil
			}
			t.mu.Unlock()
			return
		}
		f := t.waiting[0]
		t.waiting = t.waiting[1:]
		t.mu.Unlock()
		f()
	}
}

// do has f done in a turn of its own: now, or by whoever has the turn before it is
// given back. False: the session has ended, or too much waits, and f is never done.
func (t *turns) do(f func()) bool {
	t.mu.Lock()
	if t.over || len(t.waiting) == commandsWait {
		t.mu.Unlock()
		return false
	}
	if t.taken {
		t.waiting = append(t.waiting, f)
		t.mu.Unlock()
		return true
	}
	t.taken = true
	t.mu.Unlock()
	f()
	t.give()
	return true
}

// end takes the last turn: no command is done behind it but those that wait, which
// find the session ended.
func (t *turns) end() {
	t.take()
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
}
