//go:build !race

package presence

import (
	"strings"
	"testing"
)

// A connection whose meta was never set pays nothing for those whose was: neither when a message is stamped, nor in what a refresh tells Redis.
func TestAMetaThatNeverChangesCostsNothing(t *testing.T) {
	e := &Entry{Conn: "c", Meta: `{"n":1}`}
	e.fence.Store(1795310001201334)
	if n := testing.AllocsPerRun(100, func() {
		if e.MetaNow() != `{"n":1}` {
			t.Fatal("another meta")
		}
	}); n != 0 {
		t.Errorf("%v allocations for each message", n)
	}
	args := make([]any, 1)
	before := testing.AllocsPerRun(100, func() { args[0] = e.Fence() })
	if n := testing.AllocsPerRun(100, func() { args[0] = e.fenceAndMeta() }); n != before {
		t.Errorf("%v allocations for each refresh, %v for the fence alone", n, before)
	}
	if args[0] != e.Fence() {
		t.Errorf("a refresh tells %v", args[0])
	}
	e.meta.Store(&meta{number: 3, text: `{"n":2}`})
	if told, _ := e.fenceAndMeta().(string); told != strings.Join([]string{"1795310001201334", "3", `{"n":2}`}, "\x1f") {
		t.Errorf("a refresh tells %q", told)
	}
}
