//go:build !secondpass

package gatewaytest

import (
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

// keyed makes keys by the command, and a configuration file with their entries.
func keyed(t *testing.T, scopes ...string) (file string, keys []string) {
	t.Helper()
	var entries strings.Builder
	for i, s := range scopes {
		out, err := exec.Command(Build(t), "key", "gen", fmt.Sprintf("key%d", i), "--scopes", s).CombinedOutput()
		if err != nil {
			t.Fatalf("key gen: %v\n%s", err, out)
		}
		keys = append(keys, regexp.MustCompile(`(?m)^cgk_\S+$`).FindString(string(out)))
		_, entry, _ := strings.Cut(string(out), "keys:\n")
		entries.WriteString(entry)
	}
	file = filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, []byte("api:\n  keys:\n"+entries.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, keys
}

// Beyond loopback there is no API without keys; with the keys that the command makes each does what its scopes say, from anywhere. What
// calls there were is in the metrics, and no key in the log.
func TestBeyondThisMachineTheAPINeedsKeys(t *testing.T) {
	t.Parallel()
	r := Shared(t, Embedded)
	everywhere := []string{"--internal-listen=0.0.0.0:" + fmt.Sprint(FreePort(t)), "--log.level=debug"}
	here := func(g *Gateway) *Gateway {
		_, port, _ := strings.Cut(everywhere[0], "0.0.0.0:")
		g.Internal = "127.0.0.1:" + port
		return g
	}
	off := here(NewGateway(t, r, Options{Name: "off", Flags: everywhere}))
	if err := off.Restart(); err != nil {
		t.Fatal(err)
	}
	if a := callAPI(t, off, 403, "GET", "/stats", ""); a.text("code") != "disabled" || !strings.Contains(a.text("detail"), "api.keys") {
		t.Errorf("%v", a)
	}
	callAPI(t, off, 403, "GET", "/stats", "", "Authorization", "Bearer cgk_anything")
	off.Kill()

	file, keys := keyed(t, "send,stats", "presence")
	on := here(NewGateway(t, r, Options{Name: "on", Flags: append(slices.Clone(everywhere), "--config="+file)}))
	if err := on.Restart(); err != nil {
		t.Fatal(err)
	}
	bearer := func(i int) []string { return []string{"Authorization", "Bearer " + keys[i], "Host", "chat.internal"} }
	callAPI(t, on, 401, "GET", "/stats", "")
	callAPI(t, on, 401, "GET", "/stats", "", "Authorization", "Bearer "+keys[0]+"x")
	callAPI(t, on, 200, "GET", "/stats", "", bearer(0)...)
	callAPI(t, on, 200, "POST", "/messages", `{"to":["bob"],"content":1}`, bearer(0)...)
	callAPI(t, on, 200, "POST", "/presence", `{"users":["bob"]}`, bearer(1)...)
	callAPI(t, on, 200, "GET", "/openapi.json", "", bearer(1)...)
	if a := callAPI(t, on, 403, "POST", "/messages", `{"to":["bob"],"content":1}`, bearer(1)...); !strings.Contains(a.text("detail"), "scope send") {
		t.Errorf("%v", a)
	}
	_, metrics, err := on.GetInternal("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`gateway_api_calls_total{operation="sendMessage",status="200"} 1`, `gateway_api_calls_total{operation="sendMessage",status="403"} 1`,
		`gateway_api_calls_total{operation="none",status="401"} 2`, "gateway_api_wrong_keys_total 1",
	} {
		if !strings.Contains(string(metrics), want+"\n") {
			t.Errorf("the metrics lack %s", want)
		}
	}
	log := on.Log()
	for _, key := range keys {
		if strings.Contains(log, key[4:]) {
			t.Error("a key is in the log")
		}
	}
	if !regexp.MustCompile(`api call.*sendMessage.*200.*key0`).MatchString(log) {
		t.Errorf("the call is not in the log:\n%s", on.LogTail(20))
	}
}

// A key that leaked is replaced while the gateway runs, and a file that lost all keys opens nothing.
func TestKeysAreReplacedByAReload(t *testing.T) {
	t.Parallel()
	oldFile, oldKey := keyed(t, "stats")
	newFile, newKey := keyed(t, "stats")
	settings := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	g := startConfigured(t, settings(oldFile))
	ask := func(key string) int {
		a, err := g.tryAPI("GET", "/stats", "", "Authorization", "Bearer "+key)
		if err != nil {
			t.Fatal(err)
		}
		return a.Status
	}
	if was, will := ask(oldKey[0]), ask(newKey[0]); was != 200 || will != 401 {
		t.Errorf("the key is answered %d, one that is none %d", was, will)
	}
	g.write(settings(newFile))
	g.wantReloaded("api.keys", "")
	if was, is := ask(oldKey[0]), ask(newKey[0]); was != 401 || is != 200 {
		t.Errorf("the old key is answered %d, the new one %d", was, is)
	}
	g.write("api: {from: system}\n")
	g.wantReloaded("", "api.keys")
	if is, without := ask(newKey[0]), ask(""); is != 200 || without != 401 {
		t.Errorf("after the file lost its keys: %d with one, %d without", is, without)
	}
}

// A page on the web has its name lead to this machine. The gateway's API is open there, and still the page gets nothing.
func TestAPageGetsNothingFromTheOpenAPI(t *testing.T) {
	g := StartGateway(t, nil, Options{})
	for name, headers := range map[string][]string{
		"a foreign origin":   {"Origin", "https://evil.example"},
		"its preflight":      {"Origin", "https://evil.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type"},
		"the gateway's page": {"Origin", g.URL()},
	} {
		for _, method := range []string{"POST", "OPTIONS"} {
			a, err := g.tryAPI(method, "/messages", `{"everyone":true,"content":"buy this"}`, headers...)
			if err != nil || a.Status != 403 {
				t.Errorf("%s, %s: %v, %v", name, method, a, err)
			}
			for header := range a.Header {
				if strings.HasPrefix(header, "Access-Control-") {
					t.Errorf("%s, %s: %s", name, method, header)
				}
			}
		}
	}
	request, err := http.NewRequest("GET", "http://"+g.Internal+"/api/v1/stats", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "evil.example"
	response, err := apiClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("with a foreign Host: %d", response.StatusCode)
	}
}
