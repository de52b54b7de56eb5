//go:build !race

package gatewaytest_test

import (
	"fmt"
	"regexp"
	"time"

	"chatgate/internal/gatewaytest"
)

// messageWork is one way of sending.
type messageWork struct {
	name  string
	args  startArgs
	flags []string // of the gateways
}

// benchMessages has its senders on gateway a and the receivers on gateway b.
func benchMessages(t *bed, w messageWork) {
	load, echoLoad := t.loads[0], t.loads[1]
	load.call(t.b, "messages.connect", messageArgs{Senders: t.gateways[0].Addr, Receivers: t.gateways[1].Addr, Count: *benchPairs}, nil)
	echoLoad.call(t.b, "messages.connect", messageArgs{Senders: t.echoAddr, Count: *benchPairs}, nil)
	var s samples
	for i := range *benchRounds {
		e := t.round(echoLoad, "messages", w.args, "")
		d := t.round(load, "messages", w.args, lastOnly(i, w.name))
		s.addRound(d, e, "a", "b", "redis")
		s.add("gateway-a-us", d.us("a"))
		s.add("gateway-b-us", d.us("b"))
		s.add("p50-us", micros(d.total.P50))
		s.add("p99-us", micros(d.total.P99))
		s.add("load-us", d.us("load 0"))
		s.add("lost", float64(d.total.Sent-d.total.Delivered))
		s.add("duplicates", float64(d.total.Repeated))
	}
	t.report.take(t.b, w.name, &s)
}

// lastOnly names the profiles of the last round: taking them disturbs.
func lastOnly(round int, name string) string {
	if round < *benchRounds-1 {
		return ""
	}
	return name
}

// heartbeatWork is a number of heartbeats a second, sent in an open loop over all connections in turn. It matters: how many refreshes
// share a call depends on it, and how often a process sleeps and is woken.
type heartbeatWork struct {
	name string
	rate int
}

// benchHeartbeats shares the heartbeats evenly between two gateways.
func benchHeartbeats(t *bed, w heartbeatWork) {
	load, echoLoad := t.loads[0], t.loads[1]
	for i, g := range t.gateways {
		load.call(t.b, "connections.connect", connectionArgs{
			Addr: g.Addr, Prefix: fmt.Sprintf("user%d-", i), Count: heartbeaters / 2, InFlight: connectors,
		}, nil)
	}
	echoLoad.call(t.b, "connections.connect", connectionArgs{Addr: t.echoAddr, Count: heartbeaters, InFlight: connectors}, nil)
	var s samples
	var sent uint64
	refreshed := t.refreshes()
	for i := range *benchRounds {
		e := t.round(echoLoad, "connections", paceArgs{w.rate}, "")
		d := t.round(load, "connections", paceArgs{w.rate}, lastOnly(i, w.name))
		s.addRound(d, e, "a", "b", "redis")
		s.add("gateway-a-us", 2*d.us("a")) // each heartbeat goes to one of the two
		s.add("gateway-b-us", 2*d.us("b"))
		sent = d.total.Sent
	}
	// A heartbeat that finds its connection's refresh still waiting adds none.
	err := gatewaytest.Poll(drainLimit, func() error {
		if now := t.refreshes() - refreshed; now < 0.95*float64(sent) {
			return fmt.Errorf("%d heartbeats refreshed presence only %.0f times", sent, now)
		}
		return nil
	})
	if err != nil {
		t.b.Fatal(err)
	}
	t.report.take(t.b, w.name, &s)
}

// refreshes sums the gateways' own counters of presence entries refreshed.
func (t *bed) refreshes() (sum float64) {
	t.b.Helper()
	for _, g := range t.gateways {
		status, page, err := g.GetInternal("/metrics")
		found := refreshedCounter.FindSubmatch(page)
		if err != nil || found == nil {
			t.b.Fatalf("/metrics of %s: status %d, %v, without the counter of refreshes", g.Name, status, err)
		}
		sum += t.parse(string(found[1]))
	}
	return sum
}

var refreshedCounter = regexp.MustCompile(`(?m)^gateway_presence_refreshed_total (\S+)$`)

// round is what was done and used between two moments of a running load, and the load's own counts at its end.
type round struct {
	wall  time.Duration
	done  float64
	use   usage
	redis redisUse
	total counted
}

// us is the processor time of processes for each thing done.
func (r round) us(processes ...string) float64 { return micros(r.use.of(processes...)) / r.done }

// round runs a load and measures while it runs. It takes profiles of the gateways under the name profiled, unless that is empty.
func (t *bed) round(load *child, kind string, args any, profiled string) round {
	t.b.Helper()
	load.call(t.b, kind+".start", args, nil)
	time.Sleep(warmUp)
	finish := t.profile(profiled, *benchRound)
	redis := t.resetRedis()
	var first, last counted
	load.call(t.b, kind+".count", nothing{}, &first)
	before := t.usage()
	time.Sleep(*benchRound)
	load.call(t.b, kind+".count", nothing{}, &last)
	after := t.usage()
	redis = t.redisUse().since(redis)
	finish()
	r := round{wall: after.at.Sub(before.at), done: float64(last.Delivered - first.Delivered), use: after.since(before), redis: redis}
	load.call(t.b, kind+".stop", nothing{}, &r.total)
	if c := r.total; !c.complete() || c.Repeated != 0 {
		t.b.Fatalf("of %d sent, %d were answered, %d arrived and %d arrived again", c.Sent, c.Answered, c.Delivered, c.Repeated)
	}
	if r.done == 0 {
		t.b.Fatal("nothing was done")
	}
	return r
}

// addRound adds what every round has: its cost in the servers, and that of the echo's round before it.
func (s *samples) addRound(d, echo round, servers ...string) {
	s.add("cpu-us", d.us(servers...))
	s.add("redis-us", d.us("redis"))
	s.add("echo-us", echo.us("echo"))
	s.add("x-echo", d.us(servers...)/echo.us("echo"))
	s.add("each/s", d.done/d.wall.Seconds())
	s.add("others-%", d.use.others(d.wall))
	s.addRedis(d.redis, d.done)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
