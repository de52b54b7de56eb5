//go:build !race

package gatewaytest_test

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"
)

// presenceWork asks for many users, half of whom are there: in one frame, or in calls of the API for a thousand each.
type presenceWork struct {
	name  string
	users int
	api   bool
}

var presenceWorks = []presenceWork{{"presence/users=100", 100, false}, {"presence/users=10000", 10000, false}, {"api/presence/users=10000", 10000, true}}

// presenceAsked is how often a round asks.
const presenceAsked = 20

// benchPresence has the users on two gateways, and asks the first.
func benchPresence(t *bed, w presenceWork) {
	var connecting sync.WaitGroup
	for i, g := range t.gateways {
		connecting.Go(func() {
			t.loads[i].call(t.b, "connections.connect", connectionArgs{
				Addr: g.Addr, Prefix: fmt.Sprintf("u%d-", i), Count: w.users / 4, InFlight: connectors,
			}, nil)
		})
	}
	connecting.Wait()
	asker, err := dialWire(t.gateways[0].Addr, 1<<20)
	if err != nil {
		t.b.Fatal(err)
	}
	defer asker.nc.Close()
	if err := enter(asker, "asker"); err != nil {
		t.b.Fatal(err)
	}
	names := make([]string, w.users)
	question := []byte(`{"type":"presence","id":"p","users":[`)
	for i := range w.users {
		// Of each gateway's numbers the first half are there.
		names[i] = "u" + strconv.Itoa(i%2) + "-" + strconv.Itoa(i/2)
		question = fmt.Appendf(question, `"%s",`, names[i])
	}
	question = append(bytes.TrimSuffix(question, []byte(",")), `]}`...)
	frame := appendFrame(nil, opText, question)
	ask := func() time.Duration {
		began := time.Now()
		if w.api {
			if online := askAPI(t.b, t.gateways[0].Internal, names); online != w.users/4*2 {
				t.b.Fatalf("%d are online", online)
			}
			return time.Since(began)
		}
		if err := asker.write(frame); err != nil {
			t.b.Fatal(err)
		}
		online, told := 0, 0
		for told < w.users {
			answer, err := asker.next()
			if err != nil || !bytes.HasPrefix(answer, []byte(`{"type":"presence"`)) {
				t.b.Fatalf("%v: %.200s", err, answer)
			}
			online += bytes.Count(answer, []byte(`"state":"online"`))
			told += bytes.Count(answer, []byte(`"state":`))
		}
		if told != w.users || online != w.users/4*2 {
			t.b.Fatalf("of %d users %d are online", told, online)
		}
		return time.Since(began)
	}
	ask()
	var s samples
	for range *benchRounds {
		redis, before := t.resetRedis(), t.usage()
		took := make([]time.Duration, presenceAsked)
		for i := range took {
			took[i] = ask()
		}
		use, redis := t.usage().since(before), t.redisUse().since(redis)
		slices.Sort(took)
		s.add("p50-us", micros(took[len(took)/2]))
		s.add("max-us", micros(took[len(took)-1]))
		s.add("cpu-us", micros(use.of("a", "b", "redis"))/presenceAsked)
		s.add("redis-us", micros(use.of("redis"))/presenceAsked)
		commands := 0.0
		for _, n := range redis.calls {
			commands += n
		}
		s.add("redis-commands", commands/presenceAsked)
	}
	t.report.take(t.b, w.name, &s)
}

func presenceLines() (lines []line) {
	for _, w := range presenceWorks {
		how := "in one frame"
		if w.api {
			how = "through the API"
		}
		lines = append(lines, line{w.name, fmt.Sprintf("presence of %d users %s, half of them there", w.users, how), ""})
	}
	return lines
}
