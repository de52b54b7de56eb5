//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// neighbours are two who chat while others misbehave: they must notice nothing.
type neighbours struct {
	alice, bob *Client
	said       int
}

func (n *neighbours) wantChat(t *testing.T) {
	t.Helper()
	n.said++
	within, began := Busier(t), time.Now()
	id, err := n.alice.Send(n.bob.Name, n.said, "")
	if err != nil {
		t.Fatal(err)
	}
	f, err := n.bob.Next("message", Deadline)
	if err != nil {
		t.Fatal(err)
	}
	if string(f.Content) != itoa(n.said) || f.Sender() != n.alice.Name {
		t.Fatalf("bob got %v, want %d from alice", f, n.said)
	}
	if ack, err := n.alice.Ack(id, Deadline); err != nil || ack.Status != "routed" {
		t.Fatalf("alice's ack: %v, %v", ack, err)
	}
	if took := time.Since(began); took > within(time.Second) {
		t.Errorf("the neighbours waited %v", took)
	}
}

// Whatever a client sends, it gets the documented error or close code, and nobody else notices.
func TestBadFramesAreAnsweredAndHurtNobodyElse(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--limits.connect-rate-per-ip=0"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}

	const message = `{"type":"message","id":"m","to":"bob","content":`
	for name, tc := range map[string]struct {
		frame   string
		binary  bool
		before  bool   // sent without having registered
		want    string // the code of the error frame; empty: none
		wantEnd int    // the close code; 0: the connection lives
	}{
		"unknown type":           {frame: `{"type":"dance"}`, want: "unknown_type"},
		"type in another case":   {frame: `{"type":"Heartbeat"}`, want: "unknown_type"},
		"type under another key": {frame: `{"TYPE":"heartbeat"}`, want: "bad_request"},
		"no type":                {frame: `{"id":"m"}`, want: "bad_request"},
		"type is a number":       {frame: `{"type":1}`, want: "bad_request"},
		"empty":                  {frame: ``, want: "bad_request"},
		"null":                   {frame: `null`, want: "bad_request"},
		"an array":               {frame: `[]`, want: "bad_request"},
		"a number":               {frame: `1`, want: "bad_request"},
		"not JSON":               {frame: `hello`, want: "bad_request"},
		"cut short":              {frame: `{"type":"heartb`, want: "bad_request"},
		"two objects":            {frame: `{"type":"heartbeat"}{"type":"heartbeat"}`, want: "bad_request"},
		"a byte order mark":      {frame: "\ufeff" + `{"type":"heartbeat"}`, want: "bad_request"},
		"a key twice":            {frame: `{"type":"message","to":"bob","to":"eve","content":1}`, want: "bad_request"},
		"deep":                   {frame: message + strings.Repeat("[", 30000) + strings.Repeat("]", 30000) + `}`, want: "bad_request"},
		"65 levels":              {frame: message + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}`, want: "bad_request"},
		"NUL between fields":     {frame: "{\"type\":\"heartbeat\"\x00}", want: "bad_request"},
		"NUL in a text":          {frame: message + "\"a\x00b\"}", want: "bad_request"},
		"a line break in a text": {frame: message + "\"a\nb\"}", want: "bad_request"},
		"an offset of 1e400":     {frame: `{"type":"received","epoch":"e","offset":1e400}`, want: "bad_request"},
		"an offset of 2^64":      {frame: `{"type":"received","epoch":"e","offset":18446744073709551616}`, want: "bad_request"},
		"an offset below zero":   {frame: `{"type":"received","epoch":"e","offset":-1}`, want: "bad_request"},
		"an offset with a point": {frame: `{"type":"received","epoch":"e","offset":7.0}`, want: "bad_request"},
		"an offset as a text":    {frame: `{"type":"received","epoch":"e","offset":"7"}`, want: "bad_request"},
		"rooms as a list":        {frame: `{"type":"join","room":["lobby"]}`, want: "bad_request"},
		"a flag as a text":       {frame: `{"type":"message","to":"bob","content":1,"ephemeral":"yes"}`, want: "bad_request"},
		"users that hold a null": {frame: `{"type":"presence","id":"p","users":["bob",null]}`, want: "bad_request"},
		"a resume from nowhere":  {frame: `{"type":"join","room":"lobby","resume":7}`, want: "bad_request"},
		"a lone surrogate":       {frame: `{"type":"message","to":"\ud800","content":1}`, want: "bad_request"},
		"content cut short":      {frame: message + `{"a":1}`, want: "bad_request"},
		"content closes early":   {frame: message + `1},"from":"eve"}`, want: "bad_request"},
		"content is two values":  {frame: message + `1 2}`, want: "bad_request"},
		"no content":             {frame: `{"type":"message","id":"m","to":"bob"}`, want: "bad_request"},
		"no receiver":            {frame: `{"type":"message","id":"m","content":1}`, want: "bad_request"},
		"two receivers":          {frame: `{"type":"message","id":"m","to":"bob","room":"lobby","content":1}`, want: "bad_request"},
		"receiver is a list":     {frame: `{"type":"message","id":"m","to":["bob"],"content":1}`, want: "bad_request"},
		"receiver is empty":      {frame: `{"type":"message","id":"m","to":"","content":1}`, want: "bad_request"},
		"receiver of 129 bytes":  {frame: `{"type":"message","id":"m","to":"` + strings.Repeat("b", 129) + `","content":1}`, want: "bad_request"},
		"receiver of 10 KB":      {frame: `{"type":"message","id":"m","to":"` + strings.Repeat("b", 10<<10) + `","content":1}`, want: "bad_request"},
		"receiver with NUL":      {frame: `{"type":"message","id":"m","to":"b\u0000b","content":1}`, want: "bad_request"},
		"receiver with CRLF":     {frame: `{"type":"message","id":"m","to":"b\r\nb","content":1}`, want: "bad_request"},
		"receiver with C1":       {frame: `{"type":"message","id":"m","to":"b\u0085b","content":1}`, want: "bad_request"},
		"id of 65 bytes":         {frame: `{"type":"message","id":"` + strings.Repeat("m", 65) + `","to":"bob","content":1}`, want: "bad_request"},
		"id is a number":         {frame: `{"type":"message","id":1,"to":"bob","content":1}`, want: "bad_request"},
		"presence of nobody":     {frame: `{"type":"presence","id":"p"}`, want: "bad_request"},
		"presence of a word":     {frame: `{"type":"presence","id":"p","users":"bob"}`, want: "bad_request"},
		"register twice":         {frame: `{"type":"register","userId":"mallory"}`, want: "already_registered"},
		"register twice as self": {frame: `{"type":"register","userId":"carol"}`, want: "already_registered"},

		"message before register":   {before: true, frame: message + `1}`, want: "not_registered"},
		"heartbeat before register": {before: true, frame: `{"type":"heartbeat"}`, want: "not_registered"},
		"presence before register":  {before: true, frame: `{"type":"presence","id":"p","users":["bob"]}`, want: "not_registered"},
		"register as nobody":        {before: true, frame: `{"type":"register"}`, want: "bad_request"},
		"register as empty":         {before: true, frame: `{"type":"register","userId":""}`, want: "bad_request"},
		"register as 129 bytes":     {before: true, frame: `{"type":"register","userId":"` + strings.Repeat("x", 129) + `"}`, want: "bad_request"},
		"register as two lines":     {before: true, frame: `{"type":"register","userId":"a\nb"}`, want: "bad_request"},
		"register as a number":      {before: true, frame: `{"type":"register","userId":7}`, want: "bad_request"},
		"register, meta a list":     {before: true, frame: `{"type":"register","userId":"carol","meta":[1]}`, want: "bad_request"},
		"register, meta of 2 KB":    {before: true, frame: `{"type":"register","userId":"carol","meta":{"a":"` + strings.Repeat("x", 2<<10) + `"}}`, want: "too_large"},
		"register, empty device":    {before: true, frame: `{"type":"register","userId":"carol","deviceId":""}`, want: "bad_request"},

		"100,000 levels":   {frame: message + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, wantEnd: websocket.CloseMessageTooBig},
		"too large":        {frame: message + `"` + strings.Repeat("x", 64<<10) + `"}`, wantEnd: websocket.CloseMessageTooBig},
		"much too large":   {frame: strings.Repeat("x", 4<<20), wantEnd: websocket.CloseMessageTooBig},
		"bad UTF-8":        {frame: message + "\"\xff\"}", wantEnd: websocket.CloseInvalidFramePayloadData},
		"surrogates as is": {frame: message + "\"\xed\xa0\x80\"}", wantEnd: websocket.CloseInvalidFramePayloadData},
		"binary":           {frame: `{"type":"heartbeat"}`, binary: true, wantEnd: websocket.CloseUnsupportedData},
	} {
		t.Run(name, func(t *testing.T) {
			c := Open(t, g.WS())
			if !tc.before {
				if _, err := c.Register("carol"); err != nil {
					t.Fatal(err)
				}
			}
			kind := websocket.TextMessage
			if tc.binary {
				kind = websocket.BinaryMessage
			}
			// Writing more than is read may fail when the gateway has closed already.
			if err := c.WriteFrame(kind, []byte(tc.frame)); err != nil && tc.wantEnd == 0 {
				t.Fatal(err)
			}
			if tc.want != "" {
				f, err := c.Next("error", Deadline)
				if err != nil {
					t.Fatal(err)
				}
				if f.CodeText() != tc.want || f.Message == "" {
					t.Errorf("got %v, want %s with a message", f, tc.want)
				}
			}
			if tc.wantEnd != 0 {
				wantEnd(t, c, tc.wantEnd)
			} else if err := wantAlive(c, tc.before); err != nil {
				t.Error(err)
			}
			n.wantChat(t)
		})
	}
	if left := n.bob.Left("message"); len(left) > 0 {
		t.Errorf("bob got what nobody could send: %v", left)
	}
}

func wantEnd(t *testing.T, c *Client, code int) {
	t.Helper()
	ended, err := c.WaitEnd(Deadline)
	if err != nil {
		t.Fatal(err)
	}
	if ended.Code != code {
		t.Errorf("%v, want close code %d", ended, code)
	}
	if ended.Closing == nil || ended.Closing.CodeText() != itoa(code) || ended.Closing.Reconnect {
		t.Errorf("%v, want a closing frame with the code, and without reconnect", ended)
	}
}

// wantAlive says whether the connection is of use after its mistake.
func wantAlive(c *Client, register bool) error {
	if register {
		if _, err := c.Register("carol"); err != nil {
			return fmt.Errorf("after the mistake: %w", err)
		}
	}
	if _, err := c.Heartbeat(Deadline); err != nil {
		return fmt.Errorf("after the mistake: %w", err)
	}
	return nil
}

// A frame of exactly the limit is fine.
func TestFrameOfExactlyTheLimitIsTaken(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{})
	alice, bob := Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob")
	frame := `{"type":"message","id":"m","to":"bob","content":"`
	content := strings.Repeat("x", 64<<10-len(frame)-len(`"}`))
	if err := alice.WriteFrame(websocket.TextMessage, []byte(frame+content+`"}`)); err != nil {
		t.Fatal(err)
	}
	if ack, err := alice.Ack("m", Deadline); err != nil || ack.Status != "routed" {
		t.Fatalf("%v, %v, want routed", ack, err)
	}
	if f, err := bob.Next("message", Deadline); err != nil || text(f.Content) != content {
		t.Fatalf("bob got %d bytes, %v, want %d", len(f.Content), err, len(content)+2)
	}
}

