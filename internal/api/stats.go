package api

import (
	"maps"
	"sync"
)

// Call is one kind of call that was answered.
type Call struct {
	Operation string // its name; "none" where it never came to one
	Status    int    // of HTTP
}

// calls counts them. There are as many kinds as operations and statuses, so no caller makes it grow.
type calls struct {
	mu     sync.Mutex
	counts map[Call]uint64 // guarded by mu
}

func (c *calls) count(operation string, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = make(map[Call]uint64)
	}
	c.counts[Call{operation, status}]++
}

// Stats counts what the API did since New.
type Stats struct {
	Calls     map[Call]uint64
	WrongKeys uint64
	UnderWay  int64 // now
}

// Stats returns the counters.
func (a *API) Stats() Stats {
	a.calls.mu.Lock()
	defer a.calls.mu.Unlock()
	return Stats{Calls: maps.Clone(a.calls.counts), WrongKeys: a.wrongKeys.Load(), UnderWay: a.underWay.Load()}
}
