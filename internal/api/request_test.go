//go:build !secondpass

package api

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

// listening is an edge behind a real server, with one key that may do everything.
func listening(t *testing.T, change func(*Config)) (server *httptest.Server, secret string) {
	t.Helper()
	secret, hash := NewKey()
	a := edge(t, func(c *Config) {
		one := Key{Name: "all", Hash: hash}
		for _, s := range Scopes {
			one.Scopes = append(one.Scopes, string(s.Scope))
		}
		c.Keys = []Key{one}
		if change != nil {
			change(c)
		}
	})
	server = httptest.NewServer(a)
	t.Cleanup(server.Close)
	return server, secret
}

// wantProblem holds an answer against RFC 9457 and the table of codes.
func wantProblem(t *testing.T, status int, header http.Header, body []byte, code Code, detail string) {
	t.Helper()
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil {
		t.Errorf("%d: %v: %s", status, err, body)
		return
	}
	info := infoOf(code)
	if status != info.Status || p.Status != status || p.Code != code || p.Title != info.Title || p.Type != "urn:chatgate:problem:"+string(code) {
		t.Errorf("%d %s, want %s", status, body, code)
	}
	if got := header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	if !strings.Contains(p.Detail, detail) {
		t.Errorf("detail %q, want %q", p.Detail, detail)
	}
	for name := range header {
		if strings.HasPrefix(name, "Access-Control-") {
			t.Errorf("a page of another origin is told %s", name)
		}
	}
}

