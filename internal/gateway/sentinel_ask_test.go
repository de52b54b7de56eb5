//go:build !secondpass

package gateway

import (
	"io"
	"testing"
)

// Who counts, and how often.
func TestVotesOfSentinels(t *testing.T) {
	says := func(id, addr, master string, others ...string) answer {
		a := answer{id: id, addr: addr, master: master, others: make(map[string]string)}
		for _, o := range others {
			a.others[o] = "addr-" + o
		}
		return a
	}
	away := answer{addr: "addr-gone", err: io.EOF}
	for name, tc := range map[string]struct {
		least   int
		answers []answer
		want    string
	}{
		"alone":                          {1, []answer{says("a", "1", "m")}, "m"},
		"alone of three":                 {3, []answer{says("a", "1", "m"), away, away}, ""},
		"alone, knows of others":         {1, []answer{says("a", "1", "m", "b", "c")}, ""},
		"two of three":                   {3, []answer{says("a", "1", "m"), says("b", "2", "m")}, "m"},
		"two of four are no majority":    {3, []answer{says("a", "1", "m", "b", "c", "d"), says("b", "2", "m")}, ""},
		"split":                          {3, []answer{says("a", "1", "m"), says("b", "2", "n"), away}, ""},
		"one is outvoted":                {3, []answer{says("a", "1", "m"), says("b", "2", "n"), says("c", "3", "n")}, "n"},
		"the same one twice":             {3, []answer{says("a", "1", "m"), says("a", "name", "m"), away}, ""},
		"twice, and known of":            {2, []answer{says("a", "1", "m", "b", "c"), says("a", "name", "m", "b", "c")}, ""},
		"one that forgot the others":     {3, []answer{says("a", "1", "m"), away, away}, ""},
		"knows no such master":           {3, []answer{says("a", "1", ""), says("b", "2", ""), says("c", "3", "m")}, ""},
		"two know it":                    {3, []answer{says("a", "1", ""), says("b", "2", "m"), says("c", "3", "m")}, "m"},
		"four configured, one was never": {4, []answer{says("a", "1", "m", "b", "c"), says("b", "2", "m", "a", "c"), away}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			q := &question{least: tc.least, seen: make(map[string]string), votes: make(map[string]string)}
			for _, a := range tc.answers {
				if q.count(a) {
					break
				}
			}
			if q.master != tc.want {
				t.Errorf("the master is %q, want %q: %v", q.master, tc.want, q.verdict("x"))
			}
		})
	}
}
