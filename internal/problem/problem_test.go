package problem

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"
)

// want reads an answer, and wants its body to be a problem with exactly these fields, and its headers those of every problem.
func want(t *testing.T, w *httptest.ResponseRecorder, status int, fields map[string]any) {
	t.Helper()
	if w.Code != status || w.Header().Get("Content-Type") != "application/problem+json" || w.Header().Get("Cache-Control") != "no-store" ||
		w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cross-Origin-Resource-Policy") != "same-origin" {
		t.Errorf("status %d, headers %v", w.Code, w.Header())
	}
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	fields["title"], fields["status"] = http.StatusText(status), float64(status)
	if code, ok := fields["code"].(string); ok {
		fields["type"] = "urn:chatgate:problem:" + code
	}
	if !reflect.DeepEqual(got, fields) {
		t.Errorf("answered %v, want %v", got, fields)
	}
}

func TestAProblemSaysWhichLimitAndWhenToComeBack(t *testing.T) {
	for name, c := range map[string]struct {
		problem    Problem
		fields     map[string]any
		retryAfter string
	}{
		"a status": {Problem{Status: 403}, map[string]any{}, ""},
		"all of it": {
			Problem{Status: 503, Code: "connect_rate", Detail: "too many", Limit: "connect-rate"}.After(1200 * time.Millisecond),
			map[string]any{"code": "connect_rate", "detail": "too many", "limit": "connect-rate", "retryAfterMs": 1200.0},
			"2",
		},
		"a moment":   {Problem{Status: 503}.After(time.Nanosecond), map[string]any{"retryAfterMs": 1.0}, "1"},
		"two, sharp": {Problem{Status: 503}.After(2 * time.Second), map[string]any{"retryAfterMs": 2000.0}, "2"},
		"no use":     {Problem{Status: 503}.After(0), map[string]any{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			c.problem.Write(w)
			want(t, w, c.problem.Status, c.fields)
			if got := w.Header().Get("Retry-After"); got != c.retryAfter {
				t.Errorf("Retry-After %q, want %q", got, c.retryAfter)
			}
		})
	}
}

func TestAMuxSaysWhatItLacksAsAProblem(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /here/{name}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Name", r.PathValue("name"))
	})
	ask := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		Mux(mux).ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w
	}
	if w := ask("GET", "/here/a"); w.Code != http.StatusOK || w.Header().Get("Name") != "a" {
		t.Errorf("what is there is answered %d, %v", w.Code, w.Header())
	}
	want(t, ask("GET", "/there"), http.StatusNotFound, map[string]any{})
	w := ask("POST", "/here/a")
	want(t, w, http.StatusMethodNotAllowed, map[string]any{})
	if got := w.Header().Get("Allow"); got != "GET, HEAD" {
		t.Errorf("allows %q", got)
	}
	if w := ask("GET", "/here//a"); w.Code/100 != 3 {
		t.Errorf("a path that is not clean is answered %d", w.Code)
	}
}
