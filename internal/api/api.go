package api

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/history"
	"chatgate/internal/presence"
	"chatgate/internal/problem"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// Base is where the operations are on the internal listener.
const Base = "/api/v1"

// Config is what an API needs to know. Every duration must be positive.
type Config struct {
	// Gateway is this gateway: configured name and random boot id.
	Gateway protocol.GatewayID
	Log     *slog.Logger

	// Keys may call. Without any, everybody may while Open, and nobody else ever. Open may
	// only be true where nobody beyond this machine reaches the API, and where requests
	// for other hosts than this machine are kept from it.
	Keys []Key
	Open bool
	// From is who messages are from that name no sender.
	From protocol.UserID
	// MessageEvents says that stored messages have events, which tell where they came in.
	MessageEvents bool
	// MaxFrameBytes is what clients are told that a frame has at most.
	MaxFrameBytes int

	// Deadline bounds a call, from the end of its body on.
	Deadline time.Duration
	// BodyTime bounds how long a body may take, AnswerTime how long the answer.
	BodyTime, AnswerTime time.Duration
	// AskWait is how long another gateway may take to answer.
	AskWait time.Duration
	// MostCalls may be under way at a time.
	MostCalls int64

	Registry *presence.Registry
	History  *history.Reader
	Router   *router.Router
	// Revocations is nil where tokens are not taken.
	Revocations *auth.Revocations
	// Snapshot returns this gateway's /stats as JSON.
	Snapshot func() []byte
}

// DefaultConfig returns the figures of docs/api.md, without identity and keys.
func DefaultConfig() Config {
	return Config{
		From: "system", MaxFrameBytes: protocol.MaxFrameBytes,
		Deadline: 5 * time.Second, BodyTime: 10 * time.Second, AnswerTime: 10 * time.Second, AskWait: time.Second, MostCalls: 512,
	}
}

// API serves the operations. All methods may be called from any goroutine.
type API struct {
	// Immutable after New.
	cfg Config
	log *slog.Logger

	// Any goroutine.
	keys      atomic.Pointer[[]*key]
	underWay  atomic.Int64
	answering atomic.Int64 // calls that have begun to do something and are not answered; traces are not among them
	ending    atomic.Bool  // no call is begun any more
	tracing   atomic.Int64 // traces that are told
	wrongKeys atomic.Uint64
	calls     calls
	made      atomic.Uint64 // message ids
}

// New returns an API. The error is what is wrong with a key.
func New(cfg Config) (*API, error) {
	a := &API{cfg: cfg, log: cfg.Log}
	if err := a.SetKeys(cfg.Keys); err != nil {
		return nil, err
	}
	return a, nil
}

// ServeHTTP answers one call. It must be given the path as it came: a mux that cleans it would make another of a user called "..".
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	problem.Guard(w.Header())
	if r.Body != http.NoBody {
		// The listener itself has no such deadline, because profiles take long. Without one a body that never comes would hold the connection for ever,
		// of whoever was refused before it was read, too.
		_ = http.NewResponseController(w).SetReadDeadline(began.Add(a.cfg.BodyTime))
	}
	c := call{api: a, operation: noOperation, by: "none"}
	defer c.over()
	status, answer := c.serve(w, r)
	if r.Body != http.NoBody {
		w.Header().Set("Connection", "close") // or net/http would wait for the rest of it before it answers
	}
	x, inLines := answer.(lined)
	if inLines {
		c.over()
		status = x.tell(w, r)
	}
	a.calls.count(c.operation, status)
	a.log.Debug("api call", "op", c.operation, "status", status, "key", c.by, "dur", time.Since(began).Round(time.Microsecond))
	if !inLines {
		a.write(w, status, answer)
	}
}

// Finish has no further call begin, and waits until those under way are answered, or ctx ends: who makes one while gateways are restarted
// should not have to guess what became of it. Traces are not waited for.
func (a *API) Finish(ctx context.Context) {
	a.ending.Store(true)
	for a.answering.Load() > 0 && ctx.Err() == nil {
		pause(ctx, finishLook)
	}
}

// finishLook is how often it is looked whether all is done.
const finishLook = 10 * time.Millisecond

// noOperation is the label of calls that never came to one.
const noOperation = "none"

// call is one call, as far as it has come.
type call struct {
	api       *API
	operation string
	by        string
	begun     bool // it is counted in answering
}

// serve returns the status and the answer: a *Problem, or what the operation returned.
func (c *call) serve(w http.ResponseWriter, r *http.Request) (int, any) {
	answer, p := c.run(w, r)
	if p != nil {
		return refused(p)
	}
	return statusOf(answer), answer
}

