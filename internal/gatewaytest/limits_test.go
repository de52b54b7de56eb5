//go:build !secondpass

package gatewaytest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

// An excess is how a client goes over one limit, on a gateway with these flags, and what it must be told.
type excess struct {
	flags []string
	over  func(t *testing.T, x *overdone)
}

// overdone is a gateway with somebody on it who overdoes it.
type overdone struct {
	*Gateway
	user  string // who is nobody else in the cluster
	token func() string
	far   *Wire // between Redis and this gateway, unless it has the usual limits
}

// names are so many short ones.
func names(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = strconv.FormatInt(int64(i), 36)
	}
	return list
}

func say(t *testing.T, c *Client, frame any) {
	t.Helper()
	if err := c.Write(frame); err != nil {
		t.Fatal(err)
	}
}

// wantLimited checks an error that a limit is the reason of, which says when to come again.
func wantLimited(t *testing.T, f Frame, limit string) {
	t.Helper()
	if f.CodeText() != "limited" || f.Limit != limit || f.Message == "" || f.Retry <= 0 {
		t.Fatalf("answered with %.200s, want limited by %s, with a time", f, limit)
	}
}

// wantRefused waits for the error that a limit is the reason of, and checks whether it says when to come again.
func wantRefused(t *testing.T, c *Client, code, limit string, again bool) Frame {
	t.Helper()
	f, err := c.Next("error", Deadline)
	if err != nil || f.CodeText() != code || f.Limit != limit || (f.Retry > 0) != again {
		t.Fatalf("answered with %s, %v, want %s by %s, with a time: %v", f, err, code, limit, again)
	}
	return f
}

// awaitRetry waits as long as an answer said.
func awaitRetry(f Frame) { <-time.After(time.Duration(f.Retry) * time.Millisecond) }

// wantTaken wants a message to be taken.
func wantTaken(t *testing.T, c *Client) {
	t.Helper()
	id, err := c.Send(c.Name, "taken", "")
	if err != nil {
		t.Fatal(err)
	}
	if f, err := c.Ack(id, Deadline); err != nil || f.Type != "ack" {
		t.Errorf("after the time it was told: %s, %v", f, err)
	}
}

func wantHeard(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.Heartbeat(Deadline); err != nil {
		t.Error(err)
	}
}

// wantClosed waits for the end with a code, by the connection that has the place now.
func wantClosed(t *testing.T, c *Client, code int, by string) {
	t.Helper()
	ended, err := c.WaitEnd(2 * Deadline)
	if err != nil {
		t.Fatal(err)
	}
	if ended.Code != code || ended.Closing == nil || ended.Closing.CodeText() != strconv.Itoa(code) || ended.Closing.By != by {
		t.Errorf("%v, want %d by %q", ended, code, by)
	}
}

var retryAfter = regexp.MustCompile(`\r\nRetry-After: (\d+)\r\n`)

// knock has one after the other come from one address and stay, until one is refused before the upgrade, and is let in when it was told to
// come again. It returns how many were let in before.
func (x *overdone) knock(t *testing.T, limit string) (let int) {
	t.Helper()
	var stay []*Raw
	for range 200 {
		r := dialFrom(t, "127.0.0.16", x.Addr)
		stay = append(stay, r)
		a := r.answer(t, Handshake(x.Addr), 2*Deadline)
		if strings.HasPrefix(a, "HTTP/1.1 101") {
			let++
			continue
		}
		again := retryAfter.FindStringSubmatch(a)
		if !strings.HasPrefix(a, "HTTP/1.1 503") || !strings.Contains(a, fmt.Sprintf(`"limit":%q`, limit)) || again == nil || !strings.Contains(a, `"retryAfterMs":`) {
			t.Fatalf("number %d is answered %s", let, a)
		}
		seconds, _ := strconv.Atoi(again[1])
		letIn := func() bool {
			return strings.HasPrefix(dialFrom(t, "127.0.0.16", x.Addr).answer(t, Handshake(x.Addr), 2*Deadline), "HTTP/1.1 101")
		}
		if limit == protocol.LimitMaxConnections { // where time alone makes no room
			stay[0].Close()
			wantWithin(t, Deadline, letIn)
		} else if <-time.After(time.Duration(seconds) * time.Second); !letIn() {
			t.Errorf("after %d s it is not let in", seconds)
		}
		return let
	}
	t.Fatalf("%d were let in", let)
	return let
}

// kernelTakes bounds what the gateway's kernel and the client's take that nobody reads.
const kernelTakes = 700 << 10

