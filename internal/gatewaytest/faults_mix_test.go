//go:build !race

package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A mishap begins, and ends with what it returned.
type mishap struct {
	name  string
	begin func(*mix) (end func())
}

// mix is three gateways and a Redis, of which any may fail at any time, also one while the other does.
type mix struct {
	*trial
	dice *rand.Rand
	wire *Wire // before a single Redis
	away bool  // Redis is, or was a moment ago
}

// What happens to a gateway, to any Redis, to one behind a wire, and to people. Nothing of it may cost a message, as long as Redis
// keeps what it has.
var (
	gatewayMishaps = []mishap{
		{"kill", func(m *mix) func() {
			g := m.gateway()
			g.Kill()
			return func() { m.revive(g) }
		}},
		{"pause", func(m *mix) func() {
			g := m.gateway()
			g.Pause()
			return g.Resume
		}},
		{"drain", func(m *mix) func() {
			g := m.gateway()
			g.Term()
			return func() {
				// Without Redis it can't say goodbye to the others, and says so.
				if code, err := g.ExitCode(30 * time.Second); code != 0 && !(code == 4 && m.away) || err != nil {
					m.Errorf("a drained gateway ended with code %d, %v", code, err)
				}
				m.revive(g)
			}
		}},
	}
	killed = mishap{"redis killed", func(m *mix) func() {
		m.away = true
		m.must(m.r.Kill())
		return func() { m.must(m.r.Restart()) }
	}}
	singleMishaps = []mishap{
		killed,
		{"redis paused", func(m *mix) func() {
			m.away = true
			m.must(m.r.Pause())
			return func() { m.must(m.r.Resume()) }
		}},
		{"redis far away", func(m *mix) func() {
			m.wire.Delay(100 * time.Millisecond) // each way
			return func() { m.wire.Delay(0) }
		}},
		{"connections reset", func(m *mix) func() {
			m.wire.Reset()
			return func() {}
		}},
	}
	redisMishaps = []mishap{
		{"redis mute", func(m *mix) func() {
			m.must(m.r.Mute())
			return func() { m.must(m.r.Unmute()) }
		}},
		{"scripts flushed", func(m *mix) func() {
			m.must(m.r.DoAll("SCRIPT", "FLUSH"))
			return func() {}
		}},
		{"subscriptions cut", func(m *mix) func() {
			m.must(m.r.DoAll("CLIENT", "KILL", "TYPE", "pubsub"))
			return func() {}
		}},
		{"connections cut", func(m *mix) func() {
			m.must(m.r.DoAll("CLIENT", "KILL", "TYPE", "normal"))
			return func() {}
		}},
	}
	peopleMishaps = []mishap{
		{"leave", func(m *mix) func() {
			p := m.person()
			p.Leave()
			return p.Return
		}},
		{"move", func(m *mix) func() {
			m.person().Move(m.dice.IntN(len(m.gateways)))
			return func() {}
		}},
	}
)

func (m *mix) gateway() *Gateway { return m.gateways[m.dice.IntN(len(m.gateways))] }
func (m *mix) person() *Person   { return m.ledger.people[m.dice.IntN(len(m.ledger.people))] }

// What only some kinds of Redis can suffer, and may lose messages by.
var (
	flushed = mishap{"flushed", func(m *mix) func() {
		m.must(m.r.FlushAll())
		return func() {}
	}}
	failover = mishap{"failover", func(m *mix) func() {
		m.away = true
		masters, err := m.r.Masters()
		m.must(err)
		old := masters[m.dice.IntN(len(masters))]
		old.Kill()
		return func() {
			if m.r.Kind == Sentinel {
				_, err := m.r.WaitFailover(old.Addr, time.Minute)
				m.must(err)
			} else {
				m.must(m.r.WaitPromoted(m.r.partner(old), time.Minute))
			}
			m.must(old.Restart())
			m.must(Poll(time.Minute, m.r.replicated))
		}
	}}
	slotMoved = mishap{"slot moved", func(m *mix) func() {
		m.must(m.r.MoveSlot(m.keyOf(m.person().Name)))
		return func() {}
	}}
)

// partner is the other of two nodes of which one is the master and one the replica.
func (r *Redis) partner(n *RedisNode) *RedisNode {
	return r.Nodes[(slices.Index(r.Nodes, n)+len(r.Nodes)/2)%len(r.Nodes)]
}

