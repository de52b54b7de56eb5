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
	"sync/atomic"
	"time"

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
	return c.webhook(q).validate()
}

func (c *DeciderConfig) webhook(q Question) *WebhookConfig {
	return &WebhookConfig{URL: c.Asked[q].URL, Secret: c.Secret, Allow: c.Allow}
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

// Decider asks a backend of the customer's. Its methods may be called from any
// goroutine, and on nil: then nothing is asked.
type Decider struct {
	asked map[Question]*asked // immutable
}

// asked is one question and how it fares.
type asked struct {
	// Immutable.
	to             *endpoint
	allowOnFailure bool
	timeout        time.Duration
	log            *slog.Logger

	// Any goroutine.
	slots      chan struct{}
	breaker    breaker
	counts     decisions
	complained atomic.Int64 // when an answer was last logged, ms since 1970
}

// NewDecider prepares to ask; nil when there is nothing to ask about.
func NewDecider(cfg DeciderConfig) (*Decider, error) {
	d := &Decider{asked: make(map[Question]*asked)}
	for q, where := range cfg.Asked {
		to, err := newEndpoint(cfg.webhook(q), cfg.Timeout, cfg.MaxInFlight)
		if err != nil {
			return nil, err
		}
		d.asked[q] = &asked{
			to: to, allowOnFailure: where.AllowOnFailure, timeout: cfg.Timeout, log: cfg.Log.With("hook", string(q)), slots: make(chan struct{}, cfg.MaxInFlight),
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
	case a.allowOnFailure:
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
	response, err := a.to.post(ctx, "ask_"+rand.Text(), body)
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

// wrongAnswer says what is wrong with an answer that came in time.
type wrongAnswer string

func (e wrongAnswer) Error() string { return string(e) }

// maxDecision bounds an answer: a changed message, and room to spare.
const maxDecision = 2 << 20
