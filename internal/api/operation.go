package api

import (
	"context"
	"reflect"
	"slices"
	"strings"
)

// An operation is one call of the API. The table of them is all that routing, the OpenAPI document, docs/api.md and the tests know: to
// add one, write its request and its answer as structs, a method of API that takes the one and returns the other, and enter it.
type operation struct {
	Name        string // operationId, and the label of metrics: "sendMessage"
	Method      string
	Path        string // below Base: "/users/{user}/connections"
	Scope       Scope  // that the key needs
	Summary     string // one line
	Description string
	Codes       []Code // problems beside those that any call may have

	// Set by on.
	segments []string
	request  *shape
	answer   reflect.Type
	partial  bool         // the answer may be 207
	lines    reflect.Type // what each line of the answer is, where it is told in lines; nil: it is not
	serve    func(a *API, ctx context.Context, request any) (any, error)
}

// on completes an operation with what serves it. The error is a *Problem, or one that problemOf knows.
func on[Request, Answer any](o operation, serve func(*API, context.Context, *Request) (*Answer, error)) *operation {
	o.segments = strings.Split(strings.TrimPrefix(o.Path, "/"), "/")
	o.request = shapeOf(reflect.TypeFor[Request]())
	o.answer = reflect.TypeFor[Answer]()
	o.partial = o.answer.Implements(reflect.TypeFor[partial]()) || reflect.PointerTo(o.answer).Implements(reflect.TypeFor[partial]())
	if l, ok := reflect.Zero(reflect.PointerTo(o.answer)).Interface().(lined); ok {
		o.lines = l.line()
	}
	o.serve = func(a *API, ctx context.Context, request any) (any, error) {
		return serve(a, ctx, request.(*Request))
	}
	return &o
}

// partial is an answer whose HTTP status depends on what is in it.
type partial interface{ httpStatus() int }

// operations is the table.
var operations = []*operation{
	sendMessage,
	getPresence,
	getUserConnections,
	getConnection,
	setMeta,
	getRoomMembers,
	getUserHistory,
	getRoomHistory,
	getGateways,
	getStats,
	revokeTokens,
	disconnectUser,
	disconnectConnection,
	joinRooms,
	leaveRooms,
	drainGateway,
	resumeGateway,
	rebalance,
	traceMessages,
}

// takesBody reports whether a request may have one.
func (o *operation) takesBody() bool {
	return slices.ContainsFunc(o.request.fields, func(f field) bool { return f.in == inBody })
}

// needsBody reports whether something must be in it. All that a call has there may be absent: then the body may be, too.
func (o *operation) needsBody() bool {
	return slices.ContainsFunc(o.request.fields, func(f field) bool { return f.in == inBody && f.required })
}

// find looks a path up, as its segments came: still encoded. values are those of the path's parameters, decoded. Where the path is known and
// the method isn't, allow lists those that are.
func find(method string, segments []string) (o *operation, values []string, allow string) {
	if method == "HEAD" {
		method = "GET"
	}
	for _, candidate := range operations {
		v, ok := candidate.match(segments)
		if !ok {
			continue
		}
		if candidate.Method == method {
			return candidate, v, ""
		}
		if allow != "" {
			allow += ", "
		}
		if allow += candidate.Method; candidate.Method == "GET" {
			allow += ", HEAD"
		}
	}
	return nil, nil, allow
}

// match compares a path with the operation's. A parameter takes any one segment.
func (o *operation) match(segments []string) (values []string, ok bool) {
	if len(segments) != len(o.segments) {
		return nil, false
	}
	for i, want := range o.segments {
		if strings.HasPrefix(want, "{") {
			values = append(values, segments[i])
		} else if want != segments[i] {
			return nil, false
		}
	}
	return values, true
}
