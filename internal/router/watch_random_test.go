//go:build !secondpass

package router

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
)

// A host is a gateway of which only the registry matters: the sockets of its users are entries.
type host struct {
	registry *presence.Registry
	stop     func()
	entries  []*presence.Entry
}

// A town is the users of a test, wherever they are connected.
type town struct {
	t     *testing.T
	net   *cluster
	dice  *rand.Rand
	cfg   presence.Config
	hosts []*host
	users []protocol.UserID
	born  int
}

func (w *town) host() *host {
	w.t.Helper()
	cfg := w.cfg
	h := &host{}
	if w.born++; w.born%3 != 0 {
		cfg.Grace = 0 // else most would be back within it
	}
	cfg.Gateway = protocol.GatewayID("host-" + strconv.Itoa(w.born))
	cfg.Each = func(yield func(*presence.Entry) bool) {} // nothing is refreshed: it is over before an entry expires
	h.registry = presence.New(w.net.redis.Client(), cfg)
	eventually(w.t, "a host has its leases", func() bool { return h.registry.Join(context.Background()) == nil })
	h.stop = running(w.t, h.registry.Run)
	w.t.Cleanup(h.stop)
	return h
}

func (w *town) connect() {
	h := w.hosts[w.dice.IntN(len(w.hosts))]
	w.born++
	e := &presence.Entry{Conn: protocol.ConnID("c" + strconv.Itoa(w.born)), User: w.users[w.dice.IntN(len(w.users))], Since: 1}
	eventually(w.t, "a user is registered", func() bool {
		_, err := h.registry.Register(context.Background(), e)
		return err == nil
	})
	h.entries = append(h.entries, e)
}

func (w *town) disconnect() {
	first := w.dice.IntN(len(w.hosts))
	h := w.hosts[first]
	for i := range w.hosts { // the next one that has somebody
		if h = w.hosts[(first+i)%len(w.hosts)]; len(h.entries) > 0 {
			break
		}
	}
	if len(h.entries) == 0 {
		return
	}
	i := w.dice.IntN(len(h.entries))
	h.registry.Remove(h.entries[i], presence.End{Cause: "client_close"})
	h.entries = append(h.entries[:i], h.entries[i+1:]...)
}

// kill ends a host without a word, with all who are connected there.
func (w *town) kill() {
	i := w.dice.IntN(len(w.hosts))
	w.hosts[i].stop()
	w.hosts[i] = w.host()
}

// states are the true states of the users: what Redis says, when it agrees with where they are connected.
func (w *town) states(r *presence.Registry) (map[protocol.UserID]protocol.UserState, error) {
	connected := make(map[protocol.UserID]bool)
	for _, h := range w.hosts {
		for _, e := range h.entries {
			connected[e.User] = true
		}
	}
	all, err := r.States(context.Background(), w.users...)
	if err != nil {
		return nil, err
	}
	states := make(map[protocol.UserID]protocol.UserState)
	for _, s := range all {
		if (s.State == protocol.StateOnline) != connected[s.User] {
			return nil, fmt.Errorf("%s is connected: %t, and in Redis %+v", s.User, connected[s.User], s)
		}
		states[s.User] = s
	}
	return states, nil
}

// A person watches some users by one connection.
type person struct {
	*client
	g       *gateway
	watches map[protocol.UserID]*Watch
}

func (p *person) toggle(u protocol.UserID) {
	if w := p.watches[u]; w != nil {
		p.g.unwatch(w)
		delete(p.watches, u)
		return
	}
	p.watches[u] = p.g.watch(p.client, u)[0]
}

// knows returns what the client was told last of each user, and complains about versions that came twice or went backwards. What it asks
// for may be what it knows.
func (p *person) knows() (last map[string]gatewaytest.UserState, pushes int, err error) {
	last, highest := make(map[string]gatewaytest.UserState), make(map[string]uint64)
	for _, f := range p.Left("presence") {
		for user, s := range f.States() {
			last[user] = s
			epoch, n, ok := s.Position()
			before, known := highest[user+" "+epoch]
			highest[user+" "+epoch] = n
			if f.ID == "" {
				pushes++
			}
			if ok && known && (n < before || n == before && f.ID == "") {
				return nil, 0, fmt.Errorf("%s is told of %s %s.%d behind %s.%d", p.Name, user, epoch, n, epoch, before)
			}
		}
	}
	return last, pushes, nil
}

