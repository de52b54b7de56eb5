//go:build !secondpass

package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

const (
	// modelRepair is how long the gateways may take to find out what they missed, on a busy machine.
	modelRepair = 3 * Deadline
	// ghosts is how long a killed gateway's connections may still be counted: its lease, and a quiet time that ends it late.
	modelGhosts = 8 * time.Second
	// modelQuiet is how long Redis may be thought to have forgotten somebody: the quiet time, and the pulses around it.
	modelQuiet = 8 * time.Second
)

// modelCluster is what all runs on one Redis share: gateways that go on from run to run, so that a run costs no start.
type modelCluster struct {
	t        *testing.T
	redis    *Redis
	gateways []*modelGateway
	runs     int
	shaky    time.Time // until then a gateway may not hear what is published, for its subscription is being made anew
	quiet    time.Time // until then a gateway may not know whether Redis has forgotten somebody
	told     sync.Once // the story of the first failure: rapid tells only that of the smallest
}

type modelGateway struct {
	*Gateway
	id string // as it told its last client
}

// newModelCluster starts two gateways whose pulses are quick, so that what they have to find out takes a second.
func newModelCluster(t *testing.T, r *Redis) *modelCluster {
	c := &modelCluster{t: t, redis: r}
	flags := []string{
		"--cluster.pulse-interval=250ms", "--cluster.grace=500ms", "--cluster.quiet=3s", "--cluster.reap-after=2s",
		"--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", "--limits.connect-rate=0", "--limits.connect-rate-per-ip=0", "--limits.connections-per-user=0",
	}
	if r.Kind == Cluster {
		flags[0] = "--cluster.pulse-interval=1s" // for each of 64 groups
	}
	var starting sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		g := &modelGateway{Gateway: NewGateway(t, r, Options{Name: string(rune('a' + i)), Flags: flags})}
		c.gateways = append(c.gateways, g)
		starting.Go(func() { errs[i] = g.Restart() })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return c
}

// model is one run: fresh users, and what the protocol says of them.
type model struct {
	*modelCluster
	t        *rapid.T
	users    []*modelUser
	clients  []*modelClient // that are connected
	muted    bool           // nothing can be published
	broken   []*modelUser   // whose connection broke off behind a message: it may be read yet
	made     int
	versions map[string]string // of presence: version of a user to state
	story    []string
}

type modelUser struct {
	name    string
	log     *modelLog
	cursors map[string]*modelCursor // by device
	places  []modelPosition         // positions that clients were told
	sent    []*modelSent
	signals map[string]*modelMessage

	// What the registry may still count, beside those who are connected.
	leaving int       // connections that ended and may not have been removed yet
	unsure  bool      // the registry lost its entries and may lack some that are connected
	killed  int       // connections that ended with their gateway,
	until   time.Time // and may be counted as present until then
	counts  []modelCount
}

// modelSent is a stored message as its sender knows it, to be repeated.
type modelSent struct {
	*modelMessage
	to *modelUser
}

// modelCount says how many connections a user may have been seen to have, up to a time.
type modelCount struct {
	until time.Time
	count int
}

func (w *modelCluster) run(t *rapid.T) {
	w.runs++
	m := &model{modelCluster: w, t: t, versions: make(map[string]string)}
	defer m.end()
	for _, name := range []string{"alice", "bob", "carol"} {
		m.users = append(m.users, &modelUser{
			name: name + "-" + strconv.Itoa(w.runs), log: newModelLog(), cursors: make(map[string]*modelCursor), signals: make(map[string]*modelMessage),
		})
	}
	t.Repeat(map[string]func(*rapid.T){
		"":          m.settled,
		"connect":   m.connect,
		"come back": m.connect, // a life of connections: as often as they go
		"leave":     m.leave,
		"send":      m.send,
		"send more": m.send,
		"repeat":    m.repeat,
		"conflict":  m.conflict,
		"signal":    m.signal,
		"received":  m.received,
		"history":   m.history,
		"heartbeat": m.heartbeat,
		"presence":  m.presence,
		"break off": m.breakOff,
		"fault":     m.fault,
	})
	m.repairAll()
	m.settled(t)
	m.must(m.counted(m.users...))
	m.must(m.judged())
	for _, u := range m.users {
		m.must(m.kept(u))
	}
	m.settled(t)
}

// end leaves the cluster as the next run wants it, also after a failure.
func (w *model) end() {
	for _, c := range w.clients {
		c.Cut()
	}
	if w.muted {
		if err := w.unmute(); err != nil {
			w.modelCluster.t.Fatal(err)
		}
	}
	for _, g := range w.gateways {
		if !g.Running() {
			if err := g.Restart(); err != nil {
				w.modelCluster.t.Fatal(err)
			}
		}
	}
}

// must ends the run when err is not nil. What is the same error is said in the same words, or rapid could not shrink it.
func (w *model) must(err error) {
	if err == nil {
		return
	}
	what := "something else"
	var f failure
	if errors.As(err, &f) {
		what = f.what
	}
	text := fmt.Sprintf("%v\nthe run:\n  %s", err, strings.Join(w.story, "\n  "))
	w.told.Do(func() {
		for _, c := range w.clients {
			text += "\n" + c.Story(12)
		}
		w.modelCluster.t.Logf("the first failure: %s", text)
	})
	w.t.Logf("%s", text)
	w.t.Fatalf("%s", what)
}

