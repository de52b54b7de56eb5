package hook

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"chatgate/internal/protocol"
)

// Question is what a backend is asked to decide.
type Question string

// The questions.
const (
	AskRegister Question = "register" // who is it, and may he come in
	AskJoin     Question = "join"     // may he join these rooms
	AskMessage  Question = "message"  // may he send this
)

// Questions are all of them, in the order of Stats.
var Questions = []Question{AskRegister, AskJoin, AskMessage}

// ErrUndecided says that the backend did not answer, and that nothing is allowed then.
var ErrUndecided = errors.New("hook: the backend does not answer")

// DeciderConfig is who decides.
type DeciderConfig struct {
	Asked  map[Question]Asked
	Secret string   // as WebhookConfig has it; signs what is asked
	Allow  []string // addresses and ranges that are reached although they aren't public
	// Timeout is for how long a connection waits for a decision.
	Timeout time.Duration
	// MaxInFlight is how many questions of a kind are asked at a time; what is more waits within Timeout.
	MaxInFlight int
	Log         *slog.Logger
}

// Asked is where one question is asked.
type Asked struct {
	URL string
	// AllowOnFailure says that what nobody decides is allowed, as if there were no backend.
	AllowOnFailure bool
}

// Validate says what is wrong with one question's place.
func (c *DeciderConfig) Validate(q Question) error {
	w := WebhookConfig{URL: c.Asked[q].URL, Secret: c.Secret, Allow: c.Allow}
	return w.validate()
}

// Inquiry is what the backend is told, docs/hooks.md.
type Inquiry struct {
	Question Question           `json:"question"`
	Gateway  protocol.GatewayID `json:"gateway"`
	Conn     protocol.ConnID    `json:"conn"`
	Ms       int64              `json:"ms"` // since 1970

	// User is who it is, as far as that is proven; a client that says so proves nothing.
	User   protocol.UserID   `json:"user,omitempty"`
	Device protocol.DeviceID `json:"device,omitempty"`
	Class  protocol.ClassID  `json:"class,omitempty"`
	Meta   json.RawMessage   `json:"meta,omitempty"` // of the connection; at register what the client names

	// At register.
	Claimed protocol.UserID   `json:"userId,omitempty"`
	Token   string            `json:"token,omitempty"` // where the gateway itself takes none
	Address string            `json:"address,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`

	Rooms []string `json:"rooms,omitempty"` // at join

	// Before a message.
	ID        string          `json:"id,omitempty"`
	To        string          `json:"to,omitempty"`
	Room      string          `json:"room,omitempty"`
	Content   json.RawMessage `json:"content,omitempty"`
	Ephemeral bool            `json:"ephemeral,omitempty"`
}

// Decision is what it answers; read has the names.
type Decision struct {
	Allow  *bool
	Denial // when it is false

	// At register all of it, else what is merged into it.
	Meta json.RawMessage

	// At register. Numbers are as in a token, and so are the lists; docs/security.md.
	User      *string
	Join      []string
	Rooms     json.RawMessage
	Watch     json.RawMessage
	Limits    json.RawMessage
	ExpiresAt int64 // ms since 1970; 0: not said

	Deny map[string]Denial // at join: rooms that are denied, where others are allowed

	Content json.RawMessage // before a message: what is sent instead

	// Assumed: nobody answered, and what nobody decides is allowed.
	Assumed bool
}

// Changes reports whether something else is sent than what came. null says nothing: so do backends write what they don't set.
func (d *Decision) Changes() bool { return d.Content != nil && string(d.Content) != "null" }

// Denial is why something is not allowed.
type Denial struct {
	Code         protocol.ErrorCode `json:"code"`
	Reason       string             `json:"reason"`
	RetryAfterMs int64              `json:"retryAfterMs"`
}

// deniable are the codes a backend may deny with. Those that say a client is broken are not for it to give.
var deniable = map[protocol.ErrorCode]bool{
	protocol.CodeForbidden: true, protocol.CodeUnauthorized: true, protocol.CodeConflict: true, protocol.CodeLimited: true,
	protocol.CodeUnavailable: true,
}

// maxReason bounds what a client is told, bytes.
const maxReason = 256

// ReplyError is the denial as the client is told it.
func (d Denial) ReplyError(id []byte) *protocol.ReplyError {
	e := &protocol.ReplyError{ID: string(id), Code: d.Code, RetryAfterMs: max(0, d.RetryAfterMs)}
	if !deniable[e.Code] {
		e.Code = protocol.CodeForbidden
	}
	reason := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, d.Reason)
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	if e.Message = reason; reason == "" {
		e.Message = "the backend does not allow it"
	}
	return e
}

