package api

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"time"

	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// TraceRequest says what is to be traced.
type TraceRequest struct {
	User    protocol.UserID    `query:"user" doc:"Whose messages and connections; or id." example:"alice"`
	ID      protocol.MessageID `query:"id" doc:"Of one message; or user."`
	Seconds int                `query:"seconds" min:"1" max:"60" default:"10" doc:"For how long."`
}

// TraceAnswer is told in lines as things happen.
type TraceAnswer struct {
	api     *API
	request *TraceRequest
}

// TraceLine is one line of a trace.
type TraceLine struct {
	At          int64              `json:"at" doc:"When, ms since 1970, by the clock of the gateway that tells." example:"1795305600000"`
	Gateway     protocol.GatewayID `json:"gateway,omitempty" doc:"Which gateway tells it; absent in the line end." example:"a-k3v9x2mq"`
	Event       string             `json:"event" doc:"tracing: the gateway tells what happens from now on. taken: a message came to the gateway that sends it; answered: its sender was told the outcome. arrived: it came to a gateway that holds its receiver and went no further for now, for the reason in outcome; delivered: it was given to so many connections there. registered, closed: a connection of the user, closed for the cause in outcome. joined, left: a room. lost: count lines were not told. end: the last line." example:"delivered"`
	Outcome     string             `json:"outcome,omitempty" doc:"What became of it. Of answered: routed, stored, dropped, or the code of an error. Of arrived: waiting (for what comes before it), hole (something before it is missing, and is read), duplicate, unheld (nobody is here any more)." example:"routed"`
	ID          string             `json:"id,omitempty" doc:"Of the message." example:"m-17"`
	From        protocol.UserID    `json:"from,omitempty" doc:"Its sender." example:"alice"`
	To          protocol.UserID    `json:"to,omitempty" doc:"Its receiver." example:"bob"`
	Room        protocol.RoomID    `json:"room,omitempty" doc:"Or the room it is for, or that was joined or left."`
	Epoch       string             `json:"epoch,omitempty" doc:"With offset, where it stands in the receiver's log."`
	Offset      uint64             `json:"offset,omitempty" doc:"Counts from 1 inside the epoch."`
	Connections int                `json:"connections,omitempty" doc:"How many connections it was given to; of answered, how many the gateways hold that it was handed to." example:"2"`
	User        protocol.UserID    `json:"user,omitempty" doc:"Of a connection: whose it is."`
	Connection  protocol.ConnID    `json:"connection,omitempty" doc:"Its id."`
	Count       uint64             `json:"count,omitempty" doc:"Of lost: how many lines, at least."`

	Missing []protocol.GatewayID                        `json:"missing,omitempty" doc:"Of end: gateways that did not tell, or not to the end."`
	Reasons map[protocol.GatewayID]router.MissingReason `json:"reasons,omitempty" doc:"Of end: why not, as with other calls; refused: it carries out as many traces as it does at a time."`
}

const (
	// tracesAtOnce bounds those that are told by this gateway.
	tracesAtOnce = 4
	// traceMargin is for how long the last words of the others are waited for.
	traceMargin = 1500 * time.Millisecond
)

var traceMessages = on(operation{
	Name: "trace", Method: "GET", Path: "/trace", Scope: ScopeTrace,
	Summary: "Trace a user or a message",
	Description: "For some seconds, every gateway tells what it does with the messages and connections of a user, or with one message: ids and outcomes, never contents. " +
		"The answer is one JSON object a line, as things happen, those of one gateway in their order; between gateways go by at, as far as their clocks agree. " +
		"It has begun everywhere when each gateway has said tracing, and the last line is end, which names the gateways that told nothing or not all. " +
		"What a connection reads from a log when it comes is not told. Over HTTP only.",
	Codes: []Code{CodeUnavailable},
}, (*API).trace)

func (a *API) trace(ctx context.Context, q *TraceRequest) (*TraceAnswer, error) {
	if (q.User == "") == (q.ID == "") {
		return nil, bad("user", "one of user and id must be given")
	}
	if !a.cfg.Registry.AnswersOfGateways() {
		return nil, unavailable()
	}
	if _, err := a.cfg.Registry.Living(ctx); err != nil {
		return nil, err
	}
	return &TraceAnswer{api: a, request: q}, nil
}

// lined is an answer that is told in lines.
type lined interface {
	line() reflect.Type
	tell(w http.ResponseWriter, r *http.Request) (status int)
}

func (t *TraceAnswer) line() reflect.Type { return reflect.TypeFor[TraceLine]() }

// tell has the gateways asked, and tells their answers until the time is over or nobody listens.
func (t *TraceAnswer) tell(w http.ResponseWriter, r *http.Request) (status int) {
	a, q := t.api, t.request
	if a.tracing.Add(1) > tracesAtOnce {
		a.tracing.Add(-1)
		p := refuse(CodeOverloaded, "too many traces are told").after(awhile)
		a.write(w, p.Status, p)
		return p.Status
	}
	defer a.tracing.Add(-1)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	say := func(lines ...TraceLine) {
		_ = control.SetWriteDeadline(time.Now().Add(a.cfg.AnswerTime))
		for i := range lines {
			if e.Encode(&lines[i]) != nil {
				cancel() // nobody listens
				return
			}
		}
		_ = control.Flush()
	}
	d := time.Duration(q.Seconds) * time.Second
	body, err := json.Marshal(&protocol.TraceQuestion{User: q.User, ID: q.ID, Ms: d.Milliseconds()})
	if err != nil {
		cancel()
	}
	began := make(map[protocol.GatewayID]bool)
	part := func(x protocol.Answer, lost uint64) { say(linesOf(&x, lost, began)...) }
	replies, err := a.cfg.Router.Ask(ctx, router.Question{Verb: protocol.VerbTrace, Body: body, Within: d + traceMargin, Part: part})
	end := TraceLine{At: time.Now().UnixMilli(), Event: "end"}
	silent := unheard(replies.Missing)
	for i := range replies.Answers {
		x := &replies.Answers[i]
		switch x.Status {
		case protocol.AnswerDone:
			part(*x, 0)
		case protocol.AnswerRefused:
			silent.miss(x.Gateway, "refused")
		default:
			silent.miss(x.Gateway, missingVersion)
		}
	}
	if end.Missing, end.Reasons = silent.Missing, silent.Reasons; err == nil {
		say(end)
	}
	_ = control.SetWriteDeadline(time.Time{})
	return http.StatusOK
}

// linesOf are the lines of a part of an answer. Before it, so many parts were lost.
func linesOf(x *protocol.Answer, lost uint64, began map[protocol.GatewayID]bool) (lines []TraceLine) {
	at := time.Now().UnixMilli()
	if !began[x.Gateway] && x.Status == protocol.AnswerDone {
		began[x.Gateway] = true
		lines = append(lines, TraceLine{At: at, Gateway: x.Gateway, Event: "tracing"})
	}
	var p protocol.TracePart
	if x.Body != "" && json.Unmarshal([]byte(x.Body), &p) != nil {
		lost++
	}
	if lost += p.Lost; lost > 0 {
		lines = append(lines, TraceLine{At: at, Gateway: x.Gateway, Event: "lost", Count: lost})
	}
	for _, e := range p.Events {
		lines = append(lines, TraceLine{
			At: e.At, Gateway: x.Gateway, Event: string(e.Event), Outcome: e.Outcome, ID: e.ID, From: e.From, To: e.To, Room: e.Room,
			Epoch: e.Epoch, Offset: e.Offset, Connections: e.Connections, User: e.User, Connection: e.Conn,
		})
	}
	return lines
}
