//go:build !race

package gatewaytest

import (
	"encoding/json"
	"slices"
	"testing"
)

// A checker that never failed proves nothing: what it must see is done to a good record once each.
func TestOnceInOrderSeesEachFault(t *testing.T) {
	const messages = 4
	record := func() (from, to Notes) {
		from.User = "alice"
		for n := range messages {
			id, content, offset := "m"+itoa(n), itoa(n), uint64(n+1)
			from.Sent = append(from.Sent, Sent{ID: id, To: "bob", Content: content})
			from.Acked = append(from.Acked, Frame{Type: "ack", ID: id, Status: "routed", Epoch: "e", Offset: offset})
			to.Received = append(to.Received, Frame{
				Type: "message", ID: id, From: json.RawMessage(`"alice"`), Content: json.RawMessage(content), Epoch: "e", Offset: offset,
			})
		}
		return from, to
	}
	if from, to := record(); onceInOrder(from, to, messages) != nil {
		t.Fatalf("a good record fails: %v", onceInOrder(from, to, messages))
	}
	for name, spoil := range map[string]func(from, to *Notes){
		"lost":                func(from, to *Notes) { to.Received = slices.Delete(to.Received, 1, 2) },
		"twice":               func(from, to *Notes) { to.Received = slices.Insert(to.Received, 1, to.Received[1]) },
		"lost and twice":      func(from, to *Notes) { to.Received[2] = to.Received[1] },
		"swapped":             func(from, to *Notes) { to.Received[1], to.Received[2] = to.Received[2], to.Received[1] },
		"another's":           func(from, to *Notes) { to.Received[1].From = json.RawMessage(`"eve"`) },
		"changed":             func(from, to *Notes) { to.Received[1].Content = json.RawMessage(`9`) },
		"a hole":              func(from, to *Notes) { to.Received[3].Offset++ },
		"another epoch":       func(from, to *Notes) { to.Received[3].Epoch = "f" },
		"not acknowledged":    func(from, to *Notes) { from.Acked = from.Acked[1:] },
		"only stored":         func(from, to *Notes) { from.Acked[1].Status = "stored" },
		"ack of another":      func(from, to *Notes) { from.Acked[1].ID = "m9" },
		"ack at wrong offset": func(from, to *Notes) { from.Acked[1].Offset = 9 },
		"an error":            func(from, to *Notes) { from.Errors = append(from.Errors, Frame{Type: "error"}) },
		"stored in disorder": func(from, to *Notes) {
			a, b := &to.Received[1], &to.Received[2]
			*a, *b = *b, *a
			a.Offset, b.Offset = b.Offset, a.Offset
			from.Acked[1].Offset, from.Acked[2].Offset = from.Acked[2].Offset, from.Acked[1].Offset
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := record()
			spoil(&from, &to)
			if onceInOrder(from, to, messages) == nil {
				t.Error("the checker saw nothing")
			}
		})
	}
}
