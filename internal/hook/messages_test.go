//go:build !secondpass

package hook

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
)

// Events of messages come beside the others, each kind in its order, to the sinks that want them; and where an event of either stream has
// the same id in Redis, they are two for who receives them.
func TestEventsOfMessagesComeBesideTheOthers(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, all, some, others := newWorld(t, r), gatewaytest.StartReceiver(t), gatewaytest.StartReceiver(t), gatewaytest.StartReceiver(t)
		w.messages = true
		sinks := []SinkConfig{webhookTo(all, Filter{}), webhookTo(some, Filter{Types: []string{"message"}}), webhookTo(others, Filter{Types: []string{"connect"}})}
		sinks[1].Name, sinks[2].Name = "messages", "others"
		nodes := []*node{w.gateway("a", sinks...), w.gateway("b", sinks...)}
		for i := range 40 {
			w.happenEach(1, i, i+1)
			w.said("alice", "user0", strconv.Itoa(i))
		}
		ids := make(map[string]bool)
		for name, tc := range map[string]struct {
			to   *gatewaytest.Receiver
			want int
		}{"all": {all, 80}, "messages": {some, 40}, "others": {others, 40}} {
			w.eventually(func() error {
				events, _, err := tc.to.Once()
				if err != nil {
					t.Fatal(err)
				}
				if len(events) != tc.want {
					return fmt.Errorf("%s: %d events", name, len(events))
				}
				return nil
			})
			events, _, _ := tc.to.Once()
			next := map[string]int{}
			for _, e := range events {
				value := e.Meta
				if e.Type == "message" {
					value = e.Content
				}
				if string(value) != strconv.Itoa(next[e.Type]) {
					t.Fatalf("%s: a %s with %s, want %d", name, e.Type, value, next[e.Type])
				}
				next[e.Type]++
				ids[e.ID] = true
			}
		}
		if len(ids) != 80 {
			t.Errorf("%d ids of 80 events", len(ids))
		}
		// Who wants no messages has no place among them, and reads none.
		for _, g := range w.layout.Groups() {
			groups, err := r.Client().XInfoGroups(context.Background(), keyspace.MessageEvents(g)).Result()
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range groups {
				if x.Name == "others" {
					t.Errorf("%s: the sink of other events reads messages", g)
				}
			}
		}
		for i, want := range []uint64{0, 0, 0} {
			var filtered uint64
			for _, n := range nodes {
				filtered += n.hooks.Stats()[i].Filtered
			}
			if filtered != want {
				t.Errorf("sink %d passed over %d events", i, filtered)
			}
		}
	})
}

// A flood of messages, with the sink away: what falls out of retention are messages, and they are counted. No disconnect does.
func TestMessagesPushNothingElseOut(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
		w.messages, w.kept = true, 100
		to.Answer(503)
		a := w.gateway("a", webhookTo(to, Filter{}))
		w.happenEach(1, 0, 50)
		for i := range 1000 {
			w.said("alice", "user0", strconv.Itoa(i))
		}
		to.Answer(0)
		var messages, others int
		w.eventually(func() error {
			messages, others = 0, 0
			for _, e := range to.Events() {
				if e.Type == "message" {
					messages++
				} else {
					others++
				}
			}
			s := a.hooks.Stats()[0]
			if s.Backlog != 0 || others < 50 || uint64(messages)+s.Lost < 1000 {
				return fmt.Errorf("%d others and %d messages came: %+v", others, messages, s)
			}
			return nil
		})
		if s := a.hooks.Stats()[0]; others != 50 || s.Lost < 600 || s.Lost+uint64(messages) != 1000 {
			t.Errorf("%d others and %d messages came: %+v", others, messages, s)
		}
	})
}

