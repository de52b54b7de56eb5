//go:build !secondpass

package gatewaytest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// scripted is the page of a real gateway before a WebSocket of the test's own, which says what a gateway says only when it must.
type scripted struct {
	t     *testing.T
	url   string
	lines chan *Client
}

func startScripted(t *testing.T, page *Gateway) *scripted {
	t.Helper()
	s := &scripted{t: t, lines: make(chan *Client, 8)}
	target, err := url.Parse(page.URL())
	if err != nil {
		t.Fatal(err)
	}
	upgrader := websocket.Upgrader{Subprotocols: []string{"chatgate.v1.json"}}
	mux := http.NewServeMux()
	mux.Handle("/", httputil.NewSingleHostReverseProxy(target))
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		c := newClient(conn)
		c.Name = "the page"
		t.Cleanup(c.Cut)
		s.lines <- c
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// line waits for the page to connect, and registers it. What the register says is returned as it came.
func (s *scripted) line(heartbeat time.Duration) (*line, string) {
	s.t.Helper()
	select {
	case c := <-s.lines:
		l := &line{t: s.t, Client: c}
		register := l.asked("register")
		l.tell("registered", "userId", "alice", "gatewayId", "scripted", "epoch", "e", "offset", 0, "first", 1, "top", 0, "recovered", true,
			"heartbeatIntervalMs", heartbeat.Milliseconds())
		return l, string(register.Raw)
	case <-time.After(3 * Deadline):
		s.t.Fatal("the page does not connect")
		return nil, ""
	}
}

// line is the gateway's end of one connection.
type line struct {
	t *testing.T
	*Client
}

func (l *line) tell(kind string, fields ...any) {
	l.t.Helper()
	if err := l.Write(object(kind, fields)); err != nil {
		l.t.Fatal(err)
	}
}

// asked waits for a frame of the page, all parts of which are in it.
func (l *line) asked(kind string, parts ...string) Frame {
	l.t.Helper()
	f, err := l.Next(kind, 3*Deadline)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, part := range parts {
		if !strings.Contains(string(f.Raw), part) {
			l.t.Fatalf("the page sent %s, want %s in it", f.Raw, part)
		}
	}
	return f
}

// joins answers a join, and the questions that follow.
func (l *line) joins(room string) {
	l.t.Helper()
	f := l.asked("join", `"room":"`+room+`"`)
	l.tell("joined", "id", f.ID, "room", room, "epoch", "r", "offset", 0, "first", 1, "top", 0, "recovered", true)
}

type states map[string]map[string]any

// Dots and lists move by what is pushed, and nobody is said to be there when that can't be known.
func TestPageFollowsWhatIsPushed(t *testing.T) {
	s := startScripted(t, StartGateway(t, nil, Options{}))
	page := startChromium(t).open("alice", s.url+"/?user=alice&to=bob")
	l, _ := s.line(200 * time.Millisecond)

	watch := l.asked("watch", `"users":["bob"]`)
	l.tell("presence", "id", watch.ID, "users", states{"bob": {"state": "online", "version": "v.1", "devices": 2}})
	page.wantExactly("#peer-presence", "online")
	page.wantTexts(`.dot[data-state="online"]`, "")
	l.tell("presence", "users", states{"bob": {"state": "offline", "version": "v.2", "lastSeen": 1795301000000}, "stranger": {"state": "online"}})
	page.wantPart("#peer-presence", "offline, last seen")
	page.wantTexts(`.dot[data-state="offline"]`, "")

	// Redis is away: unknown. It is back: asked again, for what changed was told to nobody.
	l.asked("heartbeat")
	l.tell("heartbeat", "serverTime", 1, "degraded", true)
	page.wantTexts(`#app:has(#state[data-state="degraded"]) #peer-presence`, "unknown")
	l.asked("heartbeat")
	l.tell("heartbeat", "serverTime", 2)
	watch = l.asked("watch", `"users":["bob"]`)
	l.tell("presence", "id", watch.ID, "users", states{"bob": {"state": "online", "version": "v.3"}})
	page.wantExactly("#peer-presence", "online")

	// Who is in the room: a page of them, the next, and then what changes.
	page.fill("#join-name", "lobby")
	l.joins("lobby")
	members := l.asked("members", `"room":"lobby"`)
	l.tell("members", "id", members.ID, "room", "lobby", "count", 3, "users", []string{"alice", "bob"}, "next", "n1")
	page.wantExactly("#here-toggle", "3 here")
	page.wantTexts("#here-list .name", "alice", "bob")
	page.click("#here-more")
	members = l.asked("members", `"after":"n1"`)
	l.tell("members", "id", members.ID, "room", "lobby", "count", 3, "users", []string{"carol"})
	page.wantTexts("#here-list .name", "alice", "bob", "carol")
	page.wantTexts("#here-more:not([hidden])")
	l.tell("members", "room", "lobby", "count", 4, "joined", []string{"aaron", evilName}, "left", []string{"bob"})
	page.wantTexts("#here-list .name", evilName, "aaron", "alice", "carol")
	l.tell("members", "room", "elsewhere", "count", 1, "joined", []string{"nobody"})
	// More came than was named: the count is right, and the list is read again.
	l.tell("members", "room", "lobby", "count", 6, "joined", []string{"dave"}, "left", []string{})
	page.wantExactly("#here-toggle", "6 here")
	members = l.asked("members", `"room":"lobby"`)
	l.tell("members", "id", members.ID, "room", "lobby", "count", 2, "users", []string{"alice", "dave"})
	page.wantTexts("#here-list .name", "alice", "dave")

	// A gap stands in the conversation it is about.
	l.tell("gap", "room", "lobby", "epoch", "r", "from", 1, "to", 7, "reason", "trimmed", "next", map[string]any{"epoch": "r", "offset": 7})
	page.wantTexts(thread+".gap", "Messages are missing here: #1 to #7. The log does not keep them any more.")
	l.tell("gap", "epoch", "e", "from", 5, "reason", "history", "next", map[string]any{"epoch": "f", "offset": 4})
	page.click("#people button")
	page.wantTexts(thread+".gap", "Redis lost its memory here: messages from #5 on may be missing.")

	// The next gateway is an older one that knows neither list nor watch: it is asked once, and the page says nothing of either.
	l.Cut()
	l, register := s.line(time.Minute)
	for _, part := range []string{`"resume":{"epoch":"f","offset":4}`, `"rooms":{"lobby":{"epoch":"r","offset":7}}`} {
		if !strings.Contains(register, part) {
			t.Errorf("the page came back with %s, want %s in it", register, part)
		}
	}
	watch = l.asked("watch", `"users":["bob"]`)
	l.tell("error", "id", watch.ID, "code", "unknown_type", "message", "watch: not served by this gateway")
	l.tell("joined", "room", "lobby", "epoch", "r", "offset", 7, "first", 1, "top", 7, "recovered", true)
	page.wantTexts(".with-presence")
	page.click("#rooms button")
	members = l.asked("members")
	l.tell("error", "id", members.ID, "code", "unknown_type", "message", "members: not served by this gateway")
	page.wantTexts("#here-toggle:not([hidden])")
	page.fill("#add-name", "carol")
	page.fill("#join-name", "attic")
	l.joins("attic")

	// What is not in the log yet stands behind what is.
	page.say("anyone?")
	mine, err := l.NextOf("message", 3*Deadline, func(f Frame) bool { return f.Room == "attic" && !f.Ephemeral })
	if err != nil {
		t.Fatal(err)
	}
	said := func(from, id, content string, offset int) {
		l.tell("message", "id", id, "from", from, "room", "attic", "content", content, "ts", 1, "epoch", "r", "offset", offset)
	}
	said("bob", "b1", "before you", 1)
	page.wantTexts(thread+".content", "before you", "anyone?")
	said("alice", mine.ID, "anyone?", 2)
	said("bob", "b2", "me", 3)
	page.wantTexts(thread+".content", "before you", "anyone?", "me")

	for _, kind := range []string{"watch", "members"} {
		if again := l.Left(kind); len(again) > 0 {
			t.Errorf("the page asked again: %v", again)
		}
	}
	page.wantTexts("#notice:not([hidden])")
	page.wantTexts(`[role="alert"]:not(:empty)`)
}
