//go:build !secondpass

package api

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// A pulse has found Redis away, and from then on nothing that is sent to it is answered at all. Whoever calls is told so at once, and doesn't wait to find it
// out once more.
func TestWhoCallsWhileRedisIsAwayDoesNotWaitForIt(t *testing.T) {
	eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
		n := start(t, r)
		n.line.set(func(context.Context, string) error { return errLost }, nil)
		eventually(t, "it is known that Redis is away", func() bool { return !n.registry.AnswersOfGateways() })
		n.line.set(func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }, nil)
		for name, c := range map[string]struct{ method, path, body string }{
			"gateways":    {"GET", "/gateways", ""},
			"stats":       {"GET", "/stats", ""},
			"trace":       {"GET", "/trace?user=bob", ""},
			"rebalance":   {"POST", "/rebalance", `{}`},
			"drain":       {"POST", "/gateways/a-1/drain", ""},
			"resume":      {"POST", "/gateways/a-1/resume", ""},
			"revocations": {"POST", "/revocations", `{"user":"bob"}`},
			"everyone":    {"POST", "/messages", `{"everyone":true,"content":1}`},
			"disconnect":  {"POST", "/users/bob/disconnect", `{}`},
			"join":        {"POST", "/users/bob/join", `{"rooms":["x"]}`},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				x := n.call(t, 503, c.method, c.path, c.body)
				if took := time.Since(began); took > patience/4 {
					t.Errorf("it took %v", took)
				}
				wantCode(t, x, CodeUnavailable)
			})
		}
	})
}

// Redis has marked bob's connection and then says no more. Where it is, is not known: nobody is named who may not exist. If it had said so before, its gateway
// is named, which has not closed it.
func TestADisconnectNamesOnlyGatewaysThatThereAre(t *testing.T) {
	for name, c := range map[string]struct {
		looks   int64 // that Redis answers
		gateway protocol.GatewayID
		missing []protocol.GatewayID
	}{
		"silent at once":      {0, "", nil},
		"silent after a look": {1, nodeID, []protocol.GatewayID{nodeID}},
	} {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
				n := start(t, r)
				n.hold(t, "bob", "c-1")
				var looks atomic.Int64
				n.line.set(func(_ context.Context, command string) error {
					if command == "hgetall" && looks.Add(1) > c.looks {
						return errLost
					}
					return nil
				}, nil)
				x := into[DisconnectAnswer](t, n.call(t, 207, "POST", "/users/bob/disconnect", `{}`))
				if x.Marked != 1 || x.Gone != 0 || len(x.Connections) != 1 || x.Connections[0] != (Leaving{ID: "c-1", Gateway: c.gateway}) {
					t.Errorf("%+v", x)
				}
				if !slices.Equal(x.Missing, c.missing) || len(x.Reasons) != len(c.missing) || c.gateway != "" && x.Reasons[c.gateway] != router.MissingSilent {
					t.Errorf("missing are %v, %v", x.Missing, x.Reasons)
				}
			})
		})
	}
}

// Redis was emptied, and one gateway has told it again whom it holds. Whether that is all of bob's connections only the others know, so nobody is given a part
// for the whole; that he is online is certain.
func TestAListOfConnectionsIsCompleteOrNotGiven(t *testing.T) {
	eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
		n := start(t, r)
		n.hold(t, "bob", "c-1")
		connections := func(status int) *httptest.ResponseRecorder {
			t.Helper()
			return n.call(t, status, "GET", "/users/bob/connections", "")
		}
		if x := into[ConnectionsAnswer](t, connections(200)); len(x.Connections) != 1 {
			t.Errorf("%+v", x)
		}
		quiet := func(until time.Time) {
			t.Helper()
			line := keyspace.Line(keyspace.Layout{}.GroupOf(protocol.UserAddress("bob")))
			if err := n.client.HSet(t.Context(), line, "quiet", until.UnixMilli()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		quiet(time.Now().Add(time.Hour))
		wantCode(t, connections(503), CodeUnavailable)
		if x := into[PresenceAnswer](t, n.call(t, 200, "POST", "/presence", `{"users":["bob"]}`)); x.Users["bob"].State != protocol.StateOnline {
			t.Errorf("%+v", x)
		}
		quiet(time.Now())
		eventually(t, "the list is given again", func() bool { return ask(n, "GET", Base+"/users/bob/connections", "", "").Code == 200 })
	})
}

