package protocol

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/gateway and the generated part of docs/protocol.md")

// fromClient is what each file of testdata/client means.
var fromClient = map[string]Frame{
	"register": {Type: TypeRegister, UserID: []byte("alice")},
	"register-full": {
		Type: TypeRegister, UserID: []byte("alice"), Token: []byte("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln"), DeviceID: []byte("phone-1"),
		Meta:   []byte(`{"app":"shop","version":"3.2"}`),
		Resume: Resume{Set: true, HasEpoch: true, Epoch: []byte("9fK2mQx7aZ"), Offset: 41},
		Rooms:  []RoomResume{{Room: []byte("lobby"), Resume: Resume{Set: true, HasEpoch: true, Epoch: []byte("b3Rk0uT5yP"), Offset: 7}}, {Room: []byte("news")}},
	},
	"heartbeat": {Type: TypeHeartbeat},
	"message": {
		Type: TypeMessage, ID: []byte("0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11"), HasID: true, To: []byte("bob"), Content: []byte(`{"text":"hi"}`),
	},
	"message-ephemeral": {Type: TypeMessage, To: []byte("bob"), Content: []byte(`"typing"`), Ephemeral: true},
	"message-copy":      {Type: TypeMessage, ID: []byte("m-7"), HasID: true, To: []byte("bob"), Content: []byte(`["any",{"JSON":"value"},null,1.50]`), Copy: true},
	"message-room":      {Type: TypeMessage, ID: []byte("m-8"), HasID: true, Room: []byte("lobby"), Content: []byte(`"hello, all"`)},
	"received":          {Type: TypeReceived, Epoch: []byte("9fK2mQx7aZ"), Offset: 42},
	"join":              {Type: TypeJoin, ID: []byte("j-1"), HasID: true, Room: []byte("lobby"), Resume: Resume{Set: true}},
	"leave":             {Type: TypeLeave, ID: []byte("l-1"), HasID: true, Room: []byte("lobby")},
	"history":           {Type: TypeHistory, ID: []byte("h-1"), HasID: true, Epoch: []byte("9fK2mQx7aZ"), Before: 42, HasBefore: true, Limit: 20},
	"presence":          {Type: TypePresence, ID: []byte("p-1"), HasID: true, Users: [][]byte{[]byte("bob"), []byte("carol")}},
	"watch":             {Type: TypeWatch, ID: []byte("w-1"), HasID: true, Users: [][]byte{[]byte("bob")}},
	"unwatch":           {Type: TypeUnwatch, ID: []byte("w-2"), HasID: true, Users: [][]byte{[]byte("bob")}},
	"members":           {Type: TypeMembers, ID: []byte("n-1"), HasID: true, Room: []byte("lobby"), Cursor: []byte("bob"), Limit: 100},
	"refresh":           {Type: TypeRefresh, ID: []byte("t-1"), HasID: true, Token: []byte("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.bmV3")},
}

