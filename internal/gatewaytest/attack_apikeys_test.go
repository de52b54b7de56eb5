//go:build !secondpass

package gatewaytest

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// The server API in wrong hands, or called wrongly by the right ones. A refusal is a problem that names what is wrong, comes at once, and
// repeats no key; those who chat notice nothing.
func TestWrongKeysAreRefusedAndHurtNobodyElse(t *testing.T) {
	const key = "cgk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	sum := sha256.Sum256([]byte(key))
	g := startConfigured(t, "limits.connect-rate-per-ip: 0\napi.keys:\n  - name: shop\n    hash: sha256:"+hex.EncodeToString(sum[:])+"\n    scopes: [send]\n")
	n := &neighbours{alice: Connect(t, g.WS(), "alice"), bob: Connect(t, g.WS(), "bob")}
	const (
		call = "POST /api/v1/messages"
		kind = "Content-Type: application/json\r\n"
		good = `{"to":["bob"],"content":1}`
	)
	auth := func(shown string) string { return "Authorization: Bearer " + shown + "\r\n" }
	sized := func(body string) string { return fmt.Sprintf("%sContent-Length: %d\r\n", kind, len(body)) }
	endless := strings.Repeat(fmt.Sprintf("%x\r\n%s\r\n", 64<<10, strings.Repeat(" ", 64<<10)), 20)
	for name, tc := range map[string]struct {
		line, headers, body string
		status              int
		code                string
	}{
		"no key":                     {call, sized(good), good, 401, "unauthorized"},
		"a key wrong by one byte":    {call, auth(key[:len(key)-1]+"B") + sized(good), good, 401, "unauthorized"},
		"a key a byte short":         {call, auth(key[:len(key)-1]) + sized(good), good, 401, "unauthorized"},
		"a key in another case":      {call, auth(strings.ToLower(key)) + sized(good), good, 401, "unauthorized"},
		"the hash for the key":       {call, auth("sha256:"+hex.EncodeToString(sum[:])) + sized(good), good, 401, "unauthorized"},
		"two keys":                   {call, auth(key) + auth(key) + sized(good), good, 401, "unauthorized"},
		"the key as a password":      {call, "Authorization: Basic " + key + "\r\n" + sized(good), good, 401, "unauthorized"},
		"the key in the path":        {call + "?key=" + key, sized(good), good, 401, "unauthorized"},
		"another scope":              {"GET /api/v1/stats", auth(key), "", 403, "forbidden"},
		"an empty body":              {call, auth(key) + sized(""), "", 400, "bad_request"},
		"another type":               {call, auth(key) + strings.Replace(sized(good), "json", "xml", 1), good, 415, "unsupported_media_type"},
		"no type":                    {call, auth(key) + strings.Replace(sized(good), kind, "", 1), good, 415, "unsupported_media_type"},
		"a wrong method":             {"PATCH /api/v1/messages", auth(key) + sized(good), good, 405, "method_not_allowed"},
		"a preflight":                {"OPTIONS /api/v1/messages", "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n", "", 401, "unauthorized"},
		"a path upwards":             {"GET /api/v1/../../metrics", auth(key), "", 404, "not_found"},
		"a body cut short":           {call, auth(key) + sized(good[:9]), good[:9], 400, "bad_request"},
		"two bodies":                 {call, auth(key) + sized(good+good), good + good, 400, "bad_request"},
		"an unknown field":           {call, auth(key) + sized(`{"<script>":1}`), `{"<script>":1}`, 400, "bad_request"},
		"100,000 levels":             {call, auth(key) + sized(strings.Repeat("[", 100_000)), strings.Repeat("[", 100_000), 400, "bad_request"},
		"an endless body":            {call, auth(key) + kind + "Transfer-Encoding: chunked\r\n", endless, 413, "too_large"},
		"a body announced as 1 TB":   {call, auth(key) + kind + "Content-Length: 1099511627776\r\n", "", 413, "too_large"},
		"a foreign host":             {"POST http://evil.example/api/v1/messages", auth(key) + sized(good), good, 421, "foreign_host"},
		"a body where none is taken": {"GET /api/v1/stats", auth(key) + sized(good), good, 403, "forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := DialRaw(g.Internal, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			_ = r.SetDeadline(time.Now().Add(2 * Deadline))
			// What is refused is not read to its end, so writing may fail.
			var sent sync.WaitGroup
			sent.Go(func() {
				_, _ = io.WriteString(r, tc.line+" HTTP/1.1\r\nHost: "+g.Internal+"\r\n"+tc.headers+"\r\n"+tc.body)
			})
			began := time.Now()
			response, err := http.ReadResponse(bufio.NewReader(r), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if took := time.Since(began); took > Deadline/2 {
				t.Errorf("answered after %v", took)
			}
			body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
			if err != nil {
				t.Fatal(err)
			}
			var problem struct {
				Status int
				Code   string
			}
			if err := json.Unmarshal(body, &problem); err != nil {
				t.Fatalf("%v: %.200q", err, body)
			}
			if response.StatusCode != tc.status || problem.Status != tc.status || problem.Code != tc.code || response.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("answered %d, %v, %s; want %d %s", response.StatusCode, response.Header, body, tc.status, tc.code)
			}
			for _, never := range []string{key[:8], hex.EncodeToString(sum[:4])} {
				if strings.Contains(string(body), never) {
					t.Errorf("the answer repeats %q: %s", never, body)
				}
			}
			if response.Header.Get("X-Content-Type-Options") != "nosniff" || len(response.Header["Access-Control-Allow-Origin"]) > 0 {
				t.Errorf("a page may use the answer: %v", response.Header)
			}
			r.Close()
			sent.Wait()
			n.wantChat(t)
		})
	}
	if left := n.bob.Left("message"); len(left) > 0 {
		t.Errorf("bob got what nobody could send: %v", left)
	}
	if strings.Contains(g.Log(), key[:8]) {
		t.Error("the key is in the log")
	}
}
