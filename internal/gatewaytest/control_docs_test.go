//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// namesIn are the names of an answer's fields, those of objects in it with the way to them; what a map has by name is not told apart.
func namesIn(v any, at string, into map[string]bool) {
	switch x := v.(type) {
	case map[string]any:
		for name, value := range x {
			if at == ".reasons" || strings.HasSuffix(at, ".rooms") || at == ".meta" {
				name = "*"
			}
			into[at+"."+name] = true
			namesIn(value, at+"."+name, into)
		}
	case []any:
		for _, value := range x {
			namesIn(value, at, into)
		}
	}
}

func fieldsOfAnswer(t *testing.T, text string) []string {
	t.Helper()
	names := make(map[string]bool)
	for d := json.NewDecoder(strings.NewReader(text)); d.More(); {
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		namesIn(v, "", names)
	}
	return slices.Sorted(maps.Keys(names))
}

// Every call of docs/api-control.md, by the real curl and in the order of the page, has the fields that stand there; and the commands work as they stand.
func TestTheCallsThatControlAreAnsweredAsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(moduleRoot(t), "docs", "api-control.md"))
	if err != nil {
		t.Fatal(err)
	}
	calls := examples(t, "docs", "api-control.md")
	url := regexp.MustCompile(`http://127\.0\.0\.1:9090/api/v1([^' ]*)`)
	r := Shared(t, Standalone)
	g := StartGateway(t, r, Options{Name: "a", Flags: []string{"--drain.delay=0s", "--drain.window=0s", "--api.commands=send,control"}})
	if len(calls) < 9 {
		t.Fatalf("only %d calls", len(calls))
	}
	for _, e := range calls {
		call := e.command
		drained := strings.Contains(call, "/resume")
		var alice *Client
		if !drained {
			alice = Connect(t, g.WS(), "alice", "deviceId", "phone", "meta", map[string]any{"contestId": 7})
			if strings.Contains(call, "/leave") {
				g.ordered(t, 200, "POST", "/users/alice/join", `{"rooms":["news"]}`, nil)
			}
			call = strings.ReplaceAll(call, "01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90", alice.ConnID())
		}
		call = strings.NewReplacer("127.0.0.1:9090", g.Internal, "a-k3v9x2mq", g.id(t)).Replace(call)
		stop := make(chan struct{})
		told := make(chan struct{})
		if strings.Contains(call, "/trace") {
			bob := Connect(t, g.WS(), "bob")
			go func() { // until the trace is over, for it begins when it begins
				defer close(told)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if id, err := alice.Send("bob", "hi", ""); err == nil {
						_, _ = alice.Ack(id, Deadline)
						_, _ = bob.Next("message", Deadline)
					}
				}
			}()
		} else {
			close(told)
		}
		out, err := exec.Command("sh", "-c", call).Output()
		close(stop)
		<-told
		if err != nil {
			t.Fatalf("%s: %v", call, err)
		}
		got, want := fieldsOfAnswer(t, string(out)), fieldsOfAnswer(t, e.answer)
		if path := url.FindStringSubmatch(e.command)[1]; !strings.HasPrefix(path, "/trace") {
			a := Answered{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: out}
			if err := asDescribed(methodOf(e.command), path, a); err != nil {
				t.Errorf("%s: %v", call, err)
			}
		}
		// Maps and lists may be empty, then or here.
		for _, name := range want {
			if !slices.Contains(got, name) && name != ".live.rooms" {
				t.Errorf("%s answered %s\nwithout %s", call, out, name)
			}
		}
		for _, name := range got {
			if !slices.Contains(want, name) && name != ".shedding" {
				t.Errorf("%s answered %s\nwith %s, which is not documented", call, out, name)
			}
		}
	}
	for _, line := range blocks(string(page), "sh") {
		if args, ok := strings.CutPrefix(line, "redis-cli "); ok {
			out, err := exec.Command("sh", "-c", "redis-cli -u "+r.URL+" "+args).CombinedOutput()
			if err != nil || strings.Contains(string(out), "ERR") || strings.Contains(args, "XREAD") && !strings.Contains(string(out), `"status":"stored"`) && !strings.Contains(string(out), `"status":"routed"`) {
				t.Errorf("%s: %v\n%s", line, err, out)
			}
		}
	}
}
