package connection

import (
	"strings"
	"testing"
)

// More readers wait in their handle functions than stacks are kept. None waits for another's, and afterwards only so many are left.
func TestStacksAreLentWithoutLimitAndKeptWithOne(t *testing.T) {
	g := newGate(t, nil)
	letGo := make(chan struct{})
	g.handle = func(c *Connection, b []byte) {
		<-letGo
		c.Send(b)
	}
	var clients []*rawClient
	for range maxStacks + 10 {
		_, r := g.rawDial(0)
		r.send(opText, "x")
		clients = append(clients, r)
	}
	state := func() (lent, idle int) {
		g.m.stacks.mu.Lock()
		defer g.m.stacks.mu.Unlock()
		return g.m.stacks.lent, len(g.m.stacks.idle)
	}
	poll(t, "all are handled at the same time", func() bool { lent, _ := state(); return lent == maxStacks+10 })
	close(letGo)
	for _, r := range clients {
		r.wantFrame(opText, "x")
	}
	poll(t, "all rest", g.rests)
	if _, idle := state(); idle != maxStacks {
		t.Errorf("%d stacks are kept, want %d", idle, maxStacks)
	}
}

// mistaken panics. It is named in the trace.
func mistaken([]byte) { panic("a mistake") }

// A panic on a lent stack goes on to whoever called Run, with the place where it happened.
func TestPanicOnALentStackTellsWhere(t *testing.T) {
	c, r := newResting(t)
	r.send(opText, "x")
	defer func() {
		text, _ := recover().(string)
		if !strings.HasPrefix(text, "a mistake\n") || !strings.Contains(text, "mistaken") {
			t.Errorf("recovered %q", text)
		}
		if cause, _ := c.Cause(); cause.Kind != KindInternal {
			t.Errorf("ended by %s", cause.Kind)
		}
	}()
	c.Run(mistaken, nil)
}