func (w *model) want(what string, ok bool, format string, args ...any) {
	if !ok {
		w.must(failure{what, fmt.Sprintf(format, args...)})
	}
}

// did writes the story of the run.
func (w *model) did(format string, args ...any) {
	w.story = append(w.story, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// settled is held after each action: every client gets what it has to get, and nothing else. While nothing can be published it may take
// its time, and is held at the end of that.
func (w *model) settled(*rapid.T) {
	for _, c := range w.clients {
		if w.muted {
			w.must(c.take())
			continue
		}
		w.must(c.await(modelRepair, "a client doesn't get everything", c.whole))
	}
	for _, c := range w.clients {
		if ended := c.Ended(); ended != nil {
			w.must(failure{"a connection ended", c.Name + " " + ended.String()})
		}
		if left := c.Left("error"); len(left) > 0 {
			w.must(failure{"an error nobody asked for", fmt.Sprint(c.Name, left)})
		}
	}
}

// settledForSure also waits while nothing can be published.
func (w *model) settledForSure() {
	muted := w.muted
	w.muted = false
	w.settled(nil)
	w.muted = muted
}

// of returns the connections of a user.
func (w *model) of(u *modelUser) (list []*modelClient) {
	for _, c := range w.clients {
		if c.user == u {
			list = append(list, c)
		}
	}
	return list
}

// remove takes a client whose connection ended out of the model.
func (w *model) remove(c *modelClient) {
	w.clients = slices.DeleteFunc(w.clients, func(x *modelClient) bool { return x == c })
	c.user.places = append(c.user.places, modelPosition{c.epoch(), c.offset})
	w.changed(c.user)
}

// changed is called when a connection of a user came or went: for a while the one count or the other may be seen.
func (w *model) changed(u *modelUser) {
	u.counts = append(u.counts, modelCount{time.Now().Add(2 * time.Second), len(w.of(u)) + u.leaving + 1})
}

// held returns how many connections of a user a message may be handed to now.
func (w *model) held(u *modelUser) (least, most int) {
	most = len(w.of(u)) + u.leaving
	switch {
	case w.muted:
		return 0, 0
	case u.unsure || time.Now().Before(w.shaky):
		return 0, most
	}
	return len(w.of(u)), most
}

// keys finds the keys of a user in Redis, whatever their partition.
func (w *model) keys(what string, u *modelUser) (keys []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	pattern := "cg:*:" + what + ":u:" + u.name
	if cluster, ok := w.redis.Client().(*redis.ClusterClient); ok {
		var mu sync.Mutex
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
			some, err := c.Keys(ctx, pattern).Result()
			mu.Lock()
			defer mu.Unlock()
			keys = append(keys, some...)
			return err
		})
		return keys, err
	}
	return w.redis.Client().Keys(ctx, pattern).Result()
}

// counted waits until the registry counts exactly the connections that users have, on each gateway that runs.
func (w *model) counted(users ...*modelUser) error {
	for _, u := range users {
		err := Poll(modelRepair, func() error {
			keys, err := w.keys("h", u)
			if err != nil {
				return err
			}
			counts := make(map[string]string)
			for _, k := range keys {
				if counts, err = w.redis.Client().HGetAll(context.Background(), k).Result(); err != nil {
					return err
				}
			}
			for _, g := range w.gateways {
				n := 0
				for _, c := range w.of(u) {
					if c.gateway == g {
						n++
					}
				}
				if got, _ := strconv.Atoi(counts[g.id]); g.Running() && got != n {
					return failure{"the registry counts wrong", fmt.Sprintf("%s has %d connections on %s, counted are %v", u.name, n, g.id, counts)}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		u.leaving, u.unsure = 0, false
	}
	return nil
}

// kept waits until every cursor of a user stands where it may after the last word.
func (w *model) kept(u *modelUser) error {
	return Poll(modelRepair, func() error {
		keys, err := w.keys("d", u)
		if err != nil {
			return err
		}
		cursors := make(map[string]string)
		for _, k := range keys {
			if cursors, err = w.redis.Client().HGetAll(context.Background(), k).Result(); err != nil {
				return err
			}
		}
		for device, want := range u.cursors {
			at := nowhere
			if fields := strings.Fields(cursors[device]); len(fields) == 3 {
				at.Epoch = fields[0]
				at.Offset, _ = strconv.ParseUint(fields[1], 10, 64)
			}
			if !slices.Contains(want.last, at) {
				return failure{"a cursor is not kept", fmt.Sprintf("%s of %s: %q, want one of %v", device, u.name, cursors[device], want.last)}
			}
			want.settle()
		}
		return nil
	})
}

// judged waits until every word of a device was held against its log, so that a cursor that should have stayed where it was has moved by
// now: words are collected for a moment, and all of them are written together.
func (w *model) judged() error {
	for _, g := range w.gateways {
		u := &modelUser{name: "last-" + g.Name + "-" + strconv.Itoa(w.runs)}
		c, err := Dial(g.WS(), nil)
		if err != nil {
			return err
		}
		defer c.Cut()
		if _, err := c.Register(u.name, "deviceId", "phone"); err != nil {
			return err
		}
		epoch, offset := c.Position()
		if err := c.Write(object("received", []any{"epoch", epoch, "offset", offset})); err != nil {
			return err
		}
		err = Poll(modelRepair, func() error {
			keys, err := w.keys("d", u)
			if err == nil && len(keys) == 0 {
				err = failure{"a cursor is not kept", u.name}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
