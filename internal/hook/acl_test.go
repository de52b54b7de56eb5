//go:build !secondpass

package hook

import (
	"os"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
)

// A Redis user with exactly the documented permissions carries events and takes them over, and Redis refused nothing.
func TestTheDocumentedACLCarriesEvents(t *testing.T) {
	text, err := os.ReadFile("../../docs/redis-model.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "ACL SETUSER chatgate ")
	block, _, _ := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no ACL SETUSER in docs/redis-model.md")
	}
	setUser := []any{"ACL", "SETUSER", "chatgate", "reset"}
	for _, rule := range strings.Fields(strings.ReplaceAll(block, "\\\n", " ")) {
		setUser = append(setUser, rule)
	}
	for _, kind := range []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			r := gatewaytest.Shared(t, kind)
			w, to := newWorld(t, r), gatewaytest.StartReceiver(t)
			w.user, w.password = "chatgate", "SECRET"
			for _, command := range [][]any{setUser, {"ACL", "LOG", "RESET"}, {"SCRIPT", "FLUSH"}} {
				must(t, r.DoAll(command...))
			}
			t.Cleanup(func() { must(t, r.DoAll("ACL", "DELUSER", "chatgate")) })
			a := w.gateway("a", webhookTo(to, Filter{}))
			w.happenEach(3, 0, 10)
			w.wantEach(to, 3, 10)
			a.kill()
			b := w.gateway("b", webhookTo(to, Filter{}))
			w.happenEach(3, 10, 20)
			w.wantEach(to, 3, 20)
			w.wantSettled(b)
			b.stop()
			for _, n := range r.Nodes {
				refused, err := n.Do("ACL", "LOG")
				if list, ok := refused.([]any); err != nil || !ok || len(list) > 0 {
					t.Errorf("refused: %v, %v", refused, err)
				}
			}
		})
	}
}