// fromGateway is how each file of testdata/gateway is made.
var fromGateway = map[string][]byte{
	"registered": AppendRegistered(nil, &Registered{
		UserID: "alice", ConnID: "0198c5a2-6f00-7a41-8f6e-3c1d2b4a5e60", GatewayID: "gw-1-k3v9qa", Epoch: "9fK2mQx7aZ", Offset: 41, First: 12, Top: 44, Recovered: true,
		HeartbeatIntervalMs: 30_000, PresenceTTLMs: 90_000, MaxFrameBytes: MaxFrameBytes, ServerTime: 1795305600000, ExpiresAt: 1795309200000,
	}),
	"joined": AppendJoined(nil, &Joined{
		ID: []byte("j-1"), Room: "lobby", Epoch: "b3Rk0uT5yP", Offset: 0, First: 1, Top: 120, Recovered: true,
	}),
	"joined-register": AppendJoined(nil, &Joined{
		Room: "news", Epoch: "Lw4sX9pD2c", Offset: 17, First: 1, Top: 17, Recovered: true,
	}),
	"refreshed": AppendRefreshed(nil, []byte("t-1"), 1795312800000),
	"left":      AppendLeft(nil, []byte("l-1"), "lobby"),
	"members": AppendMembers(nil, &Members{
		ID: []byte("n-1"), Room: "lobby", Count: 412, Users: []UserID{"carol", "dave"}, Next: "dave",
	}),
	"members-last": AppendMembers(nil, &Members{Room: "lobby", Count: 412, Users: []UserID{"zoe"}}),
	"members-push": AppendMembersPush(nil, &MembersPush{
		Room: "lobby", Count: 413, Named: true, Joined: []UserID{"erin", "frank"}, Left: []UserID{"bob"},
	}),
	"members-many": AppendMembersPush(nil, &MembersPush{Room: "lobby", Count: 288}),
	"gap": AppendGap(nil, &Gap{
		Epoch: "9fK2mQx7aZ", From: 42, Reason: GapHistory, Next: Position{Epoch: "Tz5uN8eWq1", Offset: 41},
	}),
	"gap-trimmed": AppendGap(nil, &Gap{
		Room: "lobby", Epoch: "b3Rk0uT5yP", From: 8, To: 120, Reason: GapTrimmed, Next: Position{Epoch: "b3Rk0uT5yP", Offset: 120},
	}),
	"gap-ahead": AppendGap(nil, &Gap{
		Epoch: "9fK2mQx7aZ", From: 40, To: 41, Reason: GapAhead, Next: Position{Epoch: "Tz5uN8eWq1", Offset: 39},
	}),
	"history": AppendHistoryTail(AppendMessageTail(append(AppendMessageTail(AppendMessageHead(
		AppendHistoryHead(nil, &HistoryHead{ID: []byte("h-1"), Epoch: "9fK2mQx7aZ", First: 12, Top: 44, More: true}),
		&MessageHead{ID: []byte("m-2"), From: "bob", To: []byte("alice"), Content: []byte(`"hello!"`), Ts: 1795305602345}),
		"9fK2mQx7aZ", 40), AppendMessageHead([]byte{','},
		&MessageHead{ID: []byte("m-3"), From: "carol", To: []byte("alice"), Content: []byte(`{"text":"hi"}`), Ts: 1795305603456})...),
		"9fK2mQx7aZ", 41)),
	"history-empty":      AppendHistoryTail(AppendHistoryHead(nil, &HistoryHead{Room: "lobby", Epoch: "b3Rk0uT5yP", First: 1})),
	"heartbeat":          AppendHeartbeat(nil, 1795305630000, false),
	"heartbeat-degraded": AppendHeartbeat(nil, 1795305660000, true),
	"ack-routed": AppendAck(nil, &Ack{
		ID: []byte("0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11"), Status: StatusRouted, Epoch: "c7Wd1LhE0s", Offset: 18, Devices: 2, HasDevices: true, Ts: 1795305601234,
	}),
	"ack-stored":  AppendAck(nil, &Ack{ID: []byte("m-7"), Status: StatusStored, Epoch: "c7Wd1LhE0s", Offset: 19, Ts: 1795305605678}),
	"ack-dropped": AppendAck(nil, &Ack{ID: []byte("s-1"), Status: StatusDropped, Ts: 1795305607000}),
	"message": AppendMessageTail(AppendMessageHead(nil, &MessageHead{
		ID: []byte("0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11"), From: "alice", To: []byte("bob"), Content: []byte(`{"text":"hi"}`), Ts: 1795305601234,
	}), "c7Wd1LhE0s", 18),
	"message-ephemeral": AppendMessageTail(AppendMessageHead(nil, &MessageHead{
		ID: []byte("0198c5a2-8e2f-7d4b-8c71-6a3a7a2a3b22"), From: "alice", To: []byte("bob"), Content: []byte(`"typing"`), Ts: 1795305606000, Ephemeral: true,
	}), "", 0),
	"message-everyone": AppendMessageTail(AppendMessageHead(nil, &MessageHead{
		ID: []byte("news-1"), From: "ops", Content: []byte(`"maintenance at six"`), Ts: 1795305606000, Ephemeral: true,
	}), "", 0),
	"message-own": AppendMessageTail(AppendMessageHead(nil, &MessageHead{
		ID: []byte("m-7"), From: "alice", To: []byte("bob"), Content: []byte(`["any",{"JSON":"value"},null,1.50]`), Ts: 1795305605678, Own: true,
	}), "9fK2mQx7aZ", 42),
	"message-room": AppendMessageTail(AppendMessageHead(nil, &MessageHead{
		ID: []byte("m-8"), From: "alice", Room: []byte("lobby"), Content: []byte(`"hello, all"`), Ts: 1795305608000,
	}), "b3Rk0uT5yP", 8),
	"message-meta": AppendMessageTail(AppendMessageHead(nil, &MessageHead{
		ID: []byte("m-9"), From: "alice", Meta: `{"contestId":42}`, Room: []byte("lobby"), Content: []byte(`"hello, all"`), Ts: 1795305609000,
	}), "b3Rk0uT5yP", 9),
	"presence": AppendPresence(nil, []byte("p-1"), []UserPresence{
		{User: "bob", State: StateOnline, Version: "r4Yx8.3", Devices: 2},
		{User: "carol", State: StateOffline, Version: "r4Yx8.6", LastSeen: 1795301000000},
	}),
	"presence-watch":   AppendPresence(nil, []byte("w-1"), []UserPresence{{User: "bob", State: StateOnline, Version: "r4Yx8.3", Devices: 2}}),
	"presence-push":    AppendPresence(nil, nil, []UserPresence{{User: "bob", State: StateOffline, Version: "r4Yx8.4", LastSeen: 1795305700000}}),
	"presence-unknown": AppendPresence(nil, []byte("p-2"), []UserPresence{{User: "bob", State: StateUnknown}}),
	"closing": AppendClosing(nil, &Closing{
		Code: CloseDraining, AfterMs: 200, WindowMs: 10_000,
	}),
	"closing-kicked":   AppendClosing(nil, &Closing{Code: CloseKicked, Reason: "spam", By: "support", At: 1795305606000}),
	"closing-replaced": AppendClosing(nil, &Closing{Code: CloseReplaced, By: "0198c5a2-7d1e-7c3a-9b60-5f2f6f1f2a11", At: 1795305607000}),
	"error":            AppendError(nil, &ReplyError{ID: "m-9", Code: CodeBadRequest, Message: "content: missing"}),
	"error-without-id": AppendError(nil, &ReplyError{Code: CodeNotRegistered, Message: "register first"}),
	"error-rooms":      AppendError(nil, &ReplyError{Code: CodeForbidden, Message: "room: the token does not allow it", Rooms: []RoomID{"attic", "staff"}}),
	"error-limited":    AppendError(nil, &ReplyError{ID: "m-10", Code: CodeLimited, Message: "too many messages", Limit: "message-rate", RetryAfterMs: 250}),
}

