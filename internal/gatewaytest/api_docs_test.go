//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// An example of docs/api.md: what is typed, and what comes.
type example struct{ command, answer string }

func examples(t *testing.T, path ...string) (list []example) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{moduleRoot(t)}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(curl .*?)^```\n(?:```json\n(.*?)^```)?").FindAllStringSubmatch(string(text), -1) {
		list = append(list, example{strings.TrimSpace(m[1]), m[2]})
	}
	return list
}

// volatile are the fields that are other ones each time; what they are must still agree.
var volatile = []string{"epoch", "ts", "since", "expiry", "gateway", "version", "uptimeSeconds", "time"}

// alike says how two JSON values differ, in anything but volatile fields. ids of connections and gateways are put in before.
func alike(at string, got, want any) error {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok || len(g) != len(w) {
			return fmt.Errorf("%s is %v, in the docs %v", at, got, want)
		}
		for name, x := range w {
			y, ok := g[name]
			if !ok {
				return fmt.Errorf("%s lacks %s", at, name)
			}
			if slices.Contains(volatile, name) {
				if fmt.Sprintf("%T", x) != fmt.Sprintf("%T", y) {
					return fmt.Errorf("%s.%s is %v, in the docs %v", at, name, y, x)
				}
			} else if err := alike(at+"."+name, y, x); err != nil {
				return err
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Errorf("%s is %v, in the docs %v", at, got, want)
		}
		for i := range w {
			if err := alike(fmt.Sprintf("%s[%d]", at, i), g[i], w[i]); err != nil {
				return err
			}
		}
	default:
		if got != want {
			return fmt.Errorf("%s is %v, in the docs %v", at, got, want)
		}
	}
	return nil
}

// Every call of the document, with the real curl as it stands in docs/api.md, in the order of the page, gets the answer that stands there; and
// there is no call of the OpenAPI document without one.
func TestTheExamplesOfTheAPIAreAnsweredAsTheDocsSay(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal(err)
	}
	doc, err := describedAPI()
	if err != nil {
		t.Fatal(err)
	}
	untold := make(map[string]bool)
	var scopes []string
	for _, item := range doc.Paths.Map() {
		for _, o := range item.Operations() {
			untold[o.OperationID] = true
			if scope := o.Extensions["x-scope"].(string); !slices.Contains(scopes, scope) {
				scopes = append(scopes, scope)
			}
		}
	}

	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a secret of more than thirty-two bytes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := []string{"--auth.issuers=id", "--auth.audiences=chat", "--auth.secrets=" + secret}
	token, err := exec.Command(Build(t), append([]string{"token", "gen", "--key", secret, "--user", "alice"}, settings...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	file, keys := keyed(t, strings.Join(scopes, ","))
	g := StartGateway(t, StartRedis(t), Options{Name: "a", Flags: append(settings, "--config="+file)})
	alice := Open(t, g.WS())
	meta := map[string]any{"contestId": 7}
	if _, err := alice.Register("alice", "token", strings.TrimSpace(string(token)), "deviceId", "phone", "meta", meta); err != nil {
		t.Fatal(err)
	}
	if err := alice.Write(map[string]any{"type": "join", "room": "lobby"}); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Next("joined", Deadline); err != nil {
		t.Fatal(err)
	}
	bearer := []string{"Authorization", "Bearer " + keys[0]}
	id := callAPI(t, g, 200, "GET", "/connections/"+alice.ConnID(), "", bearer...).text("gateway")
	real := strings.NewReplacer("127.0.0.1:9090", g.Internal, "01993f2e-7b1c-7cc2-a1c3-0a7f6d1f2b90", alice.ConnID(), "a-k3v9x2mq", id)

	url := regexp.MustCompile(`http://127\.0\.0\.1:9090/api/v1([^' ]*)`)
	for _, e := range examples(t, "docs", "api.md") {
		m := url.FindStringSubmatch(e.command)
		if m == nil {
			t.Errorf("it calls something else: %s", e.command)
			continue
		}
		method := methodOf(e.command)
		o := describedOperation(doc, method, m[1])
		if o == nil {
			t.Errorf("no operation is called by %s", e.command)
			continue
		}
		delete(untold, o.OperationID)
		var want any
		if err := json.Unmarshal([]byte(real.Replace(e.answer)), &want); err != nil {
			t.Errorf("%s: the answer in the docs: %v", e.command, err)
			continue
		}
		// Figures may be those of a moment before, so what differs is asked again: nothing here does something else the second time.
		err := Poll(Deadline, func() error {
			curl := exec.Command("sh", "-c", real.Replace(e.command)+` -w '\n%{http_code} %{content_type}'`)
			curl.Env = append(os.Environ(), "KEY="+keys[0])
			out, err := curl.Output()
			if err != nil {
				return err
			}
			end := strings.LastIndex(string(out), "\n")
			a := Answered{Header: http.Header{}, Body: out[:end]}
			var kind string
			if _, err := fmt.Sscan(string(out[end:]), &a.Status, &kind); err != nil {
				return err
			}
			a.Header.Set("Content-Type", kind)
			if err := asDescribed(method, m[1], a); err != nil {
				return stop{err}
			}
			var got any
			if err := json.Unmarshal(a.Body, &got); err != nil {
				return stop{fmt.Errorf("%w: %s", err, a.Body)}
			}
			return alike("the answer", got, want)
		})
		if err != nil {
			t.Errorf("%s: %v", e.command, err)
		}
	}
	for _, e := range examples(t, "docs", "api-control.md") { // TestTheCallsThatControlAreAnsweredAsDocumented makes them
		if o := describedOperation(doc, methodOf(e.command), url.FindStringSubmatch(e.command)[1]); o != nil {
			delete(untold, o.OperationID)
		}
	}
	for name := range untold {
		t.Errorf("the docs have no example of %s", name)
	}
	if ended, err := alice.WaitEnd(Deadline); err != nil || ended.Code != 4504 {
		t.Errorf("alice, who was revoked: %v, %v", ended, err)
	}
}

// methodOf is the method of a call by curl.
func methodOf(command string) string {
	if given := regexp.MustCompile(` -X ([A-Z]+)`).FindStringSubmatch(command); given != nil {
		return given[1]
	}
	if strings.Contains(command, " -d ") {
		return "POST"
	}
	return "GET"
}

// The README's call, as it stands there, against a gateway as it starts without any setting.
func TestTheCallOfTheReadmeIsAnswered(t *testing.T) {
	calls := examples(t, "README.md")
	if len(calls) != 1 {
		t.Fatalf("the README has %d calls", len(calls))
	}
	g := StartGateway(t, nil, Options{})
	bob := Connect(t, g.WS(), "bob")
	command := strings.ReplaceAll(calls[0].command, "127.0.0.1:9090", g.Internal)
	if out, err := exec.Command("sh", "-c", command).Output(); err != nil || !strings.Contains(string(out), `"status":"routed"`) {
		t.Errorf("%s, %v", out, err)
	}
	if f, err := bob.Next("message", Deadline); err != nil || string(f.Content) != `"hello from the shop"` {
		t.Errorf("bob got %s, %v", f.Raw, err)
	}
}