// replicated returns nil when every server but the masters has all that its master has: until then another failover would take more
// than a tail.
func (r *Redis) replicated() error {
	masters := 0
	for _, n := range r.Nodes {
		info, err := n.info("replication")
		switch {
		case err != nil:
			return err
		case info["role"] == "master":
			masters++
		case info["master_link_status"] != "up":
			return fmt.Errorf("%s has no link to its master", n.Addr)
		}
	}
	if want := map[Kind]int{Sentinel: 1, Cluster: len(r.Nodes) / 2}[r.Kind]; masters != want {
		return fmt.Errorf("there are %d masters, want %d", masters, want)
	}
	if r.Kind == Sentinel {
		return r.sentinelsHearAll()
	}
	return r.clusterReady()
}

// pick begins one of these.
func (m *mix) pick(from []mishap) (name string, end func()) {
	one := from[m.dice.IntN(len(from))]
	return one.name, one.begin(m)
}

// Whatever happens, in whatever order, and two at a time: nothing is lost but what is announced, and that only where Redis loses it,
// nothing comes twice, nobody is seen offline who is there. The time is shared by the kinds of Redis.
func TestFaultMix(t *testing.T) {
	kept := []string{"--appendonly", "yes", "--appendfsync", "always"}
	// What a Redis may cost that loses a tail, or everything.
	less, empty := []Fault{LostAnnounced, PresenceForgotten}, []Fault{LostAnnounced, PresenceForgotten, FalseOffline}
	settings := map[string]struct {
		start   func(testing.TB, ...string) *Redis
		args    []string
		single  bool
		flags   []string
		mishaps []mishap // the first one happens first
		may     []Fault
	}{
		"kept":     {StartRedis, kept, true, nil, slices.Concat(singleMishaps, redisMishaps), nil},
		"lossy":    {StartRedis, nil, true, nil, slices.Concat([]mishap{killed}, singleMishaps, redisMishaps), empty},
		"sentinel": {StartSentinel, nil, false, nil, slices.Concat([]mishap{failover}, redisMishaps), less},
		"cluster":  {StartClusterWithReplicas, nil, false, nil, slices.Concat([]mishap{failover, slotMoved}, redisMishaps), less},
		// Without healing: what an emptied Redis lost would come again when it is killed soon after, behind what is newer
		// (docs/delivery.md).
		"emptied": {StartRedis, nil, true, []string{"--cluster.heal=0"}, slices.Concat([]mishap{flushed}, singleMishaps, redisMishaps), empty},
	}
	for name, tc := range settings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, m := tc.start(t, tc.args...), &mix{}
			if tc.single {
				m.wire = StartWire(t, r.Nodes[0].Addr)
				r = r.Through(m.wire)
			}
			m.trial = try(t, r, 3, slices.Concat(swift, tc.flags, []string{"--drain.delay=0", "--drain.window=500ms"})...)
			m.dice = m.trial.dice()
			m.keeps = len(tc.may) == 0
			m.ledger.Forgetful = slices.Contains(tc.may, FalseOffline)
			m.people(8, 30)
			happened := make(Counts)
			until := time.Now().Add(*chaosFor / time.Duration(len(settings)))
			n := 0
			for ; n == 0 || n < *chaosFaults && time.Now().Before(until); n++ {
				m.one(n, tc.mishaps, happened)
				m.shown(m.dice.IntN(80))
			}
			m.note("%d faults%s", n, textOf(happened))
			m.dust()
			m.done(tc.may...)
		})
	}
}

// one lets one to three things happen at a time.
func (m *mix) one(n int, ofRedis []mishap, happened Counts) {
	m.away = false
	var names []string
	var ends []func()
	redis := 0.5
	if n == 0 {
		ofRedis, redis = ofRedis[:1], 1
	}
	// People and Redis come back before a gateway does, which needs Redis to start.
	for _, kind := range []struct {
		of     []mishap
		chance float64
	}{{peopleMishaps, 0.3}, {ofRedis, redis}, {gatewayMishaps, 0.5}} {
		if m.dice.Float64() < kind.chance {
			name, end := m.pick(kind.of)
			names, ends = append(names, name), append(ends, end)
			happened[name]++
			lasts(time.Duration(m.dice.Int64N(int64(300 * time.Millisecond))))
		}
	}
	if m.dice.IntN(3) == 0 {
		lasts(time.Duration(m.dice.Int64N(int64(3 * time.Second))))
	}
	began := time.Now()
	for _, end := range ends {
		end()
	}
	m.Logf("%s %v, over after %v", clock(began), names, time.Since(began).Round(time.Millisecond))
}
