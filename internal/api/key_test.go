//go:build !secondpass

package api

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// edge is an API with nothing behind it: for calls that must not get there.
func edge(t *testing.T, change func(*Config)) *API {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Gateway, cfg.Log = "g-1", slog.New(slog.NewTextHandler(io.Discard, nil))
	change(&cfg)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// ask makes a call and returns the answer.
func ask(a http.Handler, method, path, key, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

// pathOf is the operation's path with something in place of its parameters.
func pathOf(o *operation) string {
	segments := slices.Clone(o.segments)
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			segments[i] = "x"
		}
	}
	return Base + "/" + strings.Join(segments, "/")
}

// Each operation, with a key for each scope: it is refused by all but one, which is named, and before anything is read.
func TestEachOperationNeedsItsScopeAndNoOther(t *testing.T) {
	secrets := make(map[Scope]string)
	a := edge(t, func(c *Config) {
		for _, s := range Scopes {
			secret, hash := NewKey()
			secrets[s.Scope] = secret
			c.Keys = append(c.Keys, Key{Name: string(s.Scope), Hash: hash, Scopes: []string{string(s.Scope)}})
		}
	})
	for _, o := range operations {
		if !knownScope(o.Scope) {
			t.Errorf("%s needs the scope %q, which there is not", o.Name, o.Scope)
		}
		for scope, secret := range secrets {
			if scope == o.Scope {
				continue
			}
			w := ask(a, o.Method, pathOf(o), secret, "")
			body := w.Body.String()
			if w.Code != 403 || !strings.Contains(body, `"code":"forbidden"`) || !strings.Contains(body, "scope "+string(o.Scope)) {
				t.Errorf("%s with the scope %s: %d %s", o.Name, scope, w.Code, body)
			}
			if got := w.Header().Get("WWW-Authenticate"); !strings.Contains(got, `scope="`+string(o.Scope)+`"`) {
				t.Errorf("%s with the scope %s: WWW-Authenticate %q", o.Name, scope, got)
			}
		}
	}
}

// The scope an operation has is the one it asks for: with it, the call comes as far as its body.
func TestTheRightScopeLetsTheCallIn(t *testing.T) {
	secret, hash := NewKey()
	for _, o := range operations {
		if !o.takesBody() {
			continue
		}
		a := edge(t, func(c *Config) {
			c.Keys = []Key{{Name: "one", Hash: hash, Scopes: []string{string(o.Scope)}}}
		})
		if w := ask(a, o.Method, pathOf(o), secret, `{"no such field":1}`); w.Code != 400 || !strings.Contains(w.Body.String(), "no such field: unknown field") {
			t.Errorf("%s: %d %s", o.Name, w.Code, w.Body)
		}
	}
}

// Without keys only programs on this machine may call, which no page can pass for: a browser says what it is.
func TestWithoutKeysPagesGetNothing(t *testing.T) {
	open := edge(t, func(c *Config) { c.Open = true })
	for name, c := range map[string]struct {
		header string
		value  string
		code   Code
	}{
		"a foreign page":     {"Origin", "https://evil.example", CodeForbidden},
		"a local page":       {"Origin", "http://localhost:9090", CodeForbidden},
		"a page in a frame":  {"Origin", "null", CodeForbidden},
		"an empty origin":    {"Origin", "", CodeForbidden},
		"an image of a page": {"Sec-Fetch-Site", "cross-site", CodeForbidden},
		"another local page": {"Sec-Fetch-Site", "same-site", CodeForbidden},
		"a program":          {"User-Agent", "curl", CodeNotFound},
		"its user himself":   {"Sec-Fetch-Site", "none", CodeNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", Base+"/nothing", nil)
			r.Header.Set(c.header, c.value)
			w := httptest.NewRecorder()
			open.ServeHTTP(w, r)
			wantProblem(t, w.Code, w.Header(), w.Body.Bytes(), c.code, "")
		})
	}
	shut := edge(t, func(c *Config) {})
	w := ask(shut, "GET", Base+"/stats", "any key", "")
	wantProblem(t, w.Code, w.Header(), w.Body.Bytes(), CodeDisabled, "set api.keys")
}

