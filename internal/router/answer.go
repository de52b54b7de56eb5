package router

import (
	"context"
	"runtime/debug"
	"time"

	"chatgate/internal/protocol"
)

// questions are what other gateways ask.
type questions struct {
	queue[queued]
}

func newQuestions(r *Router) *questions {
	x := &questions{queue[queued]{router: r, length: questionsWait, workers: questionWorkers}}
	x.work = x.do
	return x
}

// queued is a question that waits for a worker.
type queued struct {
	protocol.Question
	at time.Time // when it came
}

const (
	// questionWorkers is how many questions are worked on at a time. Most of them wait,
	// for a connection whose client keeps it busy: it may not keep others from an answer.
	questionWorkers = 64
	// answerMargin is how long before the asker stops waiting an answer is given.
	answerMargin = 250 * time.Millisecond
	// questionsWait is how many may wait. What comes then is dropped: its asker is
	// about to name this gateway as silent, which it is.
	questionsWait = 256
)

// Asked is a question that this gateway was asked. Whoever has it owes an Answer,
// and may give Parts before: from one goroutine at a time.
type Asked struct {
	protocol.Question

	router *Router
	number uint64
}

// take keeps a question for the workers; false: it was dropped.
func (x *questions) take(q protocol.Question) bool {
	if q.Verb == protocol.VerbCallOff {
		x.router.traces.callOff(traceID{q.Asker, q.ID})
		return true
	}
	return x.queue.take(queued{q, time.Now()})
}

// do has a question answered. One whose asker waits no more is not begun: he may
// have asked again.
func (x *questions) do(q queued) {
	until := q.at.Add(time.Duration(q.Within) * time.Millisecond)
	if time.Now().After(until) {
		return
	}
	a := &Asked{Question: q.Question, router: x.router}
	// The answer has a way to go: what is not done a moment before is said to be late, and
	// the whole gateway is not taken for silent.
	ctx, cancel := context.WithDeadline(x.router.ctx, until.Add(-min(until.Sub(q.at)/4, answerMargin)))
	defer cancel()
	// A panic ends the question and not the gateway, as with a call over HTTP: what is asked of all gateways would end all of them.
	// Its asker names this one as silent.
	defer func() {
		if r := recover(); r != nil {
			x.router.cfg.Log.Error("a question panicked", "verb", string(q.Verb), "from", string(q.Asker), "err", r, "stack", string(debug.Stack()))
		}
	}()
	x.router.counts.asked.Add(1)
	if q.Verb == protocol.VerbTrace {
		x.router.answerTrace(a)
		return
	}
	if x.router.cfg.OnQuestion == nil || !x.router.cfg.OnQuestion(ctx, a) {
		_ = a.Answer(ctx, protocol.AnswerNotUnderstood, nil)
	}
}

// Answer answers, as the last word.
func (a *Asked) Answer(ctx context.Context, status protocol.AnswerStatus, body []byte) error {
	return a.reply(ctx, status, body, false)
}

// Part gives a part of the answer; others follow.
func (a *Asked) Part(ctx context.Context, body []byte) error {
	return a.reply(ctx, protocol.AnswerDone, body, true)
}

func (a *Asked) reply(ctx context.Context, status protocol.AnswerStatus, body []byte, more bool) error {
	a.number++
	answer := protocol.Answer{
		ID: a.ID, Gateway: a.router.cfg.Gateway, Number: a.number, More: more, Status: status, Body: string(body),
	}
	if a.Asker == a.router.cfg.Gateway {
		a.router.asks.hear(answer)
		return nil
	}
	// At the last moment is not too late to say it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.router.cfg.Attempt)
	defer cancel()
	return a.router.RouteToGateway(ctx, a.Asker, protocol.AppendAnswer(nil, &answer))
}
