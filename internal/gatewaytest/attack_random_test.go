//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// babble makes frames whose fields are right one by one, mostly, and together make little sense.
type babble struct {
	*rand.Rand
	epochs []string // that were told to somebody
	own    string   // that the present connection was told when it registered
}

func pick[T any](b *babble, from ...T) T { return from[b.IntN(len(from))] }

func (b *babble) name() string {
	return pick(b, "a", "b", "c", "r:x", "{x}", "*", strings.Repeat("x", 128), "u:a", "[", "(", "+", "-", "../..", "__proto__", "\u2028", "%s", " ", "é")
}

func (b *babble) epoch() string {
	if len(b.epochs) > 0 && b.IntN(3) > 0 {
		return pick(b, b.epochs...)
	}
	return pick(b, "foreign", "1", "{p1}", "a:b", "a b 7-5:9", "*", "-", strings.Repeat("x", 300))
}

func (b *babble) offset() any {
	return pick[any](b, 0, 1, 2, 3, 7, 200, 1<<31, 1<<53, 1<<62, uint64(1<<63), uint64(1<<64-1), "7", -1, 1.5)
}

func (b *babble) position() any {
	switch b.IntN(8) {
	case 0:
		return nil
	case 1:
		return map[string]any{"offset": b.offset()}
	}
	return map[string]any{"epoch": b.epoch(), "offset": b.offset()}
}

func (b *babble) rooms() map[string]any {
	rooms := make(map[string]any)
	for range pick(b, 1, 3, 30) {
		rooms[b.name()] = b.position()
	}
	return rooms
}

func (b *babble) register() map[string]any {
	f := object("register", []any{"userId", b.name()})
	for name, value := range map[string]any{"deviceId": b.name(), "resume": b.position(), "rooms": b.rooms(), "meta": map[string]any{"a": b.name()}} {
		if b.IntN(2) == 0 {
			f[name] = value
		}
	}
	return f
}

func (b *babble) frame() map[string]any {
	kind := pick(b, "message", "message", "received", "received", "join", "join", "leave", "history", "history", "presence", "watch", "unwatch", "members")
	f := object(kind, []any{"id", pick(b, "i", b.name(), fmt.Sprint(b.Uint64()))})
	set := func(name string, value any, outOf int) {
		if b.IntN(outOf) == 0 {
			f[name] = value
		}
	}
	set("room", b.name(), 2)
	if f["room"] == nil && kind == "message" {
		f["to"] = b.name()
	}
	if kind == "message" {
		f["content"] = pick[any](b, 1, nil, "x", []int{}, strings.Repeat("y", 5000), map[string]any{"from": "eve"})
		set("ephemeral", true, 5)
		set("copy", true, 3)
	}
	set("epoch", b.epoch(), 2)
	set("offset", b.offset(), 2)
	set("after", b.offset(), 3)
	set("before", b.offset(), 3)
	set("limit", b.offset(), 3)
	set("resume", b.position(), 2)
	if kind == "received" && b.IntN(2) == 0 {
		f["epoch"], f["offset"] = b.own, b.offset()
		delete(f, "room")
	}
	if kind == "presence" || strings.HasSuffix(kind, "watch") {
		f["users"] = []string{b.name(), b.name()}
	} else if kind == "members" {
		set("after", b.name(), 2)
	}
	return f
}

// Whatever is asked is answered, and never by a mistake of the gateway's own: no script fails in Redis, either. A busy Redis may be unavailable.
func TestBabbleIsAnswered(t *testing.T) {
	EachRedis(t, func(t *testing.T, r *Redis) {
		g := StartGateway(t, r, Options{Flags: []string{
			"--limits.connect-rate-per-ip=0", "--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", "--limits.connections-per-user=2", "--history.messages=20",
		}})
		n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
		seed, before := rand.Uint64(), len(g.Log())
		b := &babble{Rand: rand.New(rand.NewPCG(seed, 0))}
		var c *Client
		for i := range 150 {
			for c == nil || c.Ended() != nil || b.IntN(30) == 0 {
				if c != nil {
					c.Cut()
				}
				c = Open(t, g.WS())
				if err := c.Write(b.register()); err != nil {
					t.Fatal(err)
				}
				if err := c.WaitCount(1, Deadline, "registered", "error"); err != nil {
					t.Fatalf("%v (seed %d)\n%s", err, seed, c.Story(5))
				}
				if b.own, _ = c.Position(); c.ConnID() == "" {
					c.Cut() // refused: another one
				}
			}
			for range 5 {
				_ = c.Write(b.frame()) // whoever makes too many mistakes is closed
			}
			_, err := c.Heartbeat(Deadline)
			frames, _, _ := c.drain()
			for _, f := range frames {
				if f.Epoch != "" {
					b.epochs = append(b.epochs, f.Epoch)
				}
				if f.CodeText() == "internal" {
					t.Errorf("%s (seed %d)", f, seed)
				}
			}
			switch ended := c.Ended(); {
			case ended == nil && err != nil:
				t.Errorf("no answer: %v (seed %d)", err, seed)
			case ended != nil && (ended.Code == websocket.CloseInternalServerErr || ended.Code == websocket.CloseAbnormalClosure):
				t.Errorf("%v (seed %d)", ended, seed)
			}
			if i%50 == 0 {
				n.wantChat(t)
			}
		}
		if log := g.Log()[before:]; strings.Contains(log, `"ERROR"`) || strings.Contains(log, "ERR ") {
			t.Errorf("seed %d: %s", seed, log)
		}
	})
}