// Whatever is wrong with a request is said, with its own status and the name of the field; and nothing gets past that, since there is
// nothing behind this API that wouldn't panic.
func TestBadRequestsAreRefusedByName(t *testing.T) {
	server, secret := listening(t, func(c *Config) { c.MaxFrameBytes = 1024 })
	long := strings.Repeat("x", 129)
	many := strings.Repeat(`"u",`, 1000) + `"u"`
	for name, c := range map[string]struct {
		method, path, body string
		code               Code
		detail             string
	}{
		"empty body":             {"POST", "/messages", "", CodeBadRequest, "body: empty"},
		"a body that got lost":   {"POST", "/users/u/disconnect", "", CodeBadRequest, "body: empty"},
		"blank body":             {"POST", "/messages", "  ", CodeBadRequest, "body: unexpected end"},
		"null":                   {"POST", "/messages", "null", CodeBadRequest, "body: must be an object"},
		"array":                  {"POST", "/messages", "[]", CodeBadRequest, "body: must be an object"},
		"number":                 {"POST", "/messages", "1", CodeBadRequest, "body: must be an object"},
		"truncated":              {"POST", "/messages", `{"to":["bob"`, CodeBadRequest, "body: unexpected end"},
		"two objects":            {"POST", "/messages", `{"to":["bob"],"content":1}{}`, CodeBadRequest, "body: data after the object"},
		"trailing comma":         {"POST", "/messages", `{"to":["bob"],"content":1,}`, CodeBadRequest, "body: invalid JSON"},
		"byte order mark":        {"POST", "/messages", "\ufeff" + `{"to":["bob"],"content":1}`, CodeBadRequest, "body: byte order mark"},
		"invalid UTF-8":          {"POST", "/messages", "{\"to\":[\"bob\"],\"content\":\"\xff\"}", CodeBadRequest, "body: invalid UTF-8"},
		"lone surrogate":         {"POST", "/messages", `{"to":["bob"],"content":"\ud800"}`, CodeBadRequest, "body: lone surrogate"},
		"65 levels":              {"POST", "/messages", `{"to":["bob"],"content":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}`, CodeBadRequest, "body: nested deeper than 64 levels"},
		"100,000 levels":         {"POST", "/messages", `{"to":["bob"],"content":` + strings.Repeat("[", 100_000), CodeBadRequest, "body: nested deeper than 64 levels"},
		"unknown field":          {"POST", "/messages", `{"to":["bob"],"contents":1}`, CodeBadRequest, "contents: unknown field"},
		"other case":             {"POST", "/messages", `{"TO":["bob"],"content":1}`, CodeBadRequest, "TO: unknown field"},
		"unspeakable field":      {"POST", "/messages", `{"\u0000":1}`, CodeBadRequest, "body: unknown field"},
		"given twice":            {"POST", "/messages", `{"to":["bob"],"content":1,"content":2}`, CodeBadRequest, "content: given twice"},
		"twice by an escape":     {"POST", "/messages", `{"to":["bob"],"content":1,"\u0063ontent":2}`, CodeBadRequest, "content: given twice"},
		"no content":             {"POST", "/messages", `{"to":["bob"]}`, CodeBadRequest, "content: missing"},
		"nobody":                 {"POST", "/messages", `{"content":1}`, CodeBadRequest, "to: one of to, rooms and everyone"},
		"nobody, twice":          {"POST", "/messages", `{"to":[],"rooms":null,"content":1}`, CodeBadRequest, "to: one of to, rooms and everyone"},
		"everyone and somebody":  {"POST", "/messages", `{"to":["bob"],"everyone":true,"content":1}`, CodeBadRequest, "everyone: not together"},
		"to is no list":          {"POST", "/messages", `{"to":"bob","content":1}`, CodeBadRequest, "to: must be an array"},
		"a number in to":         {"POST", "/messages", `{"to":["a",1],"content":1}`, CodeBadRequest, "to[1]: must be a string"},
		"an empty name":          {"POST", "/messages", `{"to":[""],"content":1}`, CodeBadRequest, "to[0]: empty"},
		"a long name":            {"POST", "/messages", `{"rooms":["` + long + `"],"content":1}`, CodeBadRequest, "rooms[0]: too long"},
		"a line break in a name": {"POST", "/messages", `{"to":["a\nb"],"content":1}`, CodeBadRequest, "to[0]: control character"},
		"NUL in a name":          {"POST", "/messages", `{"to":["a\u0000b"],"content":1}`, CodeBadRequest, "to[0]: control character"},
		"too many":               {"POST", "/messages", `{"to":[` + many + `],"content":1}`, CodeTooLarge, "to: more than 1000"},
		"too many together":      {"POST", "/messages", `{"to":["b"],"rooms":[` + many[4:] + `],"content":1}`, CodeTooLarge, "to: with rooms, more than 1000"},
		"a long key":             {"POST", "/messages", `{"to":["b"],"content":1,"id":"` + long[:65] + `"}`, CodeBadRequest, "id: too long"},
		"ephemeral is a word":    {"POST", "/messages", `{"to":["b"],"content":1,"ephemeral":"yes"}`, CodeBadRequest, "ephemeral: must be true or false"},
		"too large a message":    {"POST", "/messages", `{"to":["b"],"content":"` + strings.Repeat("x", 1000) + `"}`, CodeTooLarge, "content: the message would be over the 1024 bytes"},
		"too large a body":       {"POST", "/messages", `{"content":"` + strings.Repeat("x", maxBody) + `"}`, CodeTooLarge, "body: more than 1048576 bytes"},
		"nobody asked about":     {"POST", "/presence", `{"users":[]}`, CodeBadRequest, "users: empty"},
		"who":                    {"POST", "/presence", `{}`, CodeBadRequest, "users: missing"},
		"body where none is":     {"GET", "/stats", `{}`, CodeBadRequest, "body: none is taken"},
		"unknown parameter":      {"GET", "/rooms/r/members?x=1", "", CodeBadRequest, "query: unknown parameter"},
		"parameter twice":        {"GET", "/rooms/r/members?limit=1&limit=2", "", CodeBadRequest, "limit: given twice"},
		"limit 0":                {"GET", "/rooms/r/members?limit=0", "", CodeBadRequest, "limit: must be a whole number from 1 to 1000"},
		"limit 1001":             {"GET", "/rooms/r/members?limit=1001", "", CodeBadRequest, "limit: must be"},
		"limit 1e2":              {"GET", "/rooms/r/members?limit=1e2", "", CodeBadRequest, "limit: must be"},
		"a broken escape":        {"GET", "/rooms/r/members?limit=%2", "", CodeBadRequest, "query: invalid percent-encoding"},
		"both sides":             {"GET", "/users/u/history?after=1&before=3", "", CodeBadRequest, "before: not together with after"},
		"a negative offset":      {"GET", "/users/u/history?after=-1", "", CodeBadRequest, "after: must be a whole number from 0"},
		"offset 2^64":            {"GET", "/users/u/history?before=18446744073709551616", "", CodeBadRequest, "before: must be"},
		"no name":                {"GET", "/users//connections", "", CodeBadRequest, "user: empty"},
		"NUL in a path":          {"GET", "/users/a%00b/connections", "", CodeBadRequest, "user: control character"},
		"0xFF in a path":         {"GET", "/users/%FF/connections", "", CodeBadRequest, "user: invalid UTF-8"},
		"a long name in a path":  {"GET", "/users/" + long + "/connections", "", CodeBadRequest, "user: too long"},
		"nothing to revoke":      {"POST", "/revocations", `{}`, CodeDisabled, "takes no tokens"},
		"no such path":           {"GET", "/user/u", "", CodeNotFound, "no such path"},
		"a longer path":          {"GET", "/stats/", "", CodeNotFound, "no such path"},
		"a slash not encoded":    {"GET", "/users/a/b/connections", "", CodeNotFound, "no such path"},
		"the base":               {"GET", "/", "", CodeNotFound, "no such path"},
		"wrong method":           {"GET", "/messages", "", CodeMethodNotAllowed, "the path takes POST"},
		"another wrong method":   {"DELETE", "/users/u/connections", "", CodeMethodNotAllowed, "the path takes GET, HEAD"},
		"preflight":              {"OPTIONS", "/messages", "", CodeMethodNotAllowed, "the path takes POST"},
		"the document":           {"PUT", "/openapi.json", "", CodeMethodNotAllowed, "the path takes GET, HEAD"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequest(c.method, server.URL+Base+c.path, strings.NewReader(c.body))
			if err != nil && strings.Contains(c.path, "%2") {
				return // the client itself refuses it
			} else if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+secret)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Origin", "https://evil.example")
			began := time.Now()
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, _ := io.ReadAll(answer.Body)
			wantProblem(t, answer.StatusCode, answer.Header, body, c.code, c.detail)
			if c.code == CodeMethodNotAllowed && !strings.Contains(c.detail, answer.Header.Get("Allow")) {
				t.Errorf("Allow %q", answer.Header.Get("Allow"))
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// Nothing must be said of how bob is closed, so no body must be sent to say it. Where something must, that is asked for.
func TestACallThatMayBeMadeWithAnEmptyBodyMayBeMadeWithoutOne(t *testing.T) {
	n := start(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	if x := into[DisconnectAnswer](t, n.call(t, 200, "POST", "/users/bob/disconnect", "")); x.User != "bob" {
		t.Errorf("%+v", x)
	}
	for _, path := range []string{"/messages", "/presence", "/users/bob/join"} {
		wantCode(t, n.call(t, 415, "POST", path, ""), CodeUnsupportedMedia)
	}
}

// Headers that are wrong.
func TestBadHeadersAreRefusedByName(t *testing.T) {
	server, secret := listening(t, nil)
	const good = `{"to":["bob"],"content":1}`
	flipped := []byte(secret)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		header http.Header
		code   Code
		detail string
	}{
		"no key":              {http.Header{}, CodeUnauthorized, "must hold an API key"},
		"wrong by one bit":    {http.Header{"Authorization": {"Bearer " + string(flipped)}}, CodeUnauthorized, "is not one of api.keys"},
		"cut by one byte":     {http.Header{"Authorization": {"Bearer " + secret[:len(secret)-1]}}, CodeUnauthorized, "is not one of api.keys"},
		"a byte more":         {http.Header{"Authorization": {"Bearer " + secret + "A"}}, CodeUnauthorized, "is not one of api.keys"},
		"another case":        {http.Header{"Authorization": {"Bearer " + strings.ToUpper(secret)}}, CodeUnauthorized, "is not one of api.keys"},
		"empty key":           {http.Header{"Authorization": {"Bearer "}}, CodeUnauthorized, "must hold an API key"},
		"no scheme":           {http.Header{"Authorization": {secret}}, CodeUnauthorized, "must hold an API key"},
		"basic":               {http.Header{"Authorization": {"Basic " + secret}}, CodeUnauthorized, "must hold an API key"},
		"two keys":            {http.Header{"Authorization": {"Bearer " + secret, "Bearer " + secret}}, CodeUnauthorized, "must hold an API key"},
		"key in another":      {http.Header{"X-Api-Key": {secret}}, CodeUnauthorized, "must hold an API key"},
		"no content type":     {http.Header{"Authorization": {"Bearer " + secret}}, CodeUnsupportedMedia, "must be application/json"},
		"a form":              {http.Header{"Authorization": {"Bearer " + secret}, "Content-Type": {"application/x-www-form-urlencoded"}}, CodeUnsupportedMedia, "must be application/json"},
		"text":                {http.Header{"Authorization": {"Bearer " + secret}, "Content-Type": {"text/plain"}}, CodeUnsupportedMedia, "must be application/json"},
		"json in a way":       {http.Header{"Authorization": {"Bearer " + secret}, "Content-Type": {"application/json5"}}, CodeUnsupportedMedia, "must be application/json"},
		"two idempotency":     {http.Header{"Authorization": {"Bearer " + secret}, "Idempotency-Key": {"a", "b"}, "Content-Type": {"application/json"}}, CodeBadRequest, "Idempotency-Key: given twice"},
		"a long idempotency":  {http.Header{"Authorization": {"Bearer " + secret}, "Idempotency-Key": {strings.Repeat("k", 65)}, "Content-Type": {"application/json"}}, CodeBadRequest, "Idempotency-Key: too long"},
		"an empty one":        {http.Header{"Authorization": {"Bearer " + secret}, "Idempotency-Key": {""}, "Content-Type": {"application/json"}}, CodeBadRequest, "Idempotency-Key: empty"},
		"another than the id": {http.Header{"Authorization": {"Bearer " + secret}, "Idempotency-Key": {"b"}, "Content-Type": {"application/json"}}, CodeBadRequest, "id: is not the Idempotency-Key"},
	} {
		t.Run(name, func(t *testing.T) {
			body := good
			if name == "another than the id" {
				body = `{"to":["bob"],"content":1,"id":"a"}`
			}
			r, err := http.NewRequest("POST", server.URL+Base+"/messages", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header = c.header
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			text, _ := io.ReadAll(answer.Body)
			wantProblem(t, answer.StatusCode, answer.Header, text, c.code, c.detail)
			if challenge := answer.Header.Get("WWW-Authenticate"); (c.code == CodeUnauthorized) != (challenge == "Bearer") {
				t.Errorf("WWW-Authenticate %q", challenge)
			}
			if strings.Contains(string(text), secret[8:20]) {
				t.Errorf("the answer shows the key: %s", text)
			}
		})
	}
	a := server.Config.Handler.(*API)
	if got := a.Stats().WrongKeys; got != 4 {
		t.Errorf("%d wrong keys are counted", got)
	}
}

// A body that never ends, fast or slowly, is cut off with an answer, and a caller that goes away leaves nothing.
func TestEndlessBodiesAreCutOff(t *testing.T) {
	server, secret := listening(t, func(c *Config) { c.BodyTime = 300 * time.Millisecond })
	head := "POST " + Base + "/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer " + secret + "\r\n"
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 64<<10, strings.Repeat(" ", 64<<10))
	for name, c := range map[string]struct {
		header, first, again string
		pause                time.Duration
		code                 Code
	}{
		"fast":              {"Transfer-Encoding: chunked\r\n", chunk, chunk, 0, CodeTooLarge},
		"slow":              {"Transfer-Encoding: chunked\r\n", "1\r\n{\r\n", "1\r\n \r\n", 20 * time.Millisecond, CodeTimeout},
		"silent":            {"Content-Length: 100\r\n", "{", "", time.Second, CodeTimeout},
		"announced too big": {"Content-Length: 999999999999\r\n", "", "", time.Second, CodeTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			done := make(chan struct{})
			defer func() { <-done }()
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				defer close(done)
				_, err := io.WriteString(conn, head+c.header+"\r\n"+c.first)
				for err == nil && c.again != "" {
					select {
					case <-stop:
						return
					case <-time.After(c.pause):
					}
					_, err = io.WriteString(conn, c.again)
				}
			}()
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(answer.Body)
			wantProblem(t, answer.StatusCode, answer.Header, body, c.code, "body:")
			conn.Close()
		})
	}
}

// More calls at a time than may be are refused, and say when to come again.
func TestTooManyCallsAtATimeAreRefused(t *testing.T) {
	server, secret := listening(t, func(c *Config) { c.MostCalls, c.BodyTime = 1, 20*time.Second })
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: 9\r\n\r\n", Base, secret)
	a := server.Config.Handler.(*API)
	underWay := func(want int64) {
		t.Helper()
		if err := gatewaytest.Poll(20*time.Second, func() error {
			if n := a.Stats().UnderWay; n != want {
				return fmt.Errorf("%d calls are under way, want %d", n, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	underWay(1)
	w := ask(a, "GET", Base+"/nothing", secret, "")
	wantProblem(t, w.Code, w.Header(), w.Body.Bytes(), CodeOverloaded, "too many calls")
	fmt.Fprint(conn, "{\"a\":1}  ")
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != 400 {
		t.Fatalf("%v, %v", answer, err)
	}
	underWay(0)
	if w := ask(a, "GET", Base+"/nothing", secret, ""); w.Code != 404 {
		t.Errorf("%d afterwards", w.Code)
	}
}

// What comes by another way than HTTP is one object with everything, read as strictly.
func TestCommandsAreReadAsStrictly(t *testing.T) {
	a := edge(t, func(*Config) {})
	for name, c := range map[string]struct {
		operation, input string
		code             Code
		detail           string
	}{
		"no such operation": {"sendMessages", `{}`, CodeNotFound, "no such operation"},
		"unknown field":     {"getUserHistory", `{"user":"u","x":1}`, CodeBadRequest, "x: unknown field"},
		"no path parameter": {"getUserHistory", `{"limit":3}`, CodeBadRequest, "user: missing"},
		"bad number":        {"getUserHistory", `{"user":"u","limit":"3"}`, CodeBadRequest, "limit: must be"},
		"both sides":        {"getUserHistory", `{"user":"u","after":1,"before":2}`, CodeBadRequest, "before: not together"},
		"no header":         {"sendMessage", `{"Idempotency-Key":"a","to":["b"],"content":1}`, CodeBadRequest, "Idempotency-Key: unknown field"},
		"nothing":           {"sendMessage", ``, CodeBadRequest, "body: unexpected end"},
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := a.command(t.Context(), c.operation, []byte(c.input), func(*operation, any) *Problem { return nil })
			p, ok := answer.(*Problem)
			if !ok || status != infoOf(c.code).Status || p.Code != c.code || !strings.Contains(p.Detail, c.detail) {
				t.Errorf("%d %+v", status, answer)
			}
		})
	}
}