// Ids are names, whatever they look like: each is its own address, and none reaches into keys, channels or another's.
func TestStrangeIdsAreNamesLikeOthers(t *testing.T) {
	ids := map[string]string{
		"colon":            "a:b",
		"braces":           "{x}",
		"braces reversed":  "}{",
		"an open brace":    "{",
		"a star":           "*",
		"a question mark":  "?[a-z]",
		"a space":          " ",
		"spaces around":    " alice ",
		"another case":     "ALICE",
		"our address":      "u:alice",
		"our room address": "r:lobby",
		"our keys":         "cg:{p17}:gw:x",
		"a path":           "../..",
		"a quote":          `a"b\c`,
		"markup":           "<script>&amp;",
		"a percent":        "%s%00",
		"a look-alike":     "аlice", // the first letter is Cyrillic
		"composed":         "\u00e9",
		"decomposed":       "e\u0301",
		"an emoji":         "👩‍👩‍👧",
		"a private one":    "\U0010fffd",
		"digits":           "0",
		"128 bytes":        strings.Repeat("é", 64),
		"number as text":   "1e400",
		"a shell word":     "$(reboot)",
		"a line separator": "a\u2028b",
	}
	EachRedis(t, func(t *testing.T, r *Redis) {
		g := StartGateway(t, r, Options{Flags: []string{"--limits.connect-rate-per-ip=0"}})
		sender := Connect(t, g.WS(), "alice", "deviceId", "*")
		clients := make(map[string]*Client)
		for name, id := range ids {
			clients[name] = Connect(t, g.WS(), id, "deviceId", id)
		}
		for name, id := range ids {
			sent, err := sender.Send(id, name, "m:{"+name+"}*")
			if err != nil {
				t.Fatal(err)
			}
			if ack, err := sender.Ack(sent, Deadline); err != nil || ack.Status != "routed" || ack.DeviceCount() != 1 || ack.Offset != 1 {
				t.Errorf("to %q: %v, %v, want routed to 1 device at offset 1", id, ack, err)
			}
		}
		for name, c := range clients {
			f, err := c.Next("message", Deadline)
			if err != nil {
				t.Errorf("%q: %v", ids[name], err)
				continue
			}
			if text(f.Content) != name || text(f.To) != ids[name] {
				t.Errorf("%q got %v", ids[name], f)
			}
		}
		for name, c := range clients {
			if left := c.Left("message"); len(left) > 0 {
				t.Errorf("%q got another's message: %v", ids[name], left)
			}
			if states, err := sender.Presence(ids[name]); err != nil || states[ids[name]].State != "online" || states[ids[name]].Devices != 1 {
				t.Errorf("presence of %q: %v, %v", ids[name], states, err)
			}
		}
	})
}