// clog has messages sent to somebody who reads nothing, until he is closed: before much more was sent to him than what may wait and what the
// kernel takes.
func (x *overdone) clog(t *testing.T, size, mayWait int) {
	t.Helper()
	deaf, err := DialRaw(x.Addr, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	if err := deaf.Upgrade(x.Addr, x.user); err != nil {
		t.Fatal(err)
	}
	sender := Connect(t, x.WS(), x.user+"-sender", "deviceClass", "desktop")
	content, sent := strings.Repeat("x", size), 0
	for {
		id, err := sender.Send(x.user, content, "")
		if err != nil {
			t.Fatal(err)
		}
		f, err := sender.Ack(id, Deadline)
		if err != nil || f.Type != "ack" {
			t.Fatalf("the sender is answered %.200s, %v", f, err)
		}
		if f.Status == "routed" {
			sent += size
		} else if sent > 0 {
			break // he has left
		}
	}
	t.Logf("%d bytes were sent", sent)
	if most := mayWait + kernelTakes; sent > most {
		t.Errorf("%d bytes were sent, want at most %d", sent, most)
	}
	ended, err := x.metric(`gateway_connections_ended_total{cause="slow_consumer"}`)
	if err != nil || ended != 1 {
		t.Errorf("%v slow consumers, %v", ended, err)
	}
}

// usual are limits that one gateway can have together: what goes over each of them is over no other.
var usual = []string{
	"--limits.message-rate=20", "--limits.frame-rate=50", "--limits.byte-rate=30000", "--limits.new-addresses=3", "--limits.connections-per-user=2",
	"--limits.rooms-per-connection=2", "--limits.watches-per-connection=2", "--limits.connect-rate-per-ip=0", "--insecure",
}

// excesses are by the name of the limit. Each is of an edge that no other limit guards: of connects, of what comes, of what goes.
var excesses = map[string]excess{
	protocol.LimitConnectRate: {
		[]string{"--limits.connect-rate=3", "--limits.connect-rate-per-ip=0"},
		func(t *testing.T, x *overdone) { x.knock(t, protocol.LimitConnectRate) },
	},
	protocol.LimitConnectRatePerIP: {
		[]string{"--limits.connect-rate-per-ip=3"}, func(t *testing.T, x *overdone) {
			let := x.knock(t, protocol.LimitConnectRatePerIP)
			if a := dialFrom(t, "127.0.0.17", x.Addr).answer(t, Handshake(x.Addr), 2*Deadline); !strings.HasPrefix(a, "HTTP/1.1 101") {
				t.Errorf("from another address, behind %d that were let in: %s", let, a)
			}
		},
	},
	protocol.LimitMaxConnections: {
		[]string{"--limits.max-connections=5", "--limits.connect-rate-per-ip=0"}, func(t *testing.T, x *overdone) {
			if let := x.knock(t, protocol.LimitMaxConnections); let != 3 {
				t.Errorf("%d were let in beside the two neighbours, want 3", let)
			}
		},
	},
	protocol.LimitConnectionsPerUser: {usual, func(t *testing.T, x *overdone) {
		first := Connect(t, x.WS(), x.user)
		second := Connect(t, x.WS(), x.user)
		third := Connect(t, x.WS(), x.user)
		wantClosed(t, first, 4502, third.ConnID())
		wantHeard(t, second)
		wantHeard(t, third)
	}},
	protocol.LimitDeviceClasses: {
		[]string{"--limits.device-classes=phone=1,desktop=0"}, func(t *testing.T, x *overdone) {
			first := Connect(t, x.WS(), x.user, "deviceClass", "phone")
			desktop := Connect(t, x.WS(), x.user, "deviceClass", "desktop")
			second := Connect(t, x.WS(), x.user, "deviceClass", "phone")
			wantClosed(t, first, 4502, second.ConnID())
			wantHeard(t, desktop)
			wantHeard(t, second)
		},
	},
	protocol.LimitDeviceClasses + ", where the oldest stay": {
		[]string{"--limits.device-classes=phone=1,desktop=0", "--limits.class-policy=oldest"}, func(t *testing.T, x *overdone) {
			first := Connect(t, x.WS(), x.user, "deviceClass", "phone")
			second := Open(t, x.WS())
			say(t, second, object("register", []any{"userId", x.user, "deviceClass", "phone"}))
			wantRefused(t, second, "conflict", protocol.LimitDeviceClasses, false)
			wantClosed(t, second, 4502, first.ConnID())
			wantHeard(t, first)
		},
	},
	protocol.LimitFrameRate: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		began := time.Now()
		for range 100 {
			say(t, c, object("heartbeat", nil))
		}
		for range 100 {
			if _, err := c.Next("heartbeat", 2*Deadline); err != nil {
				t.Fatalf("what is held is answered in the end: %v", err)
			}
		}
		if took := time.Since(began); took < 900*time.Millisecond {
			t.Errorf("100 heartbeats in %v at 50 a second", took)
		}
	}},
	protocol.LimitByteRate: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		large := strings.Repeat("x", 60_000)
		began := time.Now()
		for i, want := range []string{"ack", "ack", "error"} {
			id, err := c.Send(x.user, large, "")
			if err != nil {
				t.Fatal(err)
			}
			f, err := c.Ack(id, 2*Deadline)
			if err != nil || f.Type != want {
				t.Fatalf("large message %d: %.200s, %v", i, f, err)
			}
			if want == "error" {
				wantLimited(t, f, protocol.LimitByteRate)
				awaitRetry(f)
			}
		}
		if took := time.Since(began); took < time.Second {
			t.Errorf("refused after %v, before it was held", took)
		}
		wantTaken(t, c)
	}},
	protocol.LimitMessageRate: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		began := time.Now()
		for i := range 30 {
			if _, err := c.Send(x.user, i, strconv.Itoa(i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 30 {
			if f, err := c.Ack(strconv.Itoa(i), Deadline); err != nil || f.Type != "ack" || f.Offset != uint64(i+1) {
				t.Fatalf("message %d, which may be held and not refused: %s, %v", i, f, err)
			}
		}
		if took := time.Since(began); took < 450*time.Millisecond {
			t.Errorf("30 messages in %v at 20 a second", took)
		}
		// To look up 500 users costs as much as 51 messages, which whoever comes next has to wait for.
		say(t, c, object("presence", []any{"id", "p", "users", names(500)}))
		id, err := c.Send(x.user, "refused", "")
		if err != nil {
			t.Fatal(err)
		}
		f, err := c.Ack(id, Deadline)
		if err != nil {
			t.Fatal(err)
		}
		wantLimited(t, f, protocol.LimitMessageRate)
		awaitRetry(f)
		wantTaken(t, c)
	}},
	protocol.LimitNewAddresses: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		for i := range 4 {
			id, err := c.Send(x.user+"-friend"+strconv.Itoa(i), i, "")
			if err != nil {
				t.Fatal(err)
			}
			f, err := c.Ack(id, Deadline)
			switch {
			case err != nil:
				t.Fatal(err)
			case i == 3:
				wantLimited(t, f, protocol.LimitNewAddresses)
				if f.Retry < 1_000_000 || f.Retry > 1_200_000 {
					t.Errorf("again after %d ms, and three an hour are one in twenty minutes", f.Retry)
				}
			case f.Type != "ack":
				t.Fatalf("new address %d: %s", i, f)
			}
		}
	}},
	protocol.LimitRoomsPerConnection: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		for i, want := range []string{"joined", "joined", "error"} {
			say(t, c, object("join", []any{"id", "j", "room", x.user + strconv.Itoa(i)}))
			if want == "error" {
				wantRefused(t, c, "limited", protocol.LimitRoomsPerConnection, false)
			} else if _, err := c.Next(want, Deadline); err != nil {
				t.Fatal(err)
			}
		}
		say(t, c, object("leave", []any{"room", x.user + "0"}))
		say(t, c, object("join", []any{"room", x.user + "2"}))
		if _, err := c.Next("joined", Deadline); err != nil {
			t.Errorf("after it has left one: %v", err)
		}
	}},
	protocol.LimitWatchesPerConnection: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		if _, err := c.Watch("watch", "a", "b"); err != nil {
			t.Fatal(err)
		}
		say(t, c, object("watch", []any{"id", "w", "users", []string{"c"}}))
		wantRefused(t, c, "limited", protocol.LimitWatchesPerConnection, false)
		if _, err := c.Watch("unwatch", "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Watch("watch", "c"); err != nil {
			t.Errorf("after it has unwatched one: %v", err)
		}
	}},
	protocol.LimitRefreshRate: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user, "token", x.token())
		refresh := RawFrame(0x81, `{"type":"refresh","id":"r","token":"`+x.token()+`"}`)
		if err := c.WriteRaw(slices.Concat(refresh, refresh)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Next("refreshed", Deadline); err != nil {
			t.Fatal(err)
		}
		f := wantRefused(t, c, "limited", protocol.LimitRefreshRate, true)
		awaitRetry(f)
		if err := c.WriteRaw(refresh); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Next("refreshed", Deadline); err != nil {
			t.Errorf("after the time it was told: %v", err)
		}
	}},
	protocol.LimitInFlight: {[]string{"--limits.in-flight=2"}, func(t *testing.T, x *overdone) {
		// The way to Redis is long, so that what is sent at once would all be under way when the heartbeat behind it is read.
		c := Connect(t, x.WS(), x.user)
		x.far.Delay(50 * time.Millisecond)
		defer x.far.Delay(0)
		var all []byte
		for i := range 8 {
			all = append(all, RawFrame(0x81, fmt.Sprintf(`{"type":"message","id":"m%d","to":"%s","content":1}`, i, x.user))...)
		}
		if err := c.WriteRaw(append(all, RawFrame(0x81, `{"type":"heartbeat"}`)...)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Next("heartbeat", 2*Deadline); err != nil {
			t.Fatal(err)
		}
		if acked := len(c.Left("ack")); acked < 6 {
			t.Errorf("a heartbeat behind 8 messages was read when %d of them were acknowledged, and two may be under way", acked)
		}
	}},
	protocol.LimitFrameBytes: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		frame := func(bytes int) []byte {
			head, tail := `{"type":"heartbeat","x":"`, `"}`
			return []byte(head + strings.Repeat("x", bytes-len(head)-len(tail)) + tail)
		}
		if err := c.WriteFrame(websocket.TextMessage, frame(65536)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Next("heartbeat", Deadline); err != nil {
			t.Errorf("exactly the limit: %v", err)
		}
		_ = c.WriteFrame(websocket.TextMessage, frame(65537)) // which may meet the end already
		wantClosed(t, c, 1009, "")
	}},
	protocol.LimitOutboxBytes: {
		[]string{"--limits.outbox-bytes=131072", "--limits.outbox-frames=1000000", "--limits.message-rate=0", "--limits.byte-rate=0"},
		func(t *testing.T, x *overdone) { x.clog(t, 16<<10, 131072) },
	},
	protocol.LimitOutboxFrames: {
		[]string{"--limits.outbox-bytes=8000000", "--limits.outbox-frames=50", "--limits.message-rate=0", "--limits.byte-rate=0"},
		func(t *testing.T, x *overdone) { x.clog(t, 4<<10, 50*4200) },
	},
	protocol.LimitMeta: {usual, func(t *testing.T, x *overdone) {
		c := Open(t, x.WS())
		say(t, c, object("register", []any{"userId", x.user, "meta", map[string]string{"x": strings.Repeat("x", 1024)}}))
		wantRefused(t, c, "too_large", protocol.LimitMeta, false)
		if _, err := c.Register(x.user, "meta", map[string]string{"x": strings.Repeat("x", 1000)}); err != nil {
			t.Errorf("with less: %v", err)
		}
	}},
	protocol.LimitUsers: {usual, func(t *testing.T, x *overdone) {
		c := Connect(t, x.WS(), x.user)
		say(t, c, object("presence", []any{"users", names(10_001)}))
		wantRefused(t, c, "too_large", protocol.LimitUsers, false)
		if _, err := c.Presence("a"); err != nil {
			t.Errorf("with fewer: %v", err)
		}
	}},
}

