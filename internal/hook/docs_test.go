//go:build !secondpass

package hook

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"chatgate/internal/protocol"
)

// The examples of docs/hooks.md, in their order: each question is what a backend gets, to the byte, and each answer is understood in all its fields.
func TestTheExamplesOfHooksAreTrue(t *testing.T) {
	text, err := os.ReadFile("../../docs/hooks.md")
	if err != nil {
		t.Fatal(err)
	}
	known := func(q Question) *Inquiry {
		return &Inquiry{
			Question: q, Gateway: "edge-1-k3j5x8ab", Conn: "019ab8e4", Ms: 1795310105531, User: "alice", Device: "phone", Meta: json.RawMessage(`{"contestId":42}`),
		}
	}
	register, join, message := known(AskRegister), known(AskJoin), known(AskMessage)
	register.User, register.Meta, register.Claimed, register.Address, register.Headers = "", json.RawMessage(`{"tab":1}`), "alice", "192.0.2.7", map[string]string{"cookie": "session=7"}
	join.Rooms = []string{"lobby", "staff"}
	message.ID, message.Room, message.Content = "m1", "lobby", json.RawMessage(`{"text":"hello"}`)
	questions := []*Inquiry{nil, register, nil, join, nil, message, nil, nil} // nil: an answer
	examples := regexp.MustCompile("(?ms)^```json\n(.*?)\n```").FindAllSubmatch(text, -1)
	if len(examples) != len(questions) {
		t.Fatalf("%d examples, want %d", len(examples), len(questions))
	}
	var answers []Decision
	for i, q := range questions {
		if q == nil {
			var d Decision
			if fault := d.read(examples[i][1]); fault != "" || d.Allow == nil {
				t.Fatalf("%s: %s", examples[i][1], fault)
			}
			var said map[string]json.RawMessage
			if err := json.Unmarshal(examples[i][1], &said); err != nil {
				t.Fatal(err)
			}
			for name := range said {
				if d.names()[name] == nil {
					t.Errorf("%s: nobody reads %s", examples[i][1], name)
				}
			}
			answers = append(answers, d)
		} else if body, err := json.Marshal(q); err != nil || string(body) != string(examples[i][1]) {
			t.Errorf("%v\nasked      %s\ndocumented %s", err, body, examples[i][1])
		}
	}
	if e := answers[0].ReplyError([]byte("1")); e.Code != protocol.CodeLimited || e.Message != "the chat opens at ten" || e.RetryAfterMs != 60000 {
		t.Errorf("denied with %+v", e)
	}
	if d := answers[1]; *d.User != "alice" || len(d.Join) != 1 || d.Rooms == nil || d.Watch == nil || d.Limits == nil || d.ExpiresAt == 0 {
		t.Errorf("%+v", d)
	}
	if d := answers[2]; d.Deny["staff"].Reason != "staff only" {
		t.Errorf("%+v", d)
	}
	if d := answers[3]; !d.Changes() {
		t.Errorf("%+v", d)
	}
	if d := answers[4]; string(d.Meta) != `{"language":"en","warned":null}` {
		t.Errorf("%+v", d)
	}
}
