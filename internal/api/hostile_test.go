//go:build !secondpass

package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// wrongValues of a field: each is JSON, and none can be what the field takes.
func wrongValues(f *field, t reflect.Type) []string {
	long := strconv.Quote(strings.Repeat("x", 4096))
	switch {
	case t == typeRaw:
		return nil // takes anything
	case t.Kind() == reflect.Pointer:
		return wrongValues(f, t.Elem())
	case t.Kind() == reflect.Struct:
		return []string{`1`, `"x"`, `[]`, `{"no such field":1}`}
	case t.Kind() == reflect.Map:
		return []string{`1`, `[]`}
	case t.Kind() == reflect.Slice:
		wrong := []string{`1`, `"x"`, `{}`, `[null]`, `[true,{}]`}
		for _, w := range wrongValues(&field{}, t.Elem()) {
			wrong = append(wrong, "["+w+"]")
		}
		if f.max > 0 {
			wrong = append(wrong, "["+strings.Repeat(`"u",`, int(f.max))+`"u"]`, "["+strings.Repeat(`"u",`, 9999)+`"u"]`)
		}
		return wrong
	case t.Kind() == reflect.Bool:
		return []string{`1`, `"true"`, `[]`, `{}`}
	case t.Kind() == reflect.String:
		wrong := []string{`1`, `true`, `[]`, `{}`, `"\ud800"`}
		if _, id := idBytes[t]; id {
			wrong = append(wrong, `""`, `"a\u0000"`, long)
		} else if f.max > 0 {
			wrong = append(wrong, long)
		}
		return wrong
	}
	return []string{`"1"`, `1.5`, `1e400`, `-1`, `99999999999999999999`, `true`, `[]`, `{}`}
}

// Every operation, with everything that can be wrong about a request for it: each is refused before it gets anywhere, since there is nothing
// behind this API that wouldn't panic, and each with a problem that doesn't say what was sent.
func TestEveryOperationRefusesWhatItDoesNotTake(t *testing.T) {
	secret, hash := NewKey()
	_, other := NewKey()
	a := edge(t, func(c *Config) {
		all := Key{Name: "all", Hash: hash}
		for _, s := range Scopes {
			all.Scopes = append(all.Scopes, string(s.Scope))
		}
		c.Keys = []Key{all, {Name: "another", Hash: other, Scopes: []string{"send"}}}
	})
	type attempt struct {
		method, path, kind, key, body string
		coding                        string
		want                          []Code
	}
	tried := 0
	for _, o := range operations {
		good := attempt{o.Method, pathOf(o), "application/json", secret, "", "", nil}
		refused := func(name string, change func(*attempt), want ...Code) {
			t.Helper()
			x := good
			change(&x)
			tried++
			r := httptest.NewRequest(x.method, x.path, strings.NewReader(x.body))
			if x.key != "" {
				r.Header.Set("Authorization", "Bearer "+x.key)
			}
			if x.kind != "" {
				r.Header.Set("Content-Type", x.kind)
			}
			if x.coding != "" {
				r.Header.Set("Content-Encoding", x.coding)
			}
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			code := want[0]
			for _, c := range want {
				if infoOf(c).Status == w.Code {
					code = c
				}
			}
			wantProblem(t, w.Code, w.Header(), w.Body.Bytes(), code, "")
			if t.Failed() {
				t.Fatalf("%s: %s: %.200s %.200s", o.Name, name, x.path, x.body)
			}
			if text := w.Body.String(); strings.Contains(text, "canary") || len(text) > 1000 {
				t.Errorf("%s: %s: the answer repeats what was sent: %.2000s", o.Name, name, text)
			}
		}
		refused("no key", func(x *attempt) { x.key = "" }, CodeUnauthorized)
		refused("a wrong key", func(x *attempt) { x.key = "cgk_canary" }, CodeUnauthorized)
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} {
			if p, _, _ := find(method, strings.Split(strings.TrimPrefix(good.path, Base+"/"), "/")); p == nil {
				refused(method, func(x *attempt) { x.method = method }, CodeMethodNotAllowed)
			}
		}
		refused("a longer path", func(x *attempt) { x.path += "/canary" }, CodeNotFound)
		refused("an unknown parameter", func(x *attempt) { x.path += "?other=canary" }, CodeBadRequest)
		for i := range o.request.fields {
			f := &o.request.fields[i]
			switch f.in {
			case inPath:
				for _, w := range []string{"%00", "%ff", "%0a", strings.Repeat("x", 129)} {
					refused(f.name, func(x *attempt) { x.path = strings.Replace(x.path, "/x", "/"+w, 1) }, CodeBadRequest)
				}
			case inQuery:
				wrong := []string{"x%zz", "%ff%00"}
				if k := f.typ.Kind(); k != reflect.String {
					wrong = append(wrong, "", "-1", "1.5", "canary", "99999999999999999999", "%ff")
				} else if f.max > 0 {
					wrong = append(wrong, strings.Repeat("x", int(f.max)+1))
				}
				for _, w := range wrong {
					if f.typ.Kind() == reflect.String && f.max > 0 && w == "%ff%00" {
						continue // a text of any bytes
					}
					refused(f.name+"="+w, func(x *attempt) { x.path += "?" + f.name + "=" + w }, CodeBadRequest)
				}
				refused(f.name+" twice", func(x *attempt) { x.path += "?" + f.name + "=1&" + f.name + "=1" }, CodeBadRequest)
			}
		}
		if !o.takesBody() {
			refused("a body", func(x *attempt) { x.body = `{}` }, CodeBadRequest)
			continue
		}
		for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json5", "application", ";"} {
			refused("as "+kind, func(x *attempt) { x.kind, x.body = kind, `{"other":"canary"}` }, CodeUnsupportedMedia)
		}
		for _, coding := range []string{"gzip", "identity, gzip", "br"} {
			refused("in "+coding, func(x *attempt) { x.coding, x.body = coding, `{"other":"canary"}` }, CodeUnsupportedMedia)
		}
		for _, body := range []string{
			"", " ", "null", "[]", "1", `"canary"`, "true", "{", `{"`, `{}{}`, `{"other":"canary"}`, `{"other":{"canary":1}}`, `{"":1}`, "\ufeff{}", "{\"a\":\"\xff\"}", `{"a":tru}`, `{'a':1}`, "{\"a\":1,}",
			strings.Repeat(`{"a":`, 100_000), strings.Repeat("[", 100_000),
		} {
			refused("the body", func(x *attempt) { x.body = body }, CodeBadRequest)
		}
		refused("a large body", func(x *attempt) { x.body = `{"other":"canary` + strings.Repeat("x", maxBody) + `"}` }, CodeTooLarge)
		for i := range o.request.fields {
			f := &o.request.fields[i]
			if f.in != inBody {
				continue
			}
			for _, w := range wrongValues(f, f.typ) {
				refused(f.name, func(x *attempt) { x.body = `{"` + f.name + `":` + w + `}` }, CodeBadRequest, CodeTooLarge)
			}
			refused(f.name+" twice", func(x *attempt) { x.body = `{"` + f.name + `":null,"` + f.name + `":[],"` + f.name + `":1}` }, CodeBadRequest)
		}
		if slices.ContainsFunc(o.request.fields, func(f field) bool { return f.in == inBody && f.required }) {
			refused("nothing in it", func(x *attempt) { x.body = `{}` }, CodeBadRequest)
		}
	}
	t.Logf("%d requests", tried)
	if tried < 30*len(operations) {
		t.Errorf("only %d requests were tried", tried)
	}
	if s := a.Stats(); s.UnderWay != 0 {
		t.Errorf("%d calls are still under way", s.UnderWay)
	}
}

