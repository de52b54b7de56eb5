// Package problem is how a gateway says no over HTTP: application/problem+json (RFC 9457), in one form on every listener.
//
// What it owns: that form, the headers that go with it, and what a mux says for a path or a method it doesn't have.
//
// What it leaves to others: when to refuse, with which status, and why. What net/http refuses before a handler runs (a header that is
// too large, a request that is none) it answers in its own plain text.
//
// Goroutines: none. Locks: none.
package problem

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"
)

// ContentType is the media type of RFC 9457.
const ContentType = "application/problem+json"

// Problem is one refusal. Its title is the text of its status, as of every problem without a type of its own.
type Problem struct {
	Status int
	// Reason is for programs: a word that stays. May be empty.
	Reason string
	// Detail is for people. Never anything the client sent. May be empty.
	Detail string
	// Limit names the limit that was met, as the errors of the WebSocket do. May be empty.
	Limit string
	// RetryAfter is when to come back; 0: trying again won't help.
	RetryAfter time.Duration
}

// Write answers a request with the problem. Headers that were set before are sent with it: Allow, say, or Connection.
func (p Problem) Write(w http.ResponseWriter) {
	body := struct {
		Title      string `json:"title"`
		Status     int    `json:"status"`
		Reason     string `json:"reason,omitempty"`
		Detail     string `json:"detail,omitempty"`
		Limit      string `json:"limit,omitempty"`
		RetryAfter int64  `json:"retryAfterMs,omitempty"`
	}{Title: http.StatusText(p.Status), Status: p.Status, Reason: p.Reason, Detail: p.Detail, Limit: p.Limit}
	header := w.Header()
	if p.RetryAfter > 0 {
		// Retry-After counts whole seconds (RFC 9110 section 10.2.3); rounding down would invite a second refusal.
		seconds := max(1, int64(math.Ceil(p.RetryAfter.Seconds())))
		header.Set("Retry-After", strconv.FormatInt(seconds, 10))
		body.RetryAfter = seconds * 1000
	}
	header.Set("Content-Type", ContentType)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(body) // The client may be gone; nothing is left to do for it.
}

// Mux serves a mux whose own refusals, 404 and 405, are problems too.
func Mux(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r) // and not h: it sets what the pattern matched
			return
		}
		refused := refusal{header: w.Header(), status: http.StatusNotFound}
		h.ServeHTTP(&refused, r) // names the methods there are in Allow
		Problem{Status: refused.status}.Write(w)
	})
}

// refusal takes the headers and the status of an answer, and throws its text away.
type refusal struct {
	header http.Header
	status int
}

func (r *refusal) Header() http.Header         { return r.header }
func (r *refusal) WriteHeader(status int)      { r.status = status }
func (r *refusal) Write(b []byte) (int, error) { return len(b), nil }
