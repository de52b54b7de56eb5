//go:build !race

package gatewaytest

import (
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// A log, as whoever sends to it and reads it sees it: one object that appends a message once for each (sender, id), and numbers them 1, 2, 3, ….
// Every operation must seem to happen at one moment between its call and its answer.

// linearInput is what a client asked for.
type linearInput struct {
	address string // which log
	read    bool
	// Of a send.
	from, id, content string
	// Of a read.
	after uint64
	limit int
}

// linearFate is what a client was told of a message.
type linearFate string

const (
	fateStored      linearFate = "stored"
	fateConflict    linearFate = "conflict"
	fateUnavailable linearFate = "unavailable" // certainly not stored
	fateUnknown     linearFate = "unknown"     // perhaps stored, at any time until the end
)

// linearOutput is what the client was told.
type linearOutput struct {
	fate   linearFate // of a send
	epoch  string
	offset uint64
	// Of a read.
	top      uint64
	messages []linearEntry
}

// linearEntry is a message of a log.
type linearEntry struct{ from, id, content string }

// linearLog is a state of a log. It is never changed: appending makes another one, which shares what is before.
type linearLog struct {
	before *linearLog // nil: this is the empty log
	entry  linearEntry
	epoch  string // "" until the first answer tells it
	top    uint64
	sum    uint64 // of all entries
}

func (l *linearLog) append(e linearEntry) *linearLog {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %q", l.sum, e)
	return &linearLog{before: l, entry: e, epoch: l.epoch, top: l.top + 1, sum: h.Sum64()}
}

// find returns the log as it was when a message was stored; nil: it wasn't.
func (l *linearLog) find(from, id string) *linearLog {
	for ; l.before != nil; l = l.before {
		if l.entry.from == from && l.entry.id == id {
			return l
		}
	}
	return nil
}

// in returns the log in an epoch; nil: it is in another one.
func (l *linearLog) in(epoch string) *linearLog {
	if l.epoch == epoch {
		return l
	}
	if l.epoch != "" {
		return nil
	}
	c := *l
	c.epoch = epoch
	return &c
}

// linearStep is the whole specification: whether a log could have answered so, and what it is then.
func linearStep(l *linearLog, in linearInput, out linearOutput) (bool, *linearLog) {
	if in.read {
		l = l.in(out.epoch)
		return l != nil && l.shows(in, out), l
	}
	stored := l.find(in.from, in.id)
	switch out.fate {
	case fateUnavailable:
		return true, l
	case fateConflict:
		return stored != nil && stored.entry.content != in.content, l
	case fateUnknown:
		// What never happened may as well happen behind everything that was seen.
		if stored == nil {
			l = l.append(linearEntry{in.from, in.id, in.content})
		}
		return true, l
	case fateStored:
		if l = l.in(out.epoch); l == nil {
			return false, l
		}
		if stored != nil {
			return stored.entry.content == in.content && stored.top == out.offset, l
		}
		return out.offset == l.top+1, l.append(linearEntry{in.from, in.id, in.content})
	}
	return false, l
}

// shows says whether a page is what the log has above an offset.
func (l *linearLog) shows(in linearInput, out linearOutput) bool {
	if out.top != l.top || uint64(len(out.messages)) != min(uint64(in.limit), l.top-min(in.after, l.top)) {
		return false
	}
	for ; l.top > in.after; l = l.before {
		if i := l.top - in.after - 1; i < uint64(len(out.messages)) && out.messages[i] != l.entry {
			return false
		}
	}
	return true
}

// linearModel tells porcupine of it.
var linearModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		logs := make(map[string][]porcupine.Operation)
		for _, op := range history {
			a := op.Input.(linearInput).address
			logs[a] = append(logs[a], op)
		}
		var all [][]porcupine.Operation
		for _, ops := range logs {
			all = append(all, ops)
		}
		return all
	},
	Init: func() any { return &linearLog{} },
	Step: func(state, in, out any) (bool, any) {
		ok, next := linearStep(state.(*linearLog), in.(linearInput), out.(linearOutput))
		return ok, next
	},
	Equal: func(a, b any) bool {
		x, y := a.(*linearLog), b.(*linearLog)
		return x.sum == y.sum && x.top == y.top && x.epoch == y.epoch
	},
	Hash: func(state any) uint64 { return state.(*linearLog).sum },
	DescribeOperation: func(in, out any) string {
		i, o := in.(linearInput), out.(linearOutput)
		if i.read {
			var ids []string
			for _, m := range o.messages {
				ids = append(ids, m.id)
			}
			return fmt.Sprintf("read above %d: top %d, %s", i.after, o.top, strings.Join(ids, " "))
		}
		return fmt.Sprintf("%s sends %s %s: %s %d", i.from, i.id, i.content, o.fate, o.offset)
	},
	DescribeState: func(state any) string {
		l := state.(*linearLog)
		return fmt.Sprintf("%s/%d, %s last", l.epoch, l.top, l.entry.id)
	},
}

// linearizable checks a history. When it is not, a picture of it is left for whoever wants to see where.
func linearizable(history []porcupine.Operation) error {
	// What nobody was told of may happen until the end.
	for i := range history {
		if history[i].Output.(linearOutput).fate == fateUnknown {
			history[i].Return = math.MaxInt64
		}
	}
	result, info := porcupine.CheckOperationsVerbose(linearModel, history, time.Minute)
	if result == porcupine.Ok {
		return nil
	}
	dir, err := os.MkdirTemp("", "chatgate-history-")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "history.html")
	if err := porcupine.VisualizePath(linearModel, info, path); err != nil {
		return err
	}
	return fmt.Errorf("no order of %d operations explains what was answered (%v): see %s", len(history), result, path)
}

