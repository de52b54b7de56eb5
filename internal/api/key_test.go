//go:build !secondpass

package api

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
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
