//go:build !secondpass

package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// What a room answered decides whether a command is tried again: what Redis or a busy connection did not do may be done in a moment, what is so or may not be
// stays like that.
func TestACommandAboutRoomsIsTriedAgainWhereThatMayHelp(t *testing.T) {
	for outcome, want := range map[protocol.RoomOutcome]fate{
		protocol.RoomUnavailable: fateLater, protocol.RoomBusy: fateLater,
		protocol.RoomJoined: fateDone, protocol.RoomAlready: fateDone, protocol.RoomLeft: fateDone, protocol.RoomGone: fateDone, protocol.RoomLimited: fateDone,
	} {
		answer := &RoomsAnswer{Connections: []InRooms{
			{ID: "c-1", Rooms: map[protocol.RoomID]protocol.RoomOutcome{"x": protocol.RoomJoined}},
			{ID: "c-2", Rooms: map[protocol.RoomID]protocol.RoomOutcome{"x": protocol.RoomJoined, "y": outcome}},
		}}
		if got, _ := fateOf(answer); got != want {
			t.Errorf("%s: the fate is %d, want %d", outcome, got, want)
		}
	}
}

// A backend puts bob into a room by a command, and for a moment it can't be done, first for one reason, then for the other. The command is done when it can be,
// and answered once.
func TestARoomThatIsBusyForAMomentIsJoinedByTheSameCommand(t *testing.T) {
	eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
		var asked atomic.Int64
		outcomes := []protocol.RoomOutcome{protocol.RoomUnavailable, protocol.RoomBusy, protocol.RoomJoined}
		n := start(t, r, func(s *settings) {
			s.question = func(ctx context.Context, a *router.Asked) bool {
				outcome := outcomes[min(int(asked.Add(1)), len(outcomes))-1]
				body, _ := json.Marshal(&protocol.RoomsOutcome{Connections: []protocol.RoomsOfConnection{{Conn: "c-1", Outcomes: []protocol.RoomOutcome{outcome}}}})
				_ = a.Answer(ctx, protocol.AnswerDone, body)
				return true
			}
		})
		n.hold(t, "bob", "c-1")
		n.put(t, "*", "joinRooms", `{"user":"bob","rooms":["x"]}`)
		n.takes(t, 10*patience, ScopeControl)
		if status, answer := n.replied(t, 1); status != "200" || !strings.Contains(answer, `"rooms":{"x":"joined"}`) || asked.Load() != 3 {
			t.Errorf("%s %s, after %d times", status, answer, asked.Load())
		}
	})
}

// A gateway took a revocation a minute ago and died before it could say that it was done. Another one does it again: the token that bob had then is bad, and
// the one that he got since is good. A revocation that is done for the first time is about all that there are.
func TestARevocationDoneAgainSparesNewerTokens(t *testing.T) {
	eachKind(t, func(t *testing.T, r *gatewaytest.Redis) {
		n := start(t, r)
		eventually(t, "the revocations are read", func() bool { return n.revocations.Check(&auth.Identity{User: "bob"}) == nil })
		now := time.Now()
		token := func(age time.Duration) *auth.Identity {
			return &auth.Identity{User: "bob", IssuedAt: now.Add(-age).Unix()}
		}
		older, newer := token(90*time.Second), token(30*time.Second)
		n.put(t, fmt.Sprint(now.Add(-time.Minute).UnixMilli(), "-0"), "revokeTokens", `{"user":"bob"}`)
		for _, command := range [][]any{
			{"XGROUP", "CREATE", keyspace.Commands(), "gateways", "0"},
			{"XREADGROUP", "GROUP", "gateways", "dead-1", "STREAMS", keyspace.Commands(), ">"},
		} {
			if _, err := n.redis.Do(command...); err != nil {
				t.Fatal(err)
			}
		}
		n.takes(t, time.Second, ScopeRevoke)
		if status, answer := n.replied(t, 1); status != "200" {
			t.Fatalf("%s %s", status, answer)
		}
		eventually(t, "the old token is revoked", func() bool { return n.revocations.Hits(older) })
		if n.revocations.Hits(newer) {
			t.Error("so is the new one")
		}
		n.put(t, "*", "revokeTokens", `{"user":"bob"}`)
		if status, answer := n.replied(t, 2); status != "200" {
			t.Fatalf("%s %s", status, answer)
		}
		eventually(t, "the new token is revoked", func() bool { return n.revocations.Hits(newer) })
	})
}

// A time that a command has itself is only ever brought forward; and one whose id does not say when it was put in, or that is done for the first time, is left
// as it is.
func TestACommandDoneAgainIsAboutNothingLaterThanItself(t *testing.T) {
	const put, before, after = 1700000000000, 1699999900000, 1700000100000
	for name, c := range map[string]struct {
		id           string
		again        bool
		before, want int64
	}{
		"again":                   {"1700000000000-3", true, 0, put},
		"again, with a later one": {"1700000000000-3", true, after, put},
		"again, with an earlier":  {"1700000000000-3", true, before, before},
		"for the first time":      {"1700000000000-3", false, 0, 0},
		"an id that is no time":   {"17-1", true, 0, 0},
		"no time, but one given":  {"17-1", true, before, before},
	} {
		x := &command{id: c.id, again: c.again}
		revoke, disconnect := &RevokeRequest{Before: c.before}, &DisconnectUserRequest{Before: c.before}
		x.once(revoke)
		x.once(disconnect)
		if revoke.Before != c.want || disconnect.Before != c.want {
			t.Errorf("%s: before %d and %d, want %d", name, revoke.Before, disconnect.Before, c.want)
		}
	}
}