// Decider asks a backend of the customer's. Its methods may be called from any
// goroutine, and on nil: then nothing is asked.
type Decider struct {
	asked map[Question]*asked // immutable
}

// asked is one question and how it fares.
type asked struct {
	// Immutable.
	Asked
	question Question
	key      []byte
	timeout  time.Duration
	client   *http.Client
	log      *slog.Logger

	// Any goroutine.
	slots      chan struct{}
	breaker    breaker
	counts     decisions
	complained atomic.Int64 // when an answer was last logged, ms since 1970
}

// NewDecider prepares to ask; nil when there is nothing to ask about.
func NewDecider(cfg DeciderConfig) (*Decider, error) {
	d := &Decider{asked: make(map[Question]*asked)}
	for q, to := range cfg.Asked {
		w := WebhookConfig{URL: to.URL, Secret: cfg.Secret, Allow: cfg.Allow}
		key, err := w.key()
		if err != nil {
			return nil, err
		}
		allowed, err := parseAllowed(cfg.Allow)
		if err != nil {
			return nil, err
		}
		d.asked[q] = &asked{
			Asked: to, question: q, key: key, timeout: cfg.Timeout, log: cfg.Log.With("hook", string(q)),
			client: newClient(cfg.Timeout, allowed, cfg.MaxInFlight), slots: make(chan struct{}, cfg.MaxInFlight),
		}
	}
	if len(d.asked) == 0 {
		return nil, nil
	}
	return d, nil
}

// Asks reports whether there is somebody to ask.
func (d *Decider) Asks(q Question) bool { return d != nil && d.asked[q] != nil }

// Ask waits for a decision, as long as the configuration says and no longer. check finds what is wrong with an answer that is well
// formed; it may be nil. The error is ErrUndecided, where a failure forbids.
func (d *Decider) Ask(about *Inquiry, check func(*Decision) error) (*Decision, error) {
	a := d.asked[about.Question]
	began := time.Now()
	about.Ms = began.UnixMilli()
	decision, outcome := a.decide(about, check)
	a.counts.note(outcome, time.Since(began))
	switch {
	case decision != nil:
		return decision, nil
	case a.AllowOnFailure:
		yes := true
		return &Decision{Allow: &yes, Assumed: true}, nil
	}
	return nil, ErrUndecided
}

// decide returns nil when there is no decision to be had.
func (a *asked) decide(about *Inquiry, check func(*Decision) error) (*Decision, outcome) {
	if !a.breaker.enter(time.Now()) {
		return nil, skipped
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
	defer cancel()
	answers, waited := a.breaker.answersSoFar(), false
	select {
	case a.slots <- struct{}{}:
	default:
		waited = true
		select {
		case a.slots <- struct{}{}:
		case <-ctx.Done():
			a.breaker.given() // those that have the places say how the backend does
			return nil, crowded
		}
	}
	decision, err := a.ask(ctx, about, check)
	<-a.slots
	if err != nil && waited && ctx.Err() != nil && a.breaker.answersSoFar() != answers {
		a.breaker.given() // others were answered in its time
		return nil, crowded
	}
	if nonsense, ok := errors.AsType[wrongAnswer](err); ok {
		// It is there, so the others go on asking: else whoever finds what it answers wrongly to could silence it for all.
		a.breaker.answered()
		if now, last := time.Now().UnixMilli(), a.complained.Load(); now-last > 1000 && a.complained.CompareAndSwap(last, now) {
			a.log.Warn("the backend's answer is no decision", "err", nonsense)
		}
		return nil, failed
	}
	if err != nil {
		if n := a.breaker.failed(time.Now()); n == 1 || n == breakAfter {
			a.log.Warn("the backend does not decide", "failures", n, "err", err)
		}
		return nil, failed
	}
	if n := a.breaker.answered(); n >= breakAfter {
		a.log.Info("the backend decides again", "failures", n)
	}
	if *decision.Allow {
		return decision, allowed
	}
	return decision, denied
}

func (a *asked) ask(ctx context.Context, about *Inquiry, check func(*Decision) error) (*Decision, error) {
	body, err := json.Marshal(about)
	if err != nil {
		return nil, err
	}
	response, err := post(ctx, a.client, a.URL, a.key, "ask_"+rand.Text(), body)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxDecision+1))
	switch {
	case isDown(response.StatusCode):
		return nil, fmt.Errorf("status %d", response.StatusCode)
	case response.StatusCode/100 != 2:
		return nil, wrongAnswer(fmt.Sprintf("status %d", response.StatusCode))
	case err != nil:
		return nil, err
	case len(answer) > maxDecision:
		return nil, wrongAnswer("more than 2 MB")
	}
	var d Decision
	if fault := d.read(answer); fault != "" {
		return nil, wrongAnswer(fault)
	}
	if d.Allow == nil {
		return nil, wrongAnswer("allow: missing")
	}
	if *d.Allow && check != nil {
		if err := check(&d); err != nil {
			return nil, wrongAnswer(err.Error())
		}
	}
	return &d, nil
}