// A message for everyone was published, and the answer of Redis is lost: it may have been heard, so nobody is told that nothing was done. When Redis does not
// even say who lives, it was not published.
func TestWhetherEveryoneWasToldMayBeUnknown(t *testing.T) {
	eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
		n := start(t, r)
		eventually(t, "the gateway hears its channel", n.cfg.Router.Listening)
		everyone := func(status int, code Code) {
			t.Helper()
			wantCode(t, n.call(t, status, "POST", "/messages", `{"everyone":true,"content":1}`), code)
		}
		n.line.set(nil, losing("publish"))
		everyone(504, CodeUnknown)
		n.line.set(nil, losing("zrange"))
		everyone(503, CodeUnavailable)
		n.line.set(nil, nil)
		n.call(t, 200, "POST", "/messages", `{"everyone":true,"content":1}`)
	})
}

// A call's time is over while Redis has a question in its hands, and this gateway has not answered either. Both gateways are named: they were asked, or may
// have been, which is not that nothing was done.
func TestWhoIsAskedUntilTheTimeIsOverIsNamed(t *testing.T) {
	eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
		n := start(t, r, func(s *settings) {
			s.api.Deadline = time.Second
			s.question = func(context.Context, *router.Asked) bool { return true } // it owes an answer
		})
		n.join(t, "b-1")
		n.line.set(func(ctx context.Context, command string) error {
			if command == "publish" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, nil)
		x := into[RebalanceAnswer](t, n.call(t, 207, "POST", "/rebalance", `{"dryRun":true}`))
		if got, want := fmt.Sprint(x.Missing, x.Reasons), "[a-1 b-1] map[a-1:silent b-1:unknown]"; got != want {
			t.Errorf("missing are %s, want %s", got, want)
		}
	})
}

// A gateway that is about to end begins no further call, and says that nothing was done. It does not wait for what nobody asks of it.
func TestAGatewayThatIsAboutToEndBeginsNoCall(t *testing.T) {
	n := start(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	n.call(t, 200, "GET", "/stats", "")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n.Finish(ctx); ctx.Err() != nil {
		t.Error("it waits for calls that are over")
	}
	x := n.call(t, 503, "POST", "/messages", `{"to":["bob"],"content":1}`)
	if wantCode(t, x, CodeOverloaded); x.Header().Get("Connection") != "close" {
		t.Errorf("%v", x.Header())
	}
}

// So many traces are told that the next one is refused, and another one makes no sense. Each is counted as what it was told.
func TestATraceIsCountedAsWhatItWasTold(t *testing.T) {
	eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
		n := start(t, r)
		n.tracing.Store(tracesAtOnce)
		wantCode(t, n.call(t, 503, "GET", "/trace?user=bob", ""), CodeOverloaded)
		n.tracing.Store(0)
		wantCode(t, n.call(t, 400, "GET", "/trace", ""), CodeBadRequest)
		wantCode(t, n.call(t, 400, "GET", "/trace?user=bob&seconds=61", ""), CodeBadRequest)
		n.call(t, 200, "GET", "/trace?user=bob&seconds=1", "")
		for status, want := range map[int]uint64{200: 1, 400: 2, 503: 1} {
			if got := n.Stats().Calls[Call{"trace", status}]; got != want {
				t.Errorf("%d traces were answered %d, want %d", got, status, want)
			}
		}
	})
}
