//go:build !secondpass

package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A backend puts a thousand messages for alice into the stream. In the middle of that one of three gateways is killed with commands in hand. The others
// take these over: alice gets every message once, each is answered once, and nothing is left.
func TestCommandsOfAKilledGatewayAreEachDoneOnce(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Embedded, Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := Shared(t, kind)
			a, b := StartGateway(t, r, Options{Name: "a", Flags: takesCommands}), StartGateway(t, r, Options{Name: "b", Flags: takesCommands})
			StartGateway(t, r, Options{Name: "c", Flags: takesCommands})
			idB := b.id(t)
			alice := Connect(t, a.WS(), "alice")
			const many, half = 1000, 400
			ids := make(map[string]int, many)
			next := 0
			send := func(reply string) {
				ids[r.command(t, "op", "sendMessage", "reply", reply, "body", fmt.Sprintf(`{"to":["alice"],"from":"shop","content":%d}`, next))] = next
				next++
			}
			for range half {
				send("shop")
			}
			// What is sent and can't be answered stays in hand: with these b is killed, after it has sent them.
			if _, err := r.Do("SET", commandReplies+"late", "x"); err != nil {
				t.Fatal(err)
			}
			if err := Poll(10*Deadline, func() error {
				if next < half+100 {
					send("late")
				}
				n, err := r.inHand(idB)
				if err == nil && n == 0 {
					err = fmt.Errorf("%s has nothing in hand", idB)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			for next < half+200 {
				send("shop")
			}
			b.Kill()
			for next < many {
				send("shop")
			}
			if err := Poll(10*Deadline, func() error {
				n, err := r.inHand(idB)
				if err == nil && n > 0 {
					err = fmt.Errorf("%d are in the hand of %s", n, idB)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Do("DEL", commandReplies+"late"); err != nil {
				t.Fatal(err)
			}
			got := make(map[string]int, many)
			for range many {
				f, err := alice.Next("message", 10*Deadline)
				if err != nil {
					t.Fatalf("after %d: %v", len(got), err)
				}
				got[string(f.Content)]++
			}
			for i := range many {
				if n := got[strconv.Itoa(i)]; n != 1 {
					t.Errorf("message %d came %d times", i, n)
				}
			}
			wantNoCommands(t, r, a)
			if err := alice.None("message", 200*time.Millisecond); err != nil {
				t.Error(err)
			}
			replies, err := r.commandReplies("shop")
			late, err2 := r.commandReplies("late")
			if err != nil || err2 != nil || len(replies)+len(late) != many || len(late) == 0 {
				t.Fatalf("%d are answered and %d late, %v, %v", len(replies), len(late), err, err2)
			}
			maps.Copy(replies, late)
			offsets := make(map[uint64]bool)
			for id, i := range ids {
				x := replies[id]
				if len(x) != 1 || x[0].Status != 200 || len(x[0].Answer.Results) != 1 || x[0].Answer.Results[0].To != "alice" {
					t.Fatalf("command %d, %s: %+v", i, id, x)
				}
				offsets[x[0].Answer.Results[0].Offset] = true
			}
			if len(offsets) != many || !offsets[1] || !offsets[many] {
				t.Errorf("%d offsets", len(offsets))
			}
			if n, err := r.Do("XLEN", deadCommands); err != nil || n != int64(0) {
				t.Errorf("%v were given up, %v", n, err)
			}
		})
	}
}

// What is wrong with a command is told to whoever asks, and holds up none of the others. One that can't be done is tried by one gateway after the other,
// and then put aside.
func TestCommandsThatCannotBeDoneBlockNobody(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Embedded, Standalone} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := Shared(t, kind)
			a, b := StartGateway(t, r, Options{Name: "a", Flags: takesCommands}), StartGateway(t, r, Options{Name: "b", Flags: takesCommands})
			alice := Connect(t, a.WS(), "alice")
			bob := Connect(t, b.WS(), "bob")
			// The log of mallory's is no log: nobody will ever send to her.
			r.command(t, "op", "sendMessage", "body", `{"to":["mallory"],"content":1}`)
			wantNoCommands(t, r, a)
			keys, err := r.client.Keys(t.Context(), "cg:{*}:l:u:mallory").Result()
			if err != nil || len(keys) != 1 {
				t.Fatalf("her logs are %q, %v", keys, err)
			}
			if _, err := r.Do("SET", keys[0], "x"); err != nil {
				t.Fatal(err)
			}
			poison := r.command(t, "op", "sendMessage", "body", `{"to":["mallory"],"content":1}`, "reply", "r", "key", "p1")
			cases := map[string]struct {
				fields []string
				status int
				detail string
			}{
				"nothing in it":         {[]string{"reply", "r"}, 400, "op: missing"},
				"no such operation":     {[]string{"reply", "r", "op", "sendmessage", "body", "{}"}, 404, "no such operation"},
				"not JSON":              {[]string{"reply", "r", "op", "sendMessage", "body", "hello"}, 400, "body: "},
				"no body":               {[]string{"reply", "r", "op", "sendMessage"}, 400, "content: missing"},
				"an unknown field":      {[]string{"reply", "r", "op", "sendMessage", "body", `{"to":["alice"],"content":1,"cotnent":2}`}, 400, "cotnent: unknown field"},
				"an unknown field here": {[]string{"reply", "r", "op", "sendMessage", "bdoy", `{}`}, 400, "command: unknown field"},
				"a scope it lacks":      {[]string{"reply", "r", "op", "revokeTokens", "body", `{"user":"alice"}`}, 403, "commands lack the scope revoke"},
				"a bad key":             {[]string{"reply", "r", "op", "sendMessage", "key", strings.Repeat("k", 65), "body", `{"to":["alice"],"content":1}`}, 400, "key: "},
				"too large":             {[]string{"reply", "r", "op", "sendMessage", "body", `{"to":["alice"],"content":"` + strings.Repeat("x", 1<<20) + `"}`}, 413, "body: "},
				"nobody there":          {[]string{"reply", "r", "op", "disconnectConnection", "body", `{"id":"nobody"}`}, 404, "no living gateway holds"},
			}
			asked := make(map[string]string)
			for name, c := range cases {
				asked[r.command(t, c.fields...)] = name
			}
			r.command(t, "reply", "\n", "op", "sendMessage", "body", `{"to":["alice"],"content":"a bad name"}`)
			kick := r.command(t, "op", "disconnectUser", "body", `{"user":"bob","code":4901,"reason":"exam over"}`, "reply", "r")
			good := r.command(t, "op", "sendMessage", "body", `{"to":["alice"],"content":"good"}`, "key", "k1", "reply", "r")
			again := r.command(t, "op", "sendMessage", "body", `{"to":["alice"],"content":"good"}`, "key", "k1", "reply", "r")
			other := r.command(t, "op", "sendMessage", "body", `{"to":["alice"],"content":"other"}`, "key", "k1", "reply", "r")

			if f, err := alice.Next("message", 6*Deadline); err != nil || string(f.Content) != `"good"` && string(f.Content) != `"other"` {
				t.Errorf("%s, %v", f, err)
			}
			if ended, err := bob.WaitEnd(4 * Deadline); err != nil || ended.Code != 4901 || ended.Text != "exam over" || ended.Closing.By != "stream" {
				t.Errorf("%v, %v", ended, err)
			}
			var replies map[string][]commandReply
			wantReplies := func(n int) {
				t.Helper()
				if err := Poll(15*Deadline, func() (err error) {
					if replies, err = r.commandReplies("r"); err == nil && len(replies) < n {
						err = fmt.Errorf("%d are answered, want %d", len(replies), n)
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
			}
			wantReplies(len(cases) + 4)
			if replies[poison] != nil {
				t.Errorf("the poisonous one was answered before it was tried again: %+v", replies[poison])
			}
			for id, name := range asked {
				x, want := replies[id], cases[name]
				if len(x) != 1 || x[0].Status != want.status || !strings.HasPrefix(x[0].Answer.Detail, want.detail) {
					t.Errorf("%s: %+v", name, x)
				}
			}
			if x := replies[kick]; len(x) != 1 || x[0].Status != 200 {
				t.Errorf("disconnected: %+v", x)
			}
			// Whichever came first, the key stands for one message: the same again is answered as before, another is a conflict.
			conflicts, offsets := 0, make(map[uint64]bool)
			for _, id := range []string{good, again, other} {
				switch x := replies[id]; {
				case len(x) == 1 && x[0].Status == 409 && x[0].Key == "k1":
					conflicts++
				case len(x) == 1 && x[0].Status == 200 && x[0].Key == "k1":
					offsets[x[0].Answer.Results[0].Offset] = true
				default:
					t.Errorf("%+v", x)
				}
			}
			if conflicts == 0 || conflicts == 3 || len(offsets) != 1 {
				t.Errorf("%d conflicts, offsets %v", conflicts, offsets)
			}
			if err := alice.None("message", 200*time.Millisecond); err != nil {
				t.Error(err)
			}
			wantReplies(len(cases) + 5)
			if x := replies[poison]; len(x) != 1 || x[0].Status < 500 || x[0].Key != "p1" {
				t.Errorf("the poisonous one: %+v", x)
			}
			wantNoCommands(t, r, b)
			ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
			defer cancel()
			dead, err := r.client.XRange(ctx, deadCommands, "-", "+").Result()
			if err != nil || len(dead) != 1 || dead[0].Values["command"] != poison || dead[0].Values["tries"] != "5" {
				t.Errorf("dead are %v, %v", dead, err)
			}
		})
	}
}

// A backend has bob closed, and the gateway that does it can't say so: another one takes the command over and does it again. Bob has come back by then, and is
// not hit a second time.
func TestACommandDoneAgainSparesWhoCameBack(t *testing.T) {
	for _, kind := range []Kind{Embedded, Standalone} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := Shared(t, kind)
			a, b := StartGateway(t, r, Options{Name: "a", Flags: takesCommands}), StartGateway(t, r, Options{Name: "b", Flags: takesCommands})
			bob := Connect(t, a.WS(), "bob")
			if _, err := r.Do("SET", commandReplies+"late", "x"); err != nil { // no answer can be put there
				t.Fatal(err)
			}
			r.command(t, "op", "disconnectUser", "reply", "late", "body", `{"user":"bob","code":4400}`)
			if ended, err := bob.WaitEnd(4 * Deadline); err != nil || ended.Code != 4400 {
				t.Fatalf("%v, %v", ended, err)
			}
			back := Connect(t, b.WS(), "bob")
			if err := Poll(15*Deadline, func() error {
				s, err := a.commandStats()
				s2, err2 := b.commandStats()
				if err == nil && err2 == nil && s.TakenOver+s2.TakenOver == 0 {
					err = errors.New("nobody has taken it over")
				}
				return errors.Join(err, err2)
			}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Do("DEL", commandReplies+"late"); err != nil {
				t.Fatal(err)
			}
			wantNoCommands(t, r, a)
			if _, err := back.Heartbeat(2 * Deadline); err != nil {
				t.Errorf("%v; %v", err, back.Ended())
			}
			// Done for the first time it is about whoever is there.
			r.command(t, "op", "disconnectUser", "body", `{"user":"bob","code":4401}`)
			if ended, err := back.WaitEnd(4 * Deadline); err != nil || ended.Code != 4401 {
				t.Errorf("%v, %v", ended, err)
			}
		})
	}
}