const docPath = "../../docs/protocol.md"

// golden returns the one line of a file of testdata.
func golden(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line, ok := bytes.CutSuffix(data, []byte("\n"))
	if !ok || bytes.Contains(line, []byte("\n")) {
		t.Fatalf("%s is not one line", path)
	}
	return line
}

// wantFiles checks that dir holds one file for each name, and no other.
func wantFiles[V any](t *testing.T, dir string, names map[string]V) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if _, ok := names[strings.TrimSuffix(filepath.Base(path), ".json")]; !ok {
			t.Errorf("%s is tested by nobody", path)
		}
	}
	if len(paths) != len(names) {
		t.Errorf("%d files in %s, want %d", len(paths), dir, len(names))
	}
}

func TestGoldenClientFramesDecode(t *testing.T) {
	wantFiles(t, "testdata/client", fromClient)
	seen := map[FrameType]bool{}
	for name, want := range fromClient {
		t.Run(name, func(t *testing.T) { wantFrame(t, string(golden(t, "testdata/client/"+name+".json")), want) })
		seen[want.Type] = true
	}
	for typ := TypeUnknown + 1; typ < typeCount; typ++ {
		if !seen[typ] {
			t.Errorf("no example of %s", typ)
		}
	}
}

func TestGoldenGatewayFramesAreWhatIsEncoded(t *testing.T) {
	for name, got := range fromGateway {
		t.Run(name, func(t *testing.T) {
			path := "testdata/gateway/" + name + ".json"
			if *update {
				if err := os.WriteFile(path, append(bytes.Clone(got), '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := golden(t, path); !bytes.Equal(got, want) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if !json.Valid(got) {
				t.Errorf("not JSON: %s", got)
			}
		})
	}
	wantFiles(t, "testdata/gateway", fromGateway)
}

// A frame cut anywhere is refused, whatever it is.
func TestCutFramesAreRefused(t *testing.T) {
	for name := range fromClient {
		data := golden(t, "testdata/client/"+name+".json")
		for n := range data {
			var f Frame
			if err := f.Decode(data[:n]); err == nil || !strings.HasSuffix(err.Message, faultEnd) {
				t.Fatalf("%s: %v", data[:n], err)
			}
		}
	}
}

func TestDocsQuoteEveryGoldenFrame(t *testing.T) {
	doc, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("testdata/*/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatal("no golden frames", err)
	}
	for _, path := range paths {
		if line := golden(t, path); !bytes.Contains(doc, append([]byte("\n"), append(line, '\n')...)) {
			t.Errorf("%s does not quote %s:\n%s", docPath, path, line)
		}
	}
}

// The other way around: docs show no frame that the tests don't know. A line that begins with a brace is a golden frame; in a
// conversation, what the client sends (→) decodes, and what it gets (←) has a type that gateways send.
func TestDocsShowOnlyRealFrames(t *testing.T) {
	doc, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("testdata/*/*.json")
	if err != nil {
		t.Fatal(err)
	}
	known, types := map[string]bool{}, map[string]bool{}
	typeIn := func(line string) string {
		var frame struct{ Type string }
		if err := json.Unmarshal([]byte(line), &frame); err != nil {
			t.Errorf("%s\n%v", line, err)
		}
		return frame.Type
	}
	for _, path := range paths {
		line := string(golden(t, path))
		known[line] = true
		if strings.Contains(path, "gateway") {
			types[typeIn(line)] = true
		}
	}
	spoken := 0
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimRight(line, "\n")
		if sent, ok := strings.CutPrefix(line, "→ "); ok {
			spoken++
			var f Frame
			if err := f.Decode([]byte(sent)); err != nil {
				t.Errorf("%s\n%v", sent, err)
			}
		} else if got, ok := strings.CutPrefix(line, "← "); ok {
			spoken++
			if !types[typeIn(got)] {
				t.Errorf("no golden frame of this type: %s", got)
			}
		} else if strings.HasPrefix(line, "{") && !known[line] {
			t.Errorf("no golden frame: %s", line)
		}
	}
	if spoken == 0 {
		t.Error("the docs show no conversation")
	}
}

const (
	markBegin = "<!-- generated: codes -->\n"
	markEnd   = "<!-- /generated -->\n"
)

// codesMarkdown is the generated part of docs/protocol.md.
func codesMarkdown() string {
	yes := map[bool]string{true: "yes", false: "no"}
	var b strings.Builder
	b.WriteString("\n### Error codes\n\n| code | repeat? | meaning |\n|---|---|---|\n")
	for _, e := range Errors {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", e.Code, yes[e.Retry], e.Meaning)
	}
	b.WriteString("\n### Close codes\n\n| code | name | come back? | meaning |\n|---|---|---|---|\n")
	for _, c := range Closes {
		fmt.Fprintf(&b, "| %d | `%s` | %s | %s |\n", c.Code, c.Name, yes[c.Reconnect], c.Meaning)
	}
	b.WriteString("\n### Limits\n\n| `limit` | what it bounds | over it | again |\n|---|---|---|---|\n")
	for _, l := range Limits {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", l.Name, l.Meaning, l.Answer, l.Again)
	}
	b.WriteString("\nMost are settings of the operator: `limits.` and the name, with their figures in [configuration.md](configuration.md#limits).\n\n")
	return b.String()
}

func TestDocsListTheCodes(t *testing.T) {
	doc, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), markBegin)
	got, after, ok2 := strings.Cut(rest, markEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no generated part", docPath)
	}
	want := codesMarkdown()
	if got == want {
		return
	}
	if *update {
		if err := os.WriteFile(docPath, []byte(before+markBegin+want+markEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("go test ./internal/protocol -update rewrites this part of %s:\n%s", docPath, cmp.Diff(got, want))
}