// A thousand times somebody connects or disconnects, a gateway is killed, a publish lost, a subscription cut, or somebody begins or ceases
// to watch. No client is told a version twice, none backwards, and in the end each knows the truth about all it watches.
func TestWatchersKnowTheTruthInTheEnd(t *testing.T) {
	for _, kind := range gatewaytest.Kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := gatewaytest.Shared(t, kind)
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			w := &town{t: t, net: newCluster(t, r), dice: rand.New(rand.NewPCG(seed, 1))}
			hosts := 3
			tune := func(s *settings) {
				s.registry.Pulse, s.registry.Lease, s.registry.ReapAfter = 100*time.Millisecond, 300*time.Millisecond, 200*time.Millisecond
				s.registry.Quiet, s.registry.Grace = 200*time.Millisecond, 20*time.Millisecond
				if kind == gatewaytest.Cluster { // 64 groups
					s.registry.Pulse, s.registry.Lease, s.registry.Quiet = 400*time.Millisecond, 1200*time.Millisecond, 800*time.Millisecond
					hosts = 2
				}
				w.cfg = s.registry
			}
			a, b := w.net.gateway("a", tune), w.net.gateway("b", tune)
			w.cfg.OnPulse, w.cfg.OnSilence, w.cfg.OnLog = nil, nil, nil
			for i := range 8 {
				w.users = append(w.users, protocol.UserID("user"+strconv.Itoa(i)))
			}
			for range hosts {
				w.hosts = append(w.hosts, w.host())
			}
			var people []*person
			for i, g := range []*gateway{a, a, b} {
				p := &person{client: g.connect(protocol.UserID("person" + strconv.Itoa(i))), g: g, watches: make(map[protocol.UserID]*Watch)}
				for _, u := range w.users[i:] {
					p.toggle(u)
				}
				people = append(people, p)
			}
			// Lost words, where Redis has an ACL and connections to kill.
			publish := func(allowed string) {
				if kind != gatewaytest.Embedded {
					acl(t, r, allowed+"publish", allowed+"spublish")
				}
			}
			t.Cleanup(func() { publish("+") })
			for step := range 1000 {
				switch n := w.dice.IntN(1000); {
				case n < 460:
					w.connect()
				case n < 940:
					w.disconnect()
				case n < 950:
					w.kill()
				case n < 980:
					people[w.dice.IntN(len(people))].toggle(w.users[w.dice.IntN(len(w.users))])
				case n < 990 && kind != gatewaytest.Embedded:
					for _, node := range r.Nodes {
						if _, err := node.Do("CLIENT", "KILL", "TYPE", "pubsub"); err != nil {
							t.Fatal(err)
						}
					}
				case n < 995:
					publish("-")
				}
				if step%20 == 0 {
					publish("+")
					<-time.After(time.Duration(w.dice.IntN(60)) * time.Millisecond) // graces end
				}
			}
			publish("+")
			var truth map[protocol.UserID]protocol.UserState
			if err := gatewaytest.Poll(patience, func() (err error) {
				truth, err = w.states(a.registry)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			for _, p := range people {
				told := 0
				if err := gatewaytest.Poll(patience, func() error {
					last, pushes, err := p.knows()
					if err != nil {
						t.Fatal(err)
					}
					told = pushes
					for u := range p.watches {
						s := truth[u]
						if got := last[string(u)]; got.State != string(s.State) || got.Version != s.Version() {
							return fmt.Errorf("%s knows %s as %+v, the truth is %+v", p.Name, u, got, s)
						}
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
				t.Logf("%s was told %d changes", p.Name, told)
				if told < 10 {
					t.Errorf("%s was told %d changes only", p.Name, told)
				}
			}
		})
	}
}