// Content is passed on as the bytes that came, and can't add a field to the frame around it.
func TestContentArrivesAsTheBytesThatWereSent(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{})
	alice, bob := Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob")
	for i, content := range []string{
		`null`, `true`, `0`, `-0.0e-10`, `1e400`, `18446744073709551616`, `""`, `" "`, `"<&>\u003c\/"`, `{}`, `[ ]`,
		`{ "a" : 1 , "a" : 2 }`, `{"type":"closing","from":"eve","offset":99}`, `"\ud83d\ude00"`, `"😀\u2028"`,
		strings.Repeat("[", 63) + strings.Repeat("]", 63),
	} {
		frame := fmt.Sprintf(`{"type":"message","id":"m%d","to":"bob","content":%s}`, i, content)
		if err := alice.WriteFrame(websocket.TextMessage, []byte(frame)); err != nil {
			t.Fatal(err)
		}
		if ack, err := alice.Ack("m"+itoa(i), Deadline); err != nil || ack.Type != "ack" {
			t.Errorf("%s: %v, %v", content, ack, err)
			continue
		}
		f, err := bob.Next("message", Deadline)
		if err != nil {
			t.Fatal(err)
		}
		// Frame.Content is the raw text of the field.
		if string(f.Content) != content || f.Sender() != "alice" || f.Offset != uint64(i+1) {
			t.Errorf("bob got %v, want the content %s", f, content)
		}
		if !json.Valid(f.Raw) {
			t.Errorf("not JSON: %s", f.Raw)
		}
	}
}

// Refused before the upgrade, with the reason and a time to come back.
func TestConnectionsPastTheLimitAreRefusedWith503(t *testing.T) {
	g := StartGateway(t, Shared(t, Embedded), Options{Flags: []string{"--limits.max-connections=2"}})
	alice, _ := Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob")
	_, err := Dial(g.WS(), nil)
	refused, ok := err.(*Refused)
	if !ok || refused.Status != http.StatusServiceUnavailable || refused.Header.Get("Retry-After") == "" {
		t.Fatalf("%v, want 503 with Retry-After", err)
	}
	if err := alice.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Poll(Deadline, func() error {
		c, err := Dial(g.WS(), nil)
		if err == nil {
			c.Cut()
		}
		return err
	}); err != nil {
		t.Errorf("after one left: %v", err)
	}
}
