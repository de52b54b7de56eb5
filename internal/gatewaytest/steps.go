package gatewaytest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// scene is what a transcript plays in.
type scene struct {
	t        *testing.T
	redis    *Redis
	gateways map[string]*Gateway
	clients  map[string]*Client
	versions map[string]string // of a user's presence, as last told
	ignored  map[*Client]bool
	taken    map[*Client]map[string]int // of what a client was told of a user, by told steps
}

// quiet is how long "nothing" listens: several times what a message takes on a busy machine.
const quiet = 300 * time.Millisecond

// steps are the words of the language. Each takes all of its args, or complains.
var steps = map[string]func(*scene, *args) error{
	// Gateways.
	"gateway":        (*scene).startGateways,
	"restart":        (*scene).restart,
	"kill":           onGateway(func(g *Gateway) { g.Kill() }),
	"pause":          onGateway(func(g *Gateway) { g.Pause() }),
	"resume-process": onGateway(func(g *Gateway) { g.Resume() }),
	"term":           onGateway(func(g *Gateway) { g.Term() }),
	"exit":           (*scene).exit,
	"ready":          readiness(http.StatusOK),
	"not-ready":      readiness(http.StatusServiceUnavailable),
	"wait-stats":     (*scene).waitStats,
	// Clients.
	"connect":   (*scene).connect,
	"resume":    (*scene).resume,
	"dial":      (*scene).dial,
	"close":     onClient(func(c *Client) error { return c.Close() }),
	"cut":       onClient(func(c *Client) error { c.Cut(); return nil }),
	"freeze":    onClient(func(c *Client) error { c.Freeze(); return nil }),
	"thaw":      onClient(func(c *Client) error { c.Thaw(); return nil }),
	"closed":    (*scene).closed,
	"connected": (*scene).connected,
	"ignore":    (*scene).ignore,
	"join":      (*scene).join,
	"leave":     (*scene).leave,
	"members":   (*scene).members,
	"pushed":    (*scene).pushed,
	"watch":     (*scene).watch,
	"unwatch":   (*scene).unwatch,
	"told":      (*scene).told,
	"untold":    (*scene).untold,
	// What clients say and hear.
	"send":      (*scene).send,
	"expect":    (*scene).expect,
	"nothing":   (*scene).nothing,
	"received":  (*scene).received,
	"heartbeat": (*scene).heartbeat,
	"presence":  (*scene).presence,
	"raw":       (*scene).raw,
	"error":     (*scene).error,
	"frame":     (*scene).frame,
	// Redis.
	"redis":    (*scene).redisDo,
	"flushall": func(s *scene, a *args) error { return errors.Join(a.done(), s.redis.FlushAll()) },
}

// redis pause | resume | kill | restart | mute | unmute
func (s *scene) redisDo(a *args) error {
	what, err := a.next("what to do")
	if err := errors.Join(err, a.done()); err != nil {
		return err
	}
	do := map[string]func() error{"pause": s.redis.Pause, "resume": s.redis.Resume, "kill": s.redis.Kill, "restart": s.redis.Restart, "mute": s.mute, "unmute": s.redis.Unmute}[what]
	if do == nil {
		return fmt.Errorf("redis can't %s", what)
	}
	return do()
}

// mute is Redis.Mute, until the end at the latest.
func (s *scene) mute() error {
	s.t.Cleanup(func() {
		if err := s.redis.Unmute(); err != nil {
			s.t.Errorf("redis stays mute: %v", err)
		}
	})
	return s.redis.Mute()
}

// nothingLeft complains about messages, told states and errors that the transcript did not expect: a duplicate is one too many.
func (s *scene) nothingLeft() error {
	for name, c := range s.clients {
		if s.ignored[c] {
			continue
		}
		if c.Ended() == nil {
			if err := c.None("message", 50*time.Millisecond); err != nil {
				return err
			}
		}
		if err := s.untaken(c); err != nil {
			return err
		}
		for _, kind := range []string{"message", "error"} {
			if left := c.Left(kind); len(left) > 0 {
				return fmt.Errorf("%s got what nobody expected: %v", name, left)
			}
		}
	}
	return nil
}

// story tells what each client got.
func (s *scene) story() string {
	var b strings.Builder
	names := make([]string, 0, len(s.clients))
	for name := range s.clients {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b.WriteString("  " + s.clients[name].Story(20) + "\n")
	}
	return b.String()
}