// Large messages come a few at a time, however many a batch may hold, also to who takes over what was read: no answer of Redis is so large that it can't be had in
// time, and small ones still come together.
func TestLargeMessagesComeAFewAtATime(t *testing.T) {
	w, to := newWorld(t, gatewaytest.Shared(t, gatewaytest.Standalone)), gatewaytest.StartReceiver(t)
	w.messages = true
	const before, large, small = 20, 40, 200
	for range before {
		w.said("alice", "user0", `0`)
	}
	for i := range large {
		w.said("alice", "user0", fmt.Sprintf(`"%d %s"`, i, strings.Repeat("x", 100_000)))
	}
	for range small {
		w.said("alice", "user0", `0`)
	}
	to.Answer(503)
	sink := webhookTo(to, Filter{})
	sink.Batch = 1000
	a := w.gateway("a", sink)
	w.eventually(func() error {
		if n := a.hooks.Stats()[0].Failures; n == 0 {
			return fmt.Errorf("nothing was tried yet")
		}
		return nil
	})
	a.kill()
	w.gateway("b", sink)
	to.Answer(0)
	var events []gatewaytest.Received
	w.eventually(func() (err error) {
		if events, _, err = to.Once(); err != nil || len(events) != before+large+small {
			return fmt.Errorf("%d events came (%w)", len(events), err)
		}
		return nil
	})
	for i, e := range events[before : before+large] {
		if content := string(e.Content); !strings.HasPrefix(content, fmt.Sprintf(`"%d `, i)) {
			t.Errorf("%.10s came as number %d", content, i)
		}
	}
	batches := to.Sizes()
	if n := slices.Max(batches); n > 2_000_000 {
		t.Errorf("%d bytes came at once", n)
	}
	if len(batches) > 12 {
		t.Errorf("%d batches came", len(batches))
	}
}

// Every field of an event of a message, as a sink gets it and as SQL does.
func TestAnEventOfAMessage(t *testing.T) {
	w, to := newWorld(t, gatewaytest.StartEmbedded(t)), gatewaytest.StartReceiver(t)
	w.messages = true
	w.gateway("a", webhookTo(to, Filter{Types: []string{"message"}}))
	w.said("alice", "bob", `{"text": "a<b", "n": [1,  2]}`)
	w.eventually(func() error {
		if to.Count() != 1 {
			return fmt.Errorf("%d events came", to.Count())
		}
		return nil
	})
	_, body := to.Last()
	var batch struct{ Events []*Event }
	if err := json.Unmarshal(body, &batch); err != nil {
		t.Fatal(err)
	}
	e := batch.Events[0]
	want := fmt.Sprintf(`{"id":%q,"n":1,"type":"message","user":"alice","conn":"019ab8e4","device":"phone","gateway":"edge-1-k3j5x8ab","meta":{"contestId":7},`+
		`"to":"bob","message":"m1","status":"routed","epoch":"9fK2mQx7aZ","offset":1,"devices":2,"ts":1795310105000,"content":{"text":"a<b","n":[1,2]},"ms":%d}`, e.ID, e.Ms)
	if got := string(e.appendJSON(nil)); got != want {
		t.Errorf("the event is\n%s, want\n%s", got, want)
	}
	s, err := parseStatement("SELECT :user, :to, :room, :message, :status, :epoch, :offset, :devices, :ts, :content, :content.text, :content.n, :content.none, :meta.contestId")
	if err != nil {
		t.Fatal(err)
	}
	values := []any{
		"alice", "bob", nil, "m1", "routed", "9fK2mQx7aZ", int64(1), int64(2), int64(1795310105000), `{"text":"a<b","n":[1,2]}`, "a<b", "[1,2]", nil, int64(7),
	}
	if diff := cmp.Diff(values, s.args(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What no gateway of this version writes spoils nothing: the event comes, with what can be read of it.
func TestAStrangeEventOfAMessageIsNoTrouble(t *testing.T) {
	for name, fields := range map[string][]any{
		"nothing":          {},
		"an answer cut":    {"sent", "r e1"},
		"a number too big": {"sent", "r e1 99999999999999999999999 1 1"},
		"no object":        {"origin", `[1]`},
		"half an object":   {"origin", `{"user":"ali`},
		"another type":     {"origin", `{"user":7}`},
		"half a frame":     {"frame", `{"type":"message","content":"ab`},
		"no frame":         {"frame", ``},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := parseEvent(keyspace.All, fromMessages, []any{"5-0", append([]any{"n", "1", "type", "message", "ms", "9"}, fields...)})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(e.appendJSON(nil)); got != `{"id":"all-m5-0","n":1,"type":"message","ms":9}` {
				t.Errorf("the event is %s", got)
			}
		})
	}
}

// SQL gets the content that the other sinks get: without the spaces its sender put between its parts.
func TestStatementsGetContentWithoutSpaces(t *testing.T) {
	e, err := parseEvent(keyspace.All, fromMessages, []any{"5-0", []any{"frame", `{"type":"message","id":"m","from":"a","to":"b","content":{"text": "a  b", "n": [1,  2]}`}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseStatement("SELECT :content, :content.n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]any{`{"text":"a  b","n":[1,2]}`, `[1,2]`}, s.args(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
