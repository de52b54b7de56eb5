//go:build !race

package gatewaytest

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A mishap begins, and ends with what it returned.
type mishap struct {
	name  string
	begin func(*mix) (end func())
}

// mix is three gateways and a Redis that keeps what it acknowledges, of which any may fail at any time, also one while the
// other does.
type mix struct {
	*trial
	dice *rand.Rand
	away bool // Redis is, or was a moment ago
}

// What happens to a gateway, to Redis, and to people. Nothing of it may cost a message.
var (
	gatewayMishaps = []mishap{
		{"kill", func(m *mix) func() {
			g := m.gateway()
			g.Kill()
			return func() { m.must(g.Restart()) }
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
				m.must(g.Restart())
			}
		}},
	}
	redisMishaps = []mishap{
		{"redis paused", func(m *mix) func() {
			m.away = true
			m.must(m.r.Pause())
			return func() { m.must(m.r.Resume()) }
		}},
		{"redis killed", func(m *mix) func() {
			m.away = true
			m.must(m.r.Kill())
			return func() { m.must(m.r.Restart()) }
		}},
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

// pick begins one of these.
func (m *mix) pick(from []mishap) (name string, end func()) {
	one := from[m.dice.IntN(len(from))]
	return one.name, one.begin(m)
}

// Whatever happens, in whatever order, and two at a time: nothing is lost, nothing comes twice, nobody is seen offline who is
// there.
func TestFaultMix(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t, "--appendonly", "yes", "--appendfsync", "always"), 3,
		append([]string{"--drain.delay=0", "--drain.window=500ms"}, swift...)...)
	f.keeps = true
	m := &mix{trial: f, dice: f.dice()}
	f.people(8, 30)
	happened := make(Counts)
	until := time.Now().Add(*chaosFor)
	n := 0
	for ; n < *chaosFaults && time.Now().Before(until); n++ {
		m.one(happened)
		f.shown(m.dice.IntN(40))
	}
	f.note("%d faults%s", n, textOf(happened))
	f.done()
}

// one lets one to three things happen at a time.
func (m *mix) one(happened Counts) {
	m.away = false
	var names []string
	var ends []func()
	// People and Redis come back before a gateway does, which needs Redis to start.
	for _, kind := range []struct {
		of     []mishap
		chance float64
	}{{peopleMishaps, 0.3}, {redisMishaps, 0.5}, {gatewayMishaps, 0.5}} {
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