// Whoever is refused for his header is told so at once and not when his body is there, which may be never; and he holds the connection no
// longer than a body may take.
func TestARefusalDoesNotWaitForTheBody(t *testing.T) {
	const bodyTime = 500 * time.Millisecond
	server, secret := listening(t, func(c *Config) { c.BodyTime = bodyTime })
	auth := "Authorization: Bearer " + secret + "\r\n"
	const typed = "Content-Type: application/json\r\n"
	for name, c := range map[string]struct {
		line, header string
		code         Code
	}{
		"no key":       {"POST /messages", typed, CodeUnauthorized},
		"no path":      {"POST /nowhere", typed + auth, CodeNotFound},
		"no method":    {"PUT /messages", typed + auth, CodeMethodNotAllowed},
		"no type":      {"POST /messages", auth, CodeUnsupportedMedia},
		"takes none":   {"GET /stats", typed + auth, CodeBadRequest},
		"the document": {"GET /openapi.json", auth, ""},
	} {
		for kind, framing := range map[string]string{"counted": "Content-Length: 100\r\n", "chunked": "Transfer-Encoding: chunked\r\n"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				conn, err := net.Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				method, path, _ := strings.Cut(c.line, " ")
				began := time.Now()
				fmt.Fprintf(conn, "%s %s%s HTTP/1.1\r\nHost: localhost\r\n%s%s\r\n", method, Base, path, framing, c.header)
				_ = conn.SetReadDeadline(began.Add(20 * time.Second))
				in := bufio.NewReader(conn)
				answer, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(answer.Body)
				if took := time.Since(began); took > bodyTime {
					t.Errorf("answered after %v", took)
				}
				if c.code != "" {
					wantProblem(t, answer.StatusCode, answer.Header, body, c.code, "")
				} else if answer.StatusCode != 200 {
					t.Errorf("answered %d", answer.StatusCode)
				}
				if !answer.Close {
					t.Error("it doesn't say that the connection ends")
				}
				if _, err := in.ReadByte(); err != io.EOF {
					t.Errorf("the connection is still there: %v", err)
				}
			})
		}
	}
}
