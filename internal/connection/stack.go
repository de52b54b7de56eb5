package connection

import (
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
)

// A stack is lent to a reader while it has something to read. What waits at rest, once for each connection, is the goroutine that called
// Run, a few calls deep: it keeps the 2 KB it began with. Reading, handling and answering a frame take several times as much, and the
// runtime would not take that back: it halves a stack only when less than a quarter of it is used, the 800 bytes it reserves included.
//
// A stack is a coroutine: to hand over to it and back is a switch without the scheduler, and the two never run at the same time. So what
// is the reader's may be touched by both.
type stack struct {
	// Owned by the reader that has borrowed it.
	c      *Connection
	handle func([]byte)
	err    error // what turn returned

	// Immutable after newStack.
	turn func() (struct{}, bool)
	end  func()
}

func newStack() *stack {
	s := new(stack)
	s.turn, s.end = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if p := recover(); p != nil {
				panic(fmt.Sprintf("%v\n\n%s", p, debug.Stack())) // a panic is passed on to the caller of turn, without its trace
			}
		}()
		for {
			s.err = s.c.turn(s.handle)
			s.c, s.handle = nil, nil
			if !yield(struct{}{}) {
				return
			}
		}
	})
	return s
}

// maxStacks is how many stacks are kept that nobody uses: more than processors, since readers wait for Redis on theirs.
const maxStacks = 64

// stacks lends them to the readers of one Manager.
type stacks struct {
	mu   sync.Mutex
	idle []*stack // the one used last is lent first
	lent int
	shut bool // none is kept
}

// lend has c take one turn.
func (s *stacks) lend(c *Connection, handle func([]byte)) error {
	st := s.get()
	if st == nil {
		st = newStack()
	}
	st.c, st.handle = c, handle
	st.turn()
	err := st.err
	st.err = nil
	if !s.put(st) {
		st.end()
	}
	return err
}

func (s *stacks) get() *stack {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent++
	last := len(s.idle) - 1
	if last < 0 {
		return nil
	}
	st := s.idle[last]
	s.idle[last] = nil
	s.idle = s.idle[:last]
	return st
}

func (s *stacks) put(st *stack) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent--
	if s.shut || len(s.idle) == maxStacks {
		return false
	}
	s.idle = append(s.idle, st)
	return true
}

// close ends the stacks that nobody uses; those that are lent end when they are given back.
func (s *stacks) close() {
	s.mu.Lock()
	idle := s.idle
	s.idle, s.shut = nil, true
	s.mu.Unlock()
	for _, st := range idle {
		st.end()
	}
}