// A checker that never failed proves nothing: a good history passes, and each lie in it is seen.
func TestHistoryCheckerSeesEachFault(t *testing.T) {
	send := func(call, back int64, id, content string, out linearOutput) porcupine.Operation {
		if out.fate == "" {
			out.fate = fateStored
		}
		if out.fate == fateStored && out.epoch == "" {
			out.epoch = "e"
		}
		return porcupine.Operation{Call: call, Return: back, Input: linearInput{address: "bob", from: "alice", id: id, content: content}, Output: out}
	}
	read := func(call, back int64, after uint64, ids ...string) porcupine.Operation {
		out := linearOutput{epoch: "e", top: after + uint64(len(ids))}
		for _, id := range ids {
			out.messages = append(out.messages, linearEntry{"alice", id, id})
		}
		return porcupine.Operation{Call: call, Return: back, Input: linearInput{address: "bob", read: true, after: after, limit: 50}, Output: out}
	}
	at := func(offset uint64) linearOutput { return linearOutput{offset: offset} }
	fate := func(f linearFate) linearOutput { return linearOutput{fate: f} }
	for name, tc := range map[string]struct {
		ok      bool
		history []porcupine.Operation
	}{
		"as it should be": {true, []porcupine.Operation{
			send(1, 2, "a", "a", at(1)), send(3, 6, "b", "b", at(3)), send(4, 5, "c", "c", at(2)), read(7, 8, 0, "a", "c", "b"), read(7, 8, 2, "b"),
		}},
		"repeated":                    {true, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "b", "b", at(2)), send(5, 6, "a", "a", at(1)), read(7, 8, 0, "a", "b")}},
		"unknown, and stored":         {true, []porcupine.Operation{send(1, 2, "a", "a", fate(fateUnknown)), send(3, 4, "b", "b", at(2)), read(5, 6, 0, "a", "b")}},
		"unknown, and stored later":   {true, []porcupine.Operation{send(1, 2, "a", "a", fate(fateUnknown)), send(3, 4, "b", "b", at(1)), read(5, 6, 0, "b"), read(7, 8, 0, "b", "a")}},
		"unknown, and never stored":   {true, []porcupine.Operation{send(1, 2, "a", "a", fate(fateUnknown)), send(3, 4, "b", "b", at(1)), read(5, 6, 0, "b")}},
		"unknown, repeated":           {true, []porcupine.Operation{send(1, 2, "a", "a", fate(fateUnknown)), send(3, 4, "a", "a", at(1)), read(5, 6, 0, "a")}},
		"unavailable, and not stored": {true, []porcupine.Operation{send(1, 2, "a", "a", fate(fateUnavailable)), send(3, 4, "b", "b", at(1)), read(5, 6, 0, "b")}},
		"another content":             {true, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "a", "x", fate(fateConflict)), read(5, 6, 0, "a")}},

		"stored twice":                    {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "a", "a", at(1)), read(5, 6, 0, "a", "a")}},
		"stored twice, unknown at first":  {false, []porcupine.Operation{send(1, 2, "a", "a", fate(fateUnknown)), send(3, 4, "a", "a", at(2)), read(5, 6, 0, "a", "a")}},
		"acknowledged and lost":           {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "b", "b", at(2)), read(5, 6, 0, "b")}},
		"the last one lost":               {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "b", "b", at(2)), read(5, 6, 0, "a")}},
		"a read that goes back":           {false, []porcupine.Operation{send(1, 9, "a", "a", at(1)), read(2, 3, 0, "a"), read(4, 5, 0)}},
		"two offsets for one message":     {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "b", "b", at(2)), send(5, 6, "a", "a", at(3))}},
		"one offset for two messages":     {false, []porcupine.Operation{send(1, 4, "a", "a", at(1)), send(2, 3, "b", "b", at(1))}},
		"a hole":                          {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "b", "b", at(3))}},
		"another order than of the calls": {false, []porcupine.Operation{send(1, 2, "a", "a", at(2)), send(3, 4, "b", "b", at(1))}},
		"unavailable, and stored":         {false, []porcupine.Operation{send(1, 2, "a", "a", fate(fateUnavailable)), read(3, 4, 0, "a")}},
		"a conflict with nothing":         {false, []porcupine.Operation{send(1, 2, "a", "a", fate(fateConflict))}},
		"a conflict with itself":          {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "a", "a", fate(fateConflict))}},
		"another content under its id":    {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "a", "x", at(1))}},
		"read in another order":           {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "b", "b", at(2)), read(5, 6, 0, "b", "a")}},
		"another epoch":                   {false, []porcupine.Operation{send(1, 2, "a", "a", at(1)), send(3, 4, "b", "b", linearOutput{epoch: "f", offset: 2})}},
		"read before it was sent":         {false, []porcupine.Operation{read(1, 2, 0, "a"), send(3, 4, "a", "a", at(1))}},
	} {
		t.Run(name, func(t *testing.T) {
			err := linearizable(tc.history)
			if (err == nil) != tc.ok {
				t.Errorf("linearizable: %v, want %v", err, tc.ok)
			}
			if err == nil {
				return
			}
			_, path, _ := strings.Cut(err.Error(), "see ")
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
			os.RemoveAll(filepath.Dir(path))
		})
	}
}
