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
	"net/http"
	"strconv"
	"time"
)

// contentType is the media type of RFC 9457.
const contentType = "application/problem+json"

// Problem is one refusal, with the fields every answer may have; an answer that has more to say embeds it. The tags besides json are
// for the OpenAPI document: the server API always has what they call required.
type Problem struct {
	Type         string `json:"type,omitempty" required:"" doc:"urn:chatgate:problem: and the code." example:"urn:chatgate:problem:forbidden"`
	Title        string `json:"title" doc:"What kind of problem it is, for people." example:"Forbidden"`
	Status       int    `json:"status" doc:"The HTTP status." example:"403"`
	Code         Code   `json:"code,omitempty" required:"" doc:"The same as type, for programs: a word that stays." example:"forbidden"`
	Detail       string `json:"detail,omitempty" required:"" doc:"What is wrong with this request, for people. Never anything that was sent." example:"the key lacks the scope send"`
	Limit        string `json:"limit,omitempty" doc:"The name of the limit that was met, as the errors of the WebSocket have it."`
	RetryAfterMs int64  `json:"retryAfterMs,omitempty" doc:"When to try again, where that is known."`
}

// Code says for programs what a problem is.
type Code string

// Type is the code as the URI of RFC 9457.
func (c Code) Type() string { return "urn:chatgate:problem:" + string(c) }

// After returns the problem with the time to come back.
func (p Problem) After(d time.Duration) Problem {
	p.RetryAfterMs = Milliseconds(d)
	return p
}

// Milliseconds rounds up: who comes back too early is refused again.
func Milliseconds(d time.Duration) int64 { return int64((d + time.Millisecond - 1) / time.Millisecond) }

// Guard sets the headers of every answer of ours, refusal or not: nobody keeps it, and no page of another origin makes something of it.
func Guard(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// Head completes a problem that is about to be written, and sets the headers that go with it.
func (p *Problem) Head(h http.Header) {
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	if p.Code != "" {
		p.Type = p.Code.Type()
	}
	if p.RetryAfterMs > 0 {
		// Retry-After counts whole seconds (RFC 9110 section 10.2.3).
		h.Set("Retry-After", strconv.FormatInt((p.RetryAfterMs+999)/1000, 10))
	}
	h.Set("Content-Type", contentType)
	Guard(h)
}

// Write answers a request with the problem. Headers that were set before are sent with it: Allow, say, or Connection.
func (p Problem) Write(w http.ResponseWriter) {
	p.Head(w.Header())
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // The client may be gone; nothing is left to do for it.
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
