//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// documentedACL reads the rules of the ACL user in docs/redis-model.md.
func documentedACL(t *testing.T) (rules, commands []string) {
	t.Helper()
	_, rest, ok := strings.Cut(redisModel(t), "ACL SETUSER chatgate ")
	block, _, _ := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no ACL SETUSER in docs/redis-model.md")
	}
	for _, rule := range strings.Fields(strings.ReplaceAll(block, "\\\n", " ")) {
		rules = append(rules, rule)
		if name, ok := strings.CutPrefix(rule, "+"); ok {
			commands = append(commands, name)
		}
	}
	return rules, commands
}

// asked of Redis from Go, by this package, the router, the gateway at its start, and the client library.
var fromGo = []string{
	"eval", "evalsha", "get", "hgetall", "hscan", "publish", "subscribe", "spublish", "ssubscribe", "info",
	"cluster|slots", "asking", "command", "wait",
}

// The documented permissions are those the scripts need and those the gateway asks for itself: no more, no less.
func TestTheDocumentedACLIsWhatTheScriptsNeed(t *testing.T) {
	_, documented := documentedACL(t)
	files := scriptFiles(t)
	call := regexp.MustCompile(`call\(\s*'([A-Z|]+)'`)
	var needed []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			needed = append(needed, strings.ToLower(m[1]))
		}
	}
	for _, name := range needed {
		if !slices.Contains(documented, name) {
			t.Errorf("a script calls %s, which the documents don't allow", name)
		}
	}
	for _, name := range documented {
		if !slices.Contains(needed, name) && !slices.Contains(fromGo, name) {
			t.Errorf("the documents allow %s, which nobody calls", name)
		}
	}
}

// A Redis user with exactly the documented permissions carries everything the registry does, and Redis refused nothing.
func TestTheDocumentedACLCarriesARegistry(t *testing.T) {
	rules, _ := documentedACL(t)
	onRedis(t, []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster}, func(t *testing.T, r *gatewaytest.Redis) {
		onEachNode(t, r, append([]any{"ACL", "SETUSER", "chatgate", "reset"}, anys(rules)...)...)
		onEachNode(t, r, "ACL", "LOG", "RESET")
		t.Cleanup(func() { onEachNode(t, r, "ACL", "DELUSER", "chatgate") })
		f := newFleet(t, r, withEvents)
		f.client = f.ownClient("chatgate", "SECRET")
		onEachNode(t, r, "SCRIPT", "FLUSH")

		a, b := f.gateway("a"), f.gateway("b")
		alice := a.connect("alice", "phone")
		heard := f.listen(a, "alice")
		again := b.connect("alice", "phone")
		a.wantReplaced(alice, again)
		if kind, _, err := protocol.OpenEnvelope(next(t, heard)); kind != protocol.EnvelopeKick || err != nil {
			t.Errorf("heard %q, %v", kind, err)
		}
		if _, err := a.registry.Kick(context.Background(), "alice", Order{Conn: again.Conn, Code: protocol.CloseKicked, Reason: "kicked"}); err != nil {
			t.Error(err)
		}
		b.wantVerdict(again)
		f.wantStory("alice", "connect online connect disconnect disconnect offline")
		a.enter("alice", "r:lobby")
		b.enter("alice", "r:lobby")
		b.enter("bob", "r:lobby")
		a.exit("alice", "r:lobby")
		f.wantMembers("r:lobby", "alice", "bob")
		bob, carol := b.connect("bob", ""), a.connect("carol", "")
		if err := <-b.registry.SetMeta(bob, `{"a":1}`); err != nil {
			t.Error(err)
		}
		f.wantAt("bob", bob)
		b.stop()
		f.eventually(func() error { return f.reaped(b) })
		f.wantStory("bob", "connect online disconnect offline")
		if r.Kind == gatewaytest.Standalone {
			if line := a.registry.groups[0].view.Load().line; line == "none" {
				t.Error("no history line")
			}
		}
		if _, err := a.registry.Holders(context.Background(), "u:carol"); err != nil {
			t.Error(err)
		}
		if err := f.client.Publish(context.Background(), keyspace.Channel(f.group("carol"), a.id), "x").Err(); err != nil && r.Kind == gatewaytest.Standalone {
			t.Error(err)
		}
		a.disconnect(carol)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := a.registry.Leave(ctx); err != nil {
			t.Error(err)
		}
		a.stop()
		for _, n := range r.Nodes {
			refused, err := n.Do("ACL", "LOG")
			if list, ok := refused.([]any); err != nil || !ok || len(list) > 0 {
				t.Errorf("refused: %v, %v", refused, err)
			}
		}

		// And it is no open door.
		ctx, cancel = context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, cmd := range [][]any{{"SET", "other", "x"}, {"FLUSHALL"}, {"CONFIG", "GET", "*"}, {"KEYS", "*"}, {"PUBLISH", "other", "x"}} {
			if err := f.client.Do(ctx, cmd...).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
				t.Errorf("%v: %v", cmd, err)
			}
		}
	})
}

func onEachNode(t *testing.T, r *gatewaytest.Redis, args ...any) {
	t.Helper()
	for _, n := range r.Nodes {
		if _, err := n.Do(args...); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
}

func anys(list []string) []any {
	all := make([]any, len(list))
	for i, s := range list {
		all[i] = fmt.Sprint(s)
	}
	return all
}
