package router

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// withCopy lets the sender keep a copy of a message.
func (s *sent) withCopy() *sent {
	s.Copy = &Message{To: protocol.UserAddress(s.From), From: s.From, ID: s.ID, Content: s.Content, Ts: s.Ts}
	s.Copy.Frame = protocol.AppendMessageHead(nil, &protocol.MessageHead{
		ID: s.ID, From: s.From, To: []byte(s.To.Name()), Content: s.Content, Ts: s.Ts, Own: true,
	})
	return s
}

// The message is stored, and then Redis refuses the copy for certain. Of both together nothing certain can be said: the sender hears
// unknown, repeats, and then both are there, each once, and the answer is the first one.
func TestRefusedCopyLeavesTheOutcomeUnknown(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		g := net.gateway("a", prompt)
		bob, alice := g.connect("bob"), g.connect("alice")
		g.lane.set(func(x *tap) {
			x.refuse = func(_ context.Context, cmd redis.Cmder) error {
				if strings.Contains(cmd.String(), `"own":true`) {
					return redis.ErrPoolTimeout // it was never sent
				}
				return nil
			}
		})
		e := g.post(g.message("alice", "bob", "m1", `1`).withCopy()).wantCode(protocol.CodeUnknown)
		if e.ID != "m1" || e.RetryAfterMs == 0 {
			t.Errorf("answered %+v", e)
		}
		g.lane.set(func(x *tap) { x.refuse = nil })
		eventually(t, "the repeat is taken", func() bool {
			s := g.post(g.message("alice", "bob", "m1", `1`).withCopy())
			if err := s.answer().Err; err != nil {
				return false
			}
			s.wantRouted(1, 1)
			return true
		})
		bob.wantMessages(g, "m1@1")
		if m := alice.wantMessages(g, "m1@1")[0]; !m.Own {
			t.Errorf("alice's copy is %s", m)
		}
	})
}

// The message's own call is refused or lost: then no copy is made, and the answer is the message's.
func TestRefusedMessageLeavesNoCopy(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		g := net.gateway("a", prompt)
		for name, tc := range map[string]struct {
			err  error
			code protocol.ErrorCode
		}{
			"refused": {redis.ErrPoolTimeout, protocol.CodeUnavailable},
			"lost":    {errors.New("connection reset"), protocol.CodeUnknown},
		} {
			t.Run(name, func(t *testing.T) {
				g.lane.set(func(x *tap) { x.refuse = func(context.Context, redis.Cmder) error { return tc.err } })
				s := g.post(g.message("alice", "bob", "m1", `1`).withCopy())
				s.wantCode(tc.code)
				g.lane.set(func(x *tap) { x.refuse = nil })
				net.wantStream("bob")
				net.wantStream("alice")
			})
			eventually(t, "the lane is up", func() bool { return !g.router.Degraded() })
		}
	})
}
