//go:build !race

package gatewaytest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"chatgate/internal/gatewaytest"
)

// benchConnects connects and registers one client after the other.
func benchConnects(t *bed) {
	var s samples
	t.connects(&s, t.loads[:1], slowConnects, 1)
	t.report.take(t.b, "connect/inflight=1", &s)
}

// connects opens connections to the echo, then to gateway a, and adds what each costs. The echo's, too, send a register frame and get
// an answer.
func (t *bed) connects(s *samples, loads []*child, count, inFlight int) {
	t.b.Helper()
	echo, _ := t.connectAll(loads, t.echoAddr, count, inFlight)
	finish := t.profile(t.b.Name(), 3*time.Second)
	redis := t.resetRedis()
	gateway, wall := t.connectAll(loads, t.gateways[0].Addr, count, inFlight)
	redis = t.redisUse().since(redis)
	finish()
	each := func(d time.Duration) float64 { return micros(d) / float64(count) }
	s.add("connect-us", each(gateway.of("a", "redis")))
	s.add("gateway-us", each(gateway.of("a")))
	s.add("redis-us", each(gateway.of("redis")))
	s.add("echo-connect-us", each(echo.of("echo")))
	s.add("connect-x-echo", float64(gateway.of("a", "redis"))/float64(echo.of("echo")))
	s.add("connects/s", float64(count)/wall.Seconds())
	s.add("others-%", gateway.others(wall))
	s.addRedis(redis, float64(count))
}

// connectAll has the loads share the connections, side by side.
func (t *bed) connectAll(loads []*child, addr string, count, inFlight int) (usage, time.Duration) {
	t.b.Helper()
	before := t.usage()
	var all sync.WaitGroup
	errs := make([]error, len(loads))
	for i, load := range loads {
		all.Go(func() {
			errs[i] = load.ask("connections.connect", connectionArgs{
				Addr: addr, Prefix: fmt.Sprintf("user%d-", i), Count: count / len(loads), InFlight: inFlight / len(loads),
			}, nil)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.b.Fatal(err)
	}
	after := t.usage()
	return after.since(before), after.at.Sub(before.at)
}

// benchIdle connects many clients, lets them rest, and reads the memory. The clients are in two processes, so that none comes near
// 20,000 open files with its connections to both servers.
func benchIdle(t *bed) {
	count := *benchConnections / len(t.loads) * len(t.loads)
	gateway, echo := t.gateways[0].Process, t.echo.Process
	var s samples
	begin := map[*gatewaytest.Process]float64{gateway: t.resident(gateway), echo: t.resident(echo)}
	perConnection := func(p *gatewaytest.Process) float64 { return (t.resident(p) - begin[p]) / float64(count) }
	t.connects(&s, t.loads[:], count, connectors)

	before := t.usage()
	time.Sleep(*benchSettle)
	after := t.usage()
	s.add("idle-ms/s", 1e3*after.since(before).of("a").Seconds()/after.at.Sub(before.at).Seconds())
	s.add("rss-B/conn", perConnection(gateway))
	s.add("echo-rss-B/conn", perConnection(echo))

	// What stays when the garbage of connecting is gone, as it is sooner or later: two collections, and time to give pages back.
	heap := os.DevNull
	if *benchProfiles != "" {
		heap = filepath.Join(*benchProfiles, "idle.a.rest.heap")
	}
	for range 2 {
		if err := fetch("http://"+t.gateways[0].Internal+"/debug/pprof/heap?gc=1", heap); err != nil {
			t.b.Fatal(err)
		}
	}
	t.echo.call(t.b, "collect", nothing{}, nil)
	time.Sleep(*benchSettle / 2)
	s.add("collected-B/conn", perConnection(gateway))
	s.add("echo-collected-B/conn", perConnection(echo))

	stats, err := t.gateways[0].Stats()
	if err != nil {
		t.b.Fatal(err)
	}
	if n, _ := stats["active_connections"].(float64); int(n) != count {
		t.b.Fatalf("the gateway holds %v connections, not %d", stats["active_connections"], count)
	}
	for _, load := range t.loads {
		load.call(t.b, "connections.count", nothing{}, nil) // an error when one was lost
	}
	t.report.take(t.b, "idle", &s)
}