func (c *call) run(w http.ResponseWriter, r *http.Request) (any, *Problem) {
	a := c.api
	if a.underWay.Add(1) > a.cfg.MostCalls {
		a.underWay.Add(-1)
		return nil, refuse(CodeOverloaded, "too many calls are under way").after(awhile)
	}
	defer a.underWay.Add(-1)
	by, p := a.authenticate(r)
	if p != nil {
		return nil, p
	}
	c.by = by.name
	if by.limiter != nil {
		v := by.limiter.Reserve()
		if wait := v.Delay(); wait > 0 {
			v.Cancel()
			return nil, refuse(CodeLimited, "the key's rate is used up").after(wait + time.Millisecond)
		}
	}
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), Base+"/")
	if !ok {
		return nil, refuse(CodeNotFound, "no such path: calls are below "+Base)
	}
	if path == documentPath {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return nil, notAllowed("GET, HEAD")
		}
		c.operation = "getDocument"
		return json.RawMessage(Document()), nil
	}
	o, values, allow := find(r.Method, strings.Split(path, "/"))
	switch {
	case allow != "":
		return nil, notAllowed(allow)
	case o == nil:
		return nil, refuse(CodeNotFound, "no such path")
	}
	c.operation = o.Name
	if !by.may(o.Scope) {
		p := refuse(CodeForbidden, "the key lacks the scope "+string(o.Scope))
		p.scope = o.Scope
		return nil, p
	}
	request, p := a.read(o, w, r, values, by)
	if p != nil {
		return nil, p
	}
	if !c.begin() {
		w.Header().Set("Connection", "close")
		return nil, refuse(CodeOverloaded, "the gateway is about to end: ask another one").after(awhile)
	}
	return a.do(r.Context(), o, request)
}

// begin counts the call among those that Finish waits for; false: the gateway is about to end.
func (c *call) begin() bool {
	c.api.answering.Add(1) // before it is looked
	c.begun = true
	return !c.api.ending.Load()
}

// over may be called twice.
func (c *call) over() {
	if c.begun {
		c.begun = false
		c.api.answering.Add(-1)
	}
}

// command makes a call that comes from the stream of commands: the operation's name, and one JSON object with all that HTTP has in path,
// query and body. before sees the operation and its request first, and may refuse. It returns the HTTP status and the answer, a *Problem
// or what the operation has.
func (a *API) command(ctx context.Context, name string, input []byte, before func(*operation, any) *Problem) (status int, answer any) {
	at := slices.IndexFunc(operations, func(o *operation) bool { return o.Name == name && o.lines == nil })
	if at < 0 {
		return refused(refuse(CodeNotFound, "no such operation"))
	}
	o := operations[at]
	request := reflect.New(o.request.typ)
	p := o.request.readObject(request.Elem(), inAny, "", input)
	if p == nil {
		p = before(o, request.Interface())
	}
	if p == nil {
		o.request.setCaller(request.Elem(), commandsCaller)
		answer, p = a.do(ctx, o, request.Interface())
	}
	if p != nil {
		status, answer = refused(p)
	} else {
		status = statusOf(answer)
	}
	a.calls.count(name, status)
	return status, answer
}

// statusOf is the HTTP status of an operation's answer.
func statusOf(answer any) int {
	if x, ok := answer.(partial); ok {
		return x.httpStatus()
	}
	return http.StatusOK
}

func refused(p *Problem) (int, any) { return p.Status, p }

// do runs an operation within the deadline.
func (a *API) do(ctx context.Context, o *operation, request any) (any, *Problem) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Deadline)
	defer cancel()
	answer, err := o.serve(a, ctx, request)
	if err == nil {
		return answer, nil
	}
	p, known := problemOf(err)
	if !known {
		a.log.Error("api call failed", "op", o.Name, "err", err)
	}
	return nil, p
}

// answerMargin of the deadline is left for the answer.
const answerMargin = 500 * time.Millisecond

// remaining is how long an operation may wait for what its answer is to say.
func remaining(ctx context.Context) time.Duration {
	end, _ := ctx.Deadline() // do has set one
	return time.Until(end) - answerMargin
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func notAllowed(allow string) *Problem {
	p := refuse(CodeMethodNotAllowed, "the path takes "+allow)
	p.allow = allow
	return p
}

// write sends the answer, in whole and in time.
func (a *API) write(w http.ResponseWriter, status int, answer any) {
	h := w.Header()
	var body bytes.Buffer
	if p, ok := answer.(*Problem); ok {
		p.head(h)
	} else {
		h.Set("Content-Type", "application/json")
	}
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // '<' in a name stays one
	if err := e.Encode(answer); err != nil {
		a.log.Error("api answer not encoded", "err", err)
		status = http.StatusInternalServerError
		body.Reset()
	}
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	// The deadline would stay with the connection, whose next request may be for a profile.
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(a.cfg.AnswerTime))
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the caller may be gone
	_ = control.Flush()
	_ = control.SetWriteDeadline(time.Time{})
}