// Keys are replaced while calls are made; a bad list changes nothing.
func TestKeysAreReplacedAtOnce(t *testing.T) {
	a := edge(t, func(c *Config) { c.Open = true })
	status := func(secret string) int { return ask(a, "GET", Base+"/nothing", secret, "").Code }
	before, hash := NewKey()
	after, newHash := NewKey()
	if status("") != 404 {
		t.Error("it isn't open")
	}
	if err := a.SetKeys([]Key{{Name: "a", Hash: hash, Scopes: []string{"send"}}}); err != nil {
		t.Fatal(err)
	}
	if status("") != 401 || status(before) != 404 || status(after) != 401 {
		t.Errorf("%d without, %d with the key, %d with another", status(""), status(before), status(after))
	}
	if err := a.SetKeys([]Key{{Name: "a", Hash: newHash, Scopes: []string{"sent"}}}); err == nil {
		t.Error("a scope that isn't one is taken")
	}
	if status(before) != 404 {
		t.Error("a bad list changed something")
	}
	if err := a.SetKeys([]Key{{Name: "a", Hash: newHash, Scopes: []string{"send"}}}); err != nil {
		t.Fatal(err)
	}
	if status(before) != 401 || status(after) != 404 {
		t.Errorf("%d with the old key, %d with the new one", status(before), status(after))
	}
}

func TestKeysAreValidated(t *testing.T) {
	_, hash := NewKey()
	_, other := NewKey()
	for name, c := range map[string]struct {
		keys []Key
		want string
	}{
		"name":       {[]Key{{Name: "a b", Hash: hash, Scopes: []string{"send"}}}, "name: must be"},
		"no name":    {[]Key{{Hash: hash, Scopes: []string{"send"}}}, "name: must be"},
		"a key":      {[]Key{{Name: "a", Hash: "cgk_secret", Scopes: []string{"send"}}}, "hash: must be sha256:"},
		"short hash": {[]Key{{Name: "a", Hash: hash[:70], Scopes: []string{"send"}}}, "hash: must be sha256:"},
		"no scopes":  {[]Key{{Name: "a", Hash: hash}}, "scopes: must name at least one"},
		"scope":      {[]Key{{Name: "a", Hash: hash, Scopes: []string{"Send"}}}, `scopes: no scope is called "Send"`},
		"rate":       {[]Key{{Name: "a", Hash: hash, Scopes: []string{"send"}, Rate: -1}}, "rate: must be >= 0"},
		"same name":  {[]Key{{Name: "a", Hash: hash, Scopes: []string{"send"}}, {Name: "a", Hash: other, Scopes: []string{"send"}}}, "name: is that of two keys"},
		"same key":   {[]Key{{Name: "a", Hash: hash, Scopes: []string{"send"}}, {Name: "b", Hash: strings.ToUpper(hash), Scopes: []string{"send"}}}, "hash: is that of another key"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := ValidateKeys(c.keys); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A key's rate holds over time, not only in its first second.
func TestAKeyMayCallSoOften(t *testing.T) {
	secret, hash := NewKey()
	a := edge(t, func(c *Config) { c.Keys = []Key{{Name: "a", Hash: hash, Scopes: []string{"send"}, Rate: 20}} })
	began, passed := time.Now(), 0
	for time.Since(began) < 500*time.Millisecond {
		w := ask(a, "GET", Base+"/nothing", secret, "")
		if w.Code == 404 {
			passed++
			continue
		}
		wantProblem(t, w.Code, w.Header(), w.Body.Bytes(), CodeLimited, "rate")
		if w.Header().Get("Retry-After") != "1" {
			t.Fatalf("Retry-After %q", w.Header().Get("Retry-After"))
		}
	}
	if most := 20 + int(20*time.Since(began).Seconds()) + 1; passed < 20 || passed > most {
		t.Errorf("%d calls passed, want 20 to %d", passed, most)
	}
}

// A reload gives nobody the calls again that he has made, whatever else it changes. A key with another rate begins anew.
func TestARateOutlivesAReload(t *testing.T) {
	secret, hash := NewKey()
	_, other := NewKey()
	list := func(name string, rate int) []Key {
		return []Key{{Name: "other", Hash: other, Scopes: []string{"send"}, Rate: 1}, {Name: name, Hash: hash, Scopes: []string{"send"}, Rate: rate}}
	}
	a := edge(t, func(c *Config) { c.Keys = list("a", 2)[1:] })
	began, passed := time.Now(), 0
	for i := range 100 {
		if w := ask(a, "GET", Base+"/nothing", secret, ""); w.Code == 404 {
			passed++
		}
		if err := a.SetKeys(list(fmt.Sprint("a", i), 2)); err != nil {
			t.Fatal(err)
		}
	}
	if most := 2 + int(2*time.Since(began).Seconds()) + 1; passed < 2 || passed > most {
		t.Errorf("%d calls passed, want 2 to %d", passed, most)
	}
	if err := a.SetKeys(list("a", 3)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if w := ask(a, "GET", Base+"/nothing", secret, ""); w.Code != 404 {
			t.Errorf("%d with a new rate", w.Code)
		}
	}
}