// documentedUser are the rules of the Redis user of this name in a document.
func documentedUser(t testing.TB, document, name string) (rules []any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "docs", document))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "ACL SETUSER "+name+" ")
	block, _, _ := strings.Cut(rest, "```")
	if !ok {
		t.Fatalf("no ACL SETUSER %s in %s", name, document)
	}
	for _, rule := range strings.Fields(strings.ReplaceAll(block, "\\\n", " ")) {
		rules = append(rules, rule)
	}
	return rules
}

// The documented Redis users are enough for gateways that take commands, and for a backend that gives them; and the backend's is good for nothing else.
func TestTheDocumentedUsersOfRedisCarryCommands(t *testing.T) {
	r := Shared(t, Standalone)
	setUser := func(document, name string) *redis.Client {
		t.Helper()
		if _, err := r.Do(append([]any{"ACL", "SETUSER", name, "reset"}, documentedUser(t, document, name)...)...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = r.Do("ACL", "DELUSER", name) })
		c := redis.NewClient(&redis.Options{Addr: r.Nodes[0].Addr, Username: name, Password: "SECRET", DisableIdentity: true})
		t.Cleanup(func() { c.Close() })
		return c
	}
	shop := setUser("api-control.md", "shop")
	setUser("redis-model.md", "chatgate")
	for _, command := range [][]any{{"ACL", "LOG", "RESET"}, {"SCRIPT", "FLUSH"}} {
		if _, err := r.Do(command...); err != nil {
			t.Fatal(err)
		}
	}
	as := *r
	as.URL = strings.Replace(r.URL, "redis://", "redis://chatgate:SECRET@", 1)
	StartGateway(t, &as, Options{Name: "a", Flags: takesCommands})
	for i := range 3 {
		if err := shop.XAdd(t.Context(), &redis.XAddArgs{Stream: commandStream, Values: []string{"op", "sendMessage", "body", `{"to":["bob"],"content":1}`, "reply", "shop"}}).Err(); err != nil {
			t.Fatal(err)
		}
		if err := Poll(6*Deadline, func() error {
			answers, err := shop.XRange(t.Context(), commandReplies+"shop", "-", "+").Result()
			if err == nil && len(answers) != i+1 {
				err = fmt.Errorf("%d answers", len(answers))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	// Long enough for a look at what others have in hand.
	if err := Poll(6*Deadline, func() error {
		refused, err := r.Do("ACL", "LOG")
		if list, ok := refused.([]any); err != nil || !ok || len(list) > 0 {
			t.Fatalf("refused: %v, %v", refused, err)
		}
		calls, err := r.Do("INFO", "commandstats")
		if err == nil && !strings.Contains(fmt.Sprint(calls), "cmdstat_xinfo") {
			err = errors.New("nobody looked yet")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"cg:{all}:ev", commandReplies + "others", deadCommands, commandStream + "x"} {
		if err := shop.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"a", "b"}}).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("a backend may write to %s: %v", key, err)
		}
	}
	for _, command := range [][]any{{"XRANGE", commandStream, "-", "+"}, {"XREAD", "STREAMS", commandStream, "0"}, {"XDEL", commandStream, "1-1"}, {"XADD", commandReplies + "shop", "*", "a", "b"}} {
		if err := shop.Do(t.Context(), command...).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("a backend may %v: %v", command, err)
		}
	}
}
