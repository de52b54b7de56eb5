//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// Good frames at the wrong time, and positions nobody was ever given: each has its answer, and the connection goes on where it should.
func TestFramesOutOfOrderAreAnsweredAndHurtNobodyElse(t *testing.T) {
	g := StartGateway(t, Shared(t, Standalone), Options{Flags: []string{"--limits.connect-rate-per-ip=0"}})
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	sender := Connect(t, g.WS(), "sender")
	store := func(t *testing.T, to string, content int) Frame {
		t.Helper()
		id, err := sender.Send(to, content, "")
		if err != nil {
			t.Fatal(err)
		}
		ack, err := sender.Ack(id, Deadline)
		if err != nil || ack.Type != "ack" {
			t.Fatalf("%v, %v", ack, err)
		}
		return ack
	}
	next := func(t *testing.T, c *Client, content string) {
		t.Helper()
		if f, err := c.Next("message", Deadline); err != nil || string(f.Content) != content {
			t.Errorf("%v, %v, want %s\n%s", f, err, content, c.Story(5))
		}
	}
	at := func(epoch string, offset uint64) map[string]any {
		return map[string]any{"epoch": epoch, "offset": offset}
	}
	resumed := func(t *testing.T, user string, offset uint64, position map[string]any, reason, from string) *Client {
		t.Helper()
		c := Open(t, g.WS())
		f, err := c.Register(user, "resume", position)
		if err != nil {
			t.Fatal(err)
		}
		if f.Offset != offset || f.Recovered != (reason == "") {
			t.Errorf("%v, want it to go on at %d, recovered %v", f, offset, reason == "")
		}
		if reason != "" {
			if gap, err := c.Next("gap", Deadline); err != nil || gap.Reason != reason || string(gap.From) != from {
				t.Errorf("%v, %v, want a gap of %s from %s", gap, err, reason, from)
			}
		}
		return c
	}

	for name, test := range map[string]func(t *testing.T){
		"resume from the future": func(t *testing.T) {
			ack := store(t, "ida", 1)
			next(t, resumed(t, "ida", 0, at(ack.Epoch, 0), "", ""), "1")
			c := resumed(t, "ida", 1, at(ack.Epoch, 999), "ahead", "2")
			store(t, "ida", 2)
			next(t, c, "2")
		},
		"resume from the end of numbers": func(t *testing.T) {
			ack := store(t, "ivo", 1)
			c := resumed(t, "ivo", 1, at(ack.Epoch, 1<<64-1), "ahead", "2")
			store(t, "ivo", 2)
			next(t, c, "2")
		},
		"resume with a foreign epoch": func(t *testing.T) {
			store(t, "ines", 1)
			c := resumed(t, "ines", 0, at("foreign", 7), "history", "8")
			next(t, c, "1")
			store(t, "ines", 2)
			next(t, c, "2")
		},
		"resume with an epoch of markup": func(t *testing.T) {
			store(t, "ilse", 1)
			next(t, resumed(t, "ilse", 0, at("{p17}:*\u2028<b>", 0), "history", "1"), "1")
		},
		"resume of who was never there": func(t *testing.T) {
			resumed(t, "nobody", 0, at("foreign", 3), "history", "4")
		},
		"received beyond the top": func(t *testing.T) {
			ack := store(t, "rosa", 1)
			c := Connect(t, g.WS(), "rosa", "deviceId", "d")
			next(t, c, "1")
			// The last word is a good one, and counts all the same.
			for _, position := range []map[string]any{
				at(ack.Epoch, 2), at(ack.Epoch, 999), at(ack.Epoch, 1<<64-1), at("foreign", 5), at(ack.Epoch, 1<<64-1), at(ack.Epoch, 1),
			} {
				position["type"] = "received"
				if err := c.Write(position); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Heartbeat(Deadline); err != nil {
				t.Error(err)
			}
			// Words are written down by and by.
			err := Poll(2*Deadline, func() error {
				c = Open(t, g.WS())
				f, err := c.Register("rosa", "deviceId", "d")
				if err != nil || f.Offset > 1 {
					return stop{fmt.Errorf("%v, %w", f, err)}
				}
				if f.Offset != 1 {
					return fmt.Errorf("its device goes on at %d", f.Offset)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			store(t, "rosa", 2)
			next(t, c, "2")
		},
		"a room that was not joined": func(t *testing.T) {
			c := Connect(t, g.WS(), "rolf", "deviceId", "d")
			for _, frame := range []map[string]any{
				object("message", []any{"id", "1", "room", "lobby", "content", 1}),
				object("received", []any{"id", "2", "room", "lobby", "epoch", "e", "offset", 1}),
				object("history", []any{"id", "3", "room", "lobby"}),
				object("members", []any{"id", "4", "room", "lobby"}),
				object("leave", []any{"id", "5", "room", "lobby"}),
			} {
				if err := c.Write(frame); err != nil {
					t.Fatal(err)
				}
				if f, err := c.Next("error", Deadline); err != nil || f.CodeText() != "not_joined" || f.ID != frame["id"] {
					t.Errorf("%v: %v, %v, want not_joined", frame, f, err)
				}
			}
		},
		"a room from the future": func(t *testing.T) {
			c := Connect(t, g.WS(), "rudi")
			if err := c.Write(object("join", []any{"id", "j", "room", "late", "resume", at("foreign", 9)})); err != nil {
				t.Fatal(err)
			}
			if f, err := c.Next("joined", Deadline); err != nil || f.Recovered || f.Offset != 0 {
				t.Errorf("%v, %v, want it not recovered", f, err)
			}
			if f, err := c.Next("gap", Deadline); err != nil || f.Room != "late" || f.Reason != "history" {
				t.Errorf("%v, %v, want a gap", f, err)
			}
			if id, err := c.Send("room:late", 1, ""); err != nil {
				t.Error(err)
			} else if f, err := c.Ack(id, Deadline); err != nil || f.Status != "routed" {
				t.Errorf("%v, %v", f, err)
			}
			next(t, c, "1")
		},
		"history of the future": func(t *testing.T) {
			ack := store(t, "hugo", 1)
			c := Connect(t, g.WS(), "hugo")
			for i, question := range []map[string]any{{"epoch": ack.Epoch, "after": uint64(1<<64 - 1)}, {"epoch": "foreign", "before": 0}, {"after": 999}} {
				question["type"], question["id"] = "history", fmt.Sprint(i)
				if err := c.Write(question); err != nil {
					t.Fatal(err)
				}
				if f, err := c.Next("history", Deadline); err != nil || f.ID != question["id"] || !strings.Contains(f.String(), `"messages":[]`) {
					t.Errorf("%v: %v, %v, want nothing", question, f, err)
				}
			}
		},
		"a refresh of no token": func(t *testing.T) {
			c := Connect(t, g.WS(), "resi")
			if err := c.Write(object("refresh", []any{"id", "r", "token", "x"})); err != nil {
				t.Fatal(err)
			}
			if f, err := c.Next("error", Deadline); err != nil || f.CodeText() != "unknown_type" {
				t.Errorf("%v, %v, want unknown_type", f, err)
			}
		},
		"a hundred registers at once": func(t *testing.T) {
			c := Open(t, g.WS())
			var all []byte
			for i := range 100 {
				all = append(all, RawFrame(0x81, fmt.Sprintf(`{"type":"register","id":"%d","userId":"user%d"}`, i, i))...)
			}
			if err := c.WriteRaw(all); err != nil {
				t.Fatal(err)
			}
			if f, err := c.Next("registered", Deadline); err != nil || f.UserID != "user0" {
				t.Errorf("%v, %v", f, err)
			}
			if ended, err := c.WaitEnd(Deadline); err != nil || ended.Code != 4505 {
				t.Errorf("%v, %v, want 4505: too many errors", ended, err)
			}
		},
		// Whoever is told to go does not get a word in edgeways: what is written after its place was taken is not read.
		"after it was replaced": func(t *testing.T) {
			first := Connect(t, g.WS(), "kuno", "deviceId", "d")
			Connect(t, g.WS(), "kuno", "deviceId", "d")
			if _, err := first.Next("closing", Deadline); err != nil {
				t.Fatal(err)
			}
			_ = first.Write(object("message", []any{"id", "late", "to", "bob", "content", "late"}))
			if ended, err := first.WaitEnd(Deadline); err != nil || ended.Code != 4502 {
				t.Errorf("%v, %v, want 4502", ended, err)
			}
			if _, acked := first.Ack("late", 0); acked == nil {
				t.Error("it was acknowledged")
			}
		},
		// The close frame was sent: whatever comes behind it is no input any more.
		"after its own goodbye": func(t *testing.T) {
			c := Connect(t, g.WS(), "gerd")
			goodbye := RawFrame(0x88, "\x03\xe8")
			late := RawFrame(0x81, `{"type":"message","id":"late","to":"bob","content":"late"}`)
			if err := c.WriteRaw(append(goodbye, late...)); err != nil {
				t.Fatal(err)
			}
			if ended, err := c.WaitEnd(Deadline); err != nil || ended.Code != websocket.CloseNormalClosure {
				t.Errorf("%v, %v, want 1000", ended, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			test(t)
			n.wantChat(t)
		})
	}
	if left := n.bob.Left("message"); len(left) > 0 {
		t.Errorf("bob got what came too late: %v", left)
	}
}