// isDown reports whether a status is that of a backend that takes no questions now, or of a proxy that doesn't reach it. Any other may be about
// this one question: a filter that dislikes a word, a program that stumbles over it, one user who asks too often (429).
func isDown(status int) bool {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// read takes an answer as strictly as a client's frame: names in exact case and each once, so that no two parsers read two decisions in it,
// and no replacement for a broken character, which would make one user of two. It returns what is wrong, or "".
func (d *Decision) read(answer []byte) (fault string) {
	into := d.names()
	read := make(map[string]bool)
	// A content may be as deep as a client's and what a backend puts around it. It is the client's doing that it is too deep then, and for who asked to
	// refuse: as no answer it would be sent as it came, where nobody has to answer.
	return protocol.ScanObject(answer, 2*protocol.MaxDepth, func(name string, value []byte) string {
		to := into[name]
		switch {
		case name != "content" && protocol.Deep(value):
			return name + ": too deep"
		case to == nil:
			return ""
		case read[name]:
			return name + ": there twice"
		case json.Unmarshal(value, to) != nil:
			return name + ": of the wrong kind"
		}
		read[name] = true
		return ""
	})
}

// names are the fields as an answer has them.
func (d *Decision) names() map[string]any {
	return map[string]any{
		"allow": &d.Allow, "code": &d.Code, "reason": &d.Reason, "retryAfterMs": &d.RetryAfterMs, "userId": &d.User, "meta": &d.Meta, "join": &d.Join,
		"rooms": &d.Rooms, "watch": &d.Watch, "limits": &d.Limits, "expiresAt": &d.ExpiresAt, "deny": &d.Deny, "content": &d.Content,
	}
}

// wrongAnswer says what is wrong with an answer that came in time.
type wrongAnswer string

func (e wrongAnswer) Error() string { return string(e) }

// maxDecision bounds an answer: a changed message, and room to spare.
const maxDecision = 2 << 20

// outcome is how a question ended.
type outcome int

const (
	allowed outcome = iota
	denied
	failed  // no answer in time, or none that is one
	skipped // not asked: the last ones all failed
	crowded // too many others were asked, and nothing was left of its time
	numOutcomes
)

// Outcomes are the labels of DecisionStats.Outcomes.
var Outcomes = [numOutcomes]string{"allowed", "denied", "failed", "skipped", "crowded"}

// DecisionBuckets are the upper bounds of DecisionStats.Buckets, seconds.
var DecisionBuckets = [...]float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// decisions counts them.
type decisions struct {
	outcomes [numOutcomes]atomic.Uint64
	buckets  [len(DecisionBuckets)]atomic.Uint64
	sum      atomic.Int64 // ns
}

func (c *decisions) note(o outcome, took time.Duration) {
	c.outcomes[o].Add(1)
	c.sum.Add(int64(took))
	for i, most := range DecisionBuckets {
		if took.Seconds() <= most {
			c.buckets[i].Add(1)
			return
		}
	}
}

// DecisionStats is one question as this gateway sees it. Counters only grow.
type DecisionStats struct {
	Question Question          `json:"question"`
	Open     bool              `json:"open"` // nobody is asked at the moment: the last ones all failed
	Waiting  int               `json:"waiting"`
	Outcomes map[string]uint64 `json:"outcomes"`
	Seconds  float64           `json:"seconds"` // waited in all

	Buckets map[float64]uint64 `json:"-"` // by upper bound: as many took no longer
}

// Stats returns the figures of each question that is asked.
func (d *Decider) Stats() []DecisionStats {
	all := []DecisionStats{}
	if d == nil {
		return all
	}
	for _, q := range Questions {
		a := d.asked[q]
		if a == nil {
			continue
		}
		s := DecisionStats{
			Question: q, Open: a.breaker.isOpen(), Waiting: len(a.slots), Outcomes: make(map[string]uint64),
			Seconds: time.Duration(a.counts.sum.Load()).Seconds(), Buckets: make(map[float64]uint64),
		}
		for o, name := range Outcomes {
			s.Outcomes[name] = a.counts.outcomes[o].Load()
		}
		var n uint64
		for i, most := range DecisionBuckets {
			n += a.counts.buckets[i].Load()
			s.Buckets[most] = n
		}
		all = append(all, s)
	}
	return all
}

// PlainText reports whether a question leaves this machine unencrypted, by http.
func (a Asked) PlainText() bool {
	s := SinkConfig{Webhook: &WebhookConfig{URL: a.URL}}
	return s.PlainText()
}
