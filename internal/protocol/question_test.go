package protocol

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// questions and answers are what stands on a channel, byte by byte: gateways of other versions read it.
var questions = map[string]Question{
	"\x01q7 gw-1-k3v9qa 500\nconnection\n{\"connId\":\"c1\"}":                   {ID: 7, Asker: "gw-1-k3v9qa", Within: 500, Verb: VerbConnection, Body: `{"connId":"c1"}`},
	"\x01q18446744073709551615 a-1 0\nload\n":                                   {ID: 1<<64 - 1, Asker: "a-1", Verb: VerbLoad},
	"\x01q8 gw-1-k3v9qa 500\njoin\n{\"userId\":\"a b\\n\",\"rooms\":[\"x\"]}\n": {ID: 8, Asker: "gw-1-k3v9qa", Within: 500, Verb: VerbJoin, Body: "{\"userId\":\"a b\\n\",\"rooms\":[\"x\"]}\n"},
	"\x01q9 a-1 70000\nwhatever-comes-next\nx":                                  {ID: 9, Asker: "a-1", Within: 70000, Verb: "whatever-comes-next", Body: "x"},
}

var answers = map[string]Answer{
	"\x01r7 gw-2-p0q8zz 1 0\ndone\n{\"held\":true}": {ID: 7, Gateway: "gw-2-p0q8zz", Number: 1, Status: AnswerDone, Body: `{"held":true}`},
	"\x01r9 b-1 1 0\nnot-understood\n":              {ID: 9, Gateway: "b-1", Number: 1, Status: AnswerNotUnderstood},
	"\x01r9 b-1 3 1\ndone\na\nb":                    {ID: 9, Gateway: "b-1", Number: 3, More: true, Status: AnswerDone, Body: "a\nb"},
	"\x01r9 b-1 4 0\nrefused\nbusy":                 {ID: 9, Gateway: "b-1", Number: 4, Status: AnswerRefused, Body: "busy"},
}

func TestQuestionsAndAnswersAreWrittenAndReadExactly(t *testing.T) {
	for payload, want := range questions {
		if got := AppendQuestion([]byte{}, &want); string(got) != payload {
			t.Errorf("%+v became %q, want %q", want, got, payload)
		}
		kind, body, err := OpenEnvelope(payload)
		if err != nil || kind != EnvelopeQuestion {
			t.Fatalf("%q: kind %q, %v", payload, kind, err)
		}
		if got, err := OpenQuestion(body); err != nil || got != want {
			t.Errorf("%q is %+v, %v, want %+v", payload, got, err, want)
		}
	}
	for payload, want := range answers {
		if got := AppendAnswer([]byte{}, &want); string(got) != payload {
			t.Errorf("%+v became %q, want %q", want, got, payload)
		}
		kind, body, err := OpenEnvelope(payload)
		if err != nil || kind != EnvelopeAnswer {
			t.Fatalf("%q: kind %q, %v", payload, kind, err)
		}
		if got, err := OpenAnswer(body); err != nil || got != want {
			t.Errorf("%q is %+v, %v, want %+v", payload, got, err, want)
		}
	}
	for _, body := range []string{
		"", "7", "7 a 5", "7 a 5\nload", "7 a 5\n\n", "7 a x\nload\n", "x a 5\nload\n", "-1 a 5\nload\n", "7  5\nload\n", "7 a -1\nload\n",
		"7 a 5 6\nload\n", "7 a 99999999999\nload\n",
	} {
		if got, err := OpenQuestion(body); !errors.Is(err, ErrEnvelope) {
			t.Errorf("%q is %+v, %v", body, got, err)
		}
	}
	for _, body := range []string{
		"", "7 b 1 0", "7 b 1 0\ndone", "7 b 1 0\n\n", "7 b 0 0\ndone\n", "7 b 1 2\ndone\n", "7 b 1\ndone\n", "x b 1 0\ndone\n", "7  1 0\ndone\n", "7 b x 0\ndone\n",
	} {
		if got, err := OpenAnswer(body); !errors.Is(err, ErrEnvelope) {
			t.Errorf("%q is %+v, %v", body, got, err)
		}
	}
}

// The bodies, as other versions read them.
func TestBodiesOfQuestions(t *testing.T) {
	for want, body := range map[string]any{
		`{"connId":"c1"}`: &ConnectionQuestion{Conn: "c1"},
		`{"held":true,"remoteAddr":"10.0.0.7:5000","rooms":["lobby"],"watches":2,"waitingBytes":0,"inFlight":1,"silentMs":3,"idleMs":4,"expiresAt":5,"tokenId":"t"}`: &ConnectionDetails{
			Held: true, Remote: "10.0.0.7:5000", Rooms: []RoomID{"lobby"}, Watches: 2, InFlight: 1, SilentMs: 3, IdleMs: 4, ExpiresAt: 5, TokenID: "t",
		},
		`{"userId":"alice","connId":"c1","rooms":["lobby","news"]}`:         &RoomsQuestion{User: "alice", Conn: "c1", Rooms: []RoomID{"lobby", "news"}},
		`{"userId":"alice","rooms":["lobby"]}`:                              &RoomsQuestion{User: "alice", Rooms: []RoomID{"lobby"}},
		`{"connections":[{"connId":"c1","outcomes":["joined","already"]}]}`: &RoomsOutcome{Connections: []RoomsOfConnection{{Conn: "c1", Outcomes: []RoomOutcome{RoomJoined, RoomAlready}}}},
		`{"keep":20,"rate":50}`:                                             &LoadQuestion{Keep: 20, Rate: 50},
		`{"connections":31,"state":"shedding","shedding":11}`:               &Load{Connections: 31, State: LoadShedding, Shedding: 11},
	} {
		got, err := json.Marshal(body)
		if err != nil || string(got) != want {
			t.Errorf("%T is %s, %v, want %s", body, got, err, want)
		}
		again := body
		if err := json.Unmarshal([]byte(want), again); err != nil {
			t.Errorf("%s: %v", want, err)
		} else if diff := cmp.Diff(body, again); diff != "" {
			t.Errorf("%s: %s", want, diff)
		}
	}
}
