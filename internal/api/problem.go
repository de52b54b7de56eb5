package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/history"
	"chatgate/internal/presence"
	"chatgate/internal/problem"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// Code says why a call was refused, or what became of one of its parts. Those that frames have mean the same here.
type Code = problem.Code

// The codes. What each means, and its HTTP status, is in Codes.
const (
	CodeBadRequest       Code = "bad_request"
	CodeUnauthorized     Code = "unauthorized"
	CodeForbidden        Code = "forbidden"
	CodeDisabled         Code = "disabled"
	CodeNotFound         Code = "not_found"
	CodeMethodNotAllowed Code = "method_not_allowed"
	CodeTimeout          Code = "timeout"
	CodeConflict         Code = "conflict"
	CodeTooLarge         Code = "too_large"
	CodeUnsupportedMedia Code = "unsupported_media_type"
	CodeLimited          Code = "limited"
	CodeInternal         Code = "internal"
	CodeOverloaded       Code = "overloaded"
	CodeUnavailable      Code = "unavailable"
	CodeUnknown          Code = "unknown"
)

// CodeInfo is one row of the table of codes.
type CodeInfo struct {
	Code    Code
	Status  int
	Title   string
	Retry   bool // the same call, made again later, may succeed
	Meaning string
}

// Codes is the table of problems, by their HTTP status: the OpenAPI document and docs/api.md are made from it.
var Codes = []CodeInfo{
	{CodeBadRequest, 400, "Bad request", false, "The request is not what this page describes; `detail` names the field."},
	{CodeUnauthorized, 401, "Unauthorized", false, "The key is missing or wrong."},
	{CodeForbidden, 403, "Forbidden", false, "The key lacks the scope that `detail` names; or a browser's page asked where no key is needed."},
	{CodeDisabled, 403, "Not switched on", false, "The configuration of this gateway does not allow it; `detail` says what to set."},
	{CodeNotFound, 404, "Not found", false, "There is no such path, or nothing with this id."},
	{CodeMethodNotAllowed, 405, "Method not allowed", false, "The path takes only the methods in the header `Allow`."},
	{CodeTimeout, 408, "Request not complete in time", true, "The body did not come in time; nothing was done."},
	{CodeConflict, 409, "Conflict", false, "The same idempotency key was used for another content."},
	{CodeTooLarge, 413, "Too large", false, "The body, or the message in it, is over the limit that `detail` names."},
	{CodeUnsupportedMedia, 415, "Unsupported media type", false, "The body must be `application/json`, and not compressed."},
	{CodeLimited, 429, "Too many requests", true, "This key may call again after `retryAfterMs`."},
	{CodeInternal, 500, "Internal error", true, "A mistake of the gateway."},
	{CodeOverloaded, 503, "Overloaded", true, "The gateway has too much to do, or is about to end; nothing was done. Again after `retryAfterMs`."},
	{CodeUnavailable, 503, "Unavailable", true, "Redis does not answer, or is still being told what it forgot; certainly nothing was done. Again after `retryAfterMs`."},
	{CodeUnknown, 504, "Outcome unknown", true, "Whether it was done is not known: repeat with the same idempotency key."},
}

// infoOf is the row of a code.
func infoOf(c Code) *CodeInfo {
	for i := range Codes {
		if Codes[i].Code == c {
			return &Codes[i]
		}
	}
	return infoOf(CodeInternal)
}

// Problem is the answer to a call that failed: that of every listener, and what only calls have.
type Problem struct {
	problem.Problem
	ID      protocol.MessageID   `json:"id,omitempty" doc:"Of a message: its id."`
	Missing []protocol.GatewayID `json:"missing,omitempty" doc:"Of a connection that isn't found: gateways that are dead and not cleaned up after yet, one of which may have held it. Of a gateway that is dead or not reached: itself."`
	Results []Result             `json:"results,omitempty" doc:"Of a message: what became of it at each receiver."`

	allow string // header of a 405
	scope Scope  // that is missing
}

func (p *Problem) Error() string { return string(p.Code) + ": " + p.Detail }

// refuse makes the answer of a code. The detail is a constant, or the name of a field and a constant: never what the caller sent.
func refuse(code Code, detail string) *Problem {
	info := infoOf(code)
	return &Problem{Problem: problem.Problem{Type: code.Type(), Title: info.Title, Status: info.Status, Code: code, Detail: detail}}
}

// after says when to try again.
func (p *Problem) after(d time.Duration) *Problem {
	p.RetryAfterMs = problem.Milliseconds(d)
	return p
}

const (
	redisAway  = "redis does not answer"
	awhile     = time.Second // before the next try, where nothing better is known
	notInTime  = "not done in time"
	ourMistake = "see the log of the gateway"
)

// unavailable is the answer while Redis is away.
func unavailable() *Problem { return refuse(CodeUnavailable, redisAway).after(awhile) }

// uncertain is the error of a call that changes something, once it has begun: that Redis has not answered doesn't say that nothing was done.
func uncertain(err error) error {
	if p, known := problemOf(err); known && p.Code == CodeUnavailable {
		return refuse(CodeUnknown, "redis did not answer in time: it may be done, or be done yet").after(awhile)
	}
	return err
}

// problemOf is what the caller is told of an error. known is false for one that nobody thought of.
func problemOf(err error) (p *Problem, known bool) {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p, true
	}
	switch {
	case errors.Is(err, presence.ErrUnavailable), errors.Is(err, history.ErrUnavailable), errors.Is(err, auth.ErrUnavailable):
		return unavailable(), true
	case errors.Is(err, presence.ErrUnsure):
		return refuse(CodeUnavailable, "redis was away and may have forgotten who is there").after(awhile), true
	case errors.Is(err, router.ErrTooLarge):
		return refuse(CodeTooLarge, "content: the message would be larger than clients were told to expect"), true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return refuse(CodeUnavailable, notInTime).after(awhile), true
	}
	return refuse(CodeInternal, ourMistake), false
}

// codeOf is the code of a reply error, which sending gives.
func codeOf(e *protocol.ReplyError) Code {
	if c := Code(e.Code); infoOf(c).Code == c {
		return c
	}
	return CodeInternal
}

// head sets the headers of the answer.
func (p *Problem) head(h http.Header) {
	p.Head(h)
	switch {
	case p.allow != "":
		h.Set("Allow", p.allow)
	case p.scope != "":
		h.Set("WWW-Authenticate", `Bearer error="insufficient_scope", scope="`+string(p.scope)+`"`)
	case p.Code == CodeUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	}
}