// Whoever goes over a limit, any of the table in docs/protocol.md, is told what that says there: the limit's name and when to come again, or
// the close code; or is held, and is served in the end. Two who talk to each other on the same gateway notice nothing.
func TestEveryLimitIsAnsweredAsTheTableSays(t *testing.T) {
	t.Parallel()
	for _, row := range protocol.Limits {
		if _, ok := excesses[row.Name]; !ok {
			t.Errorf("nobody goes over %s", row.Name)
		}
	}
	r := Shared(t, Standalone)
	far := StartWire(t, r.Nodes[0].Addr)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a secret of more than thirty-two bytes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens := []string{"--auth.issuers=id", "--auth.audiences=chat", "--auth.secrets=" + secret}
	common := StartGateway(t, r, Options{Flags: append(tokens, usual...)})
	for i, name := range slices.Sorted(maps.Keys(excesses)) {
		t.Run(name, func(t *testing.T) {
			e, user := excesses[name], "user"+strconv.Itoa(i)
			x := &overdone{Gateway: common, user: user, far: far}
			if !slices.Equal(e.flags, usual) {
				x.Gateway = StartGateway(t, r.Through(far), Options{Name: "g" + strconv.Itoa(i), Flags: e.flags})
			}
			x.token = func() string {
				out, err := exec.Command(Build(t), append([]string{"token", "gen", "--key", secret, "--user", user}, tokens...)...).Output()
				if err != nil {
					t.Fatal(err)
				}
				return string(bytes.TrimSpace(out))
			}
			pair := func(name string) *Client { return Connect(t, x.WS(), name+strconv.Itoa(i), "deviceClass", "desktop") }
			n := &neighbours{alice: pair("alice"), bob: pair("bob")}
			n.wantChat(t)
			e.over(t, x)
			n.wantChat(t)
		})
	}
}
