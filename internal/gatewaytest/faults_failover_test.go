//go:build !race

package gatewaytest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The master dies when its replicas have everything, while some are connected. Nobody is said to have gone for that; who came before and goes after it
// has his one end, and what was delivered to the sink on the old master comes again at most with its id.
func TestFaultEventsOverAFailover(t *testing.T) {
	t.Parallel()
	to := StartReceiver(t)
	f := try(t, StartSentinel(t), 2, append(slices.Clone(swift), sinksFile(t, webhookSink(to)))...)
	for round := range scaled(1, 10) {
		var clients []*Client
		for i := range scaled(20, 200) {
			clients = append(clients, takeSeat(t, f.gateways[i%2], fmt.Sprintf("user%d.%d", round, i), "hall"))
		}
		for _, c := range clients[:len(clients)/2] {
			c.Cut()
		}
		ended := func(want int) error {
			events, _, err := to.Once()
			n := 0
			for _, e := range events {
				if e.Type == "disconnect" && strings.HasPrefix(e.User, fmt.Sprintf("user%d.", round)) {
					n++
				}
			}
			if err != nil || n != want {
				return fmt.Errorf("%d disconnects came, want %d: %v", n, want, err)
			}
			return nil
		}
		f.must(Poll(time.Minute, func() error { return ended(len(clients) / 2) }))
		f.dust() // who was cut is offline
		before, err := f.r.Masters()
		f.must(err)
		caughtUp, err := replicasHave(before[0])
		f.must(err)
		f.must(Poll(20*time.Second, caughtUp))
		before[0].Kill()
		killed := time.Now()
		_, err = f.r.WaitFailover(before[0].Addr, time.Minute)
		f.must(err)
		for _, c := range clients[len(clients)/2:] {
			if _, err := c.Heartbeat(Deadline); err != nil {
				t.Errorf("%v\n%s", err, c.Story(3))
			}
		}
		takeSeat(t, f.gateways[0], fmt.Sprintf("late%d", round), "hall").Cut()
		f.must(Poll(time.Minute, func() error {
			if slices.ContainsFunc(to.Events(), func(e Received) bool { return e.Type == "connect" && e.User == fmt.Sprintf("late%d", round) }) {
				return nil
			}
			return fmt.Errorf("no event after the failover")
		}))
		t.Logf("events again %v after the kill", time.Since(killed).Round(10*time.Millisecond))
		f.must(ended(len(clients) / 2)) // nobody else is gone
		for _, c := range clients[len(clients)/2:] {
			f.must(c.Close())
		}
		f.must(Poll(time.Minute, func() error { return ended(len(clients)) }))
		f.must(before[0].Restart())
		f.must(Poll(time.Minute, f.r.sentinelsHearAll))
	}
	all, again := wantOneEnd(t, f.r, to)
	t.Logf("%d events, %d of them twice", all, again)
}

// The master dies, and the replica that takes its place lacks what was acknowledged last. With healing the gateways, which
// are all alive, store it again; without, everybody who misses something is told.
func TestFaultSentinelFailover(t *testing.T) {
	for name, heal := range map[string]string{"healing": "10s", "not healing": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := try(t, StartSentinel(t), 2, append([]string{"--cluster.heal=" + heal}, swift...)...)
			f.people(6, 60)
			// Whoever is connected has everything before it can be lost. These are not.
			away := f.ledger.people[:3]
			for range scaled(1, 5) {
				for _, p := range away {
					p.Leave()
				}
				f.shown(30)
				before, err := f.r.Masters()
				f.must(err)
				caughtUp, err := replicasHave(before[0])
				f.must(err)
				f.must(Poll(20*time.Second, caughtUp))
				// The replicas lose their link, so what is acknowledged from now on dies with the master.
				_, err = before[0].Do("ACL", "SETUSER", "default", "-psync", "-sync")
				f.must(err)
				_, err = before[0].Do("CLIENT", "KILL", "TYPE", "replica")
				f.must(err)
				f.shown(60)
				before[0].Kill()
				killed := time.Now()
				_, err = f.r.WaitFailover(before[0].Addr, time.Minute)
				f.must(err)
				f.note("promoted after %v", time.Since(killed).Round(time.Millisecond))
				back := time.Now()
				for _, p := range away {
					p.Return()
				}
				f.shown(100)
				f.firstAck(back)
				f.must(before[0].Restart())
				f.must(Poll(time.Minute, f.r.sentinelsHearAll))
			}
			f.dust()
			if heal == "0" {
				v := f.done(LostAnnounced, PresenceForgotten)
				f.note("lost %d", v.Count(LostAnnounced))
				if v.Count(LostAnnounced) == 0 {
					t.Error("nothing was lost: that proves nothing")
				}
				return
			}
			f.done(PresenceForgotten)
		})
	}
}

// A server is promoted beside the master, which stays one and keeps every connection of the gateways: nobody tells it. It goes on
// acknowledging until the gateways' check finds that the Sentinels name the other. What was acknowledged meanwhile is sent again there,
// subscriptions are made anew, and the old one gets nothing any more.
func TestFaultDemotedMaster(t *testing.T) {
	for i := range scaled(1, 5) {
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			t.Parallel()
			f := try(t, StartSentinel(t), 2, unhurried...)
			f.people(6, 30)
			demoted, named := f.r.Nodes[0], f.r.Nodes[1]
			// Its first copy of everything takes a moment, and without it this would be another fault.
			f.must(Poll(20*time.Second, func() error {
				if n, all := len(named.log(t, "user0")), len(demoted.log(t, "user0")); n == 0 || n < all-10 {
					return fmt.Errorf("the replica has %d of %d", n, all)
				}
				return nil
			}))
			// While no Sentinel watches anything: one that knew both would make one the other's replica again.
			f.must(f.r.Name("", f.r.Sentinels...))
			_, err := named.Do("REPLICAOF", "NO", "ONE")
			f.must(err)
			frozen := len(named.log(t, "user0"))
			f.must(f.r.Name(named.Addr, f.r.Sentinels...))
			began := time.Now()
			f.must(Poll(20*time.Second, func() error {
				if len(named.log(t, "user0")) == frozen {
					return fmt.Errorf("nothing is written to %s", named.Addr)
				}
				// Each gateway looks for itself: the last one counts.
				heard, err := demoted.Do("PUBSUB", "CHANNELS", "cg:*")
				if channels, _ := heard.([]any); err == nil && len(channels) > 0 {
					err = fmt.Errorf("%v are still heard on %s", channels, demoted.Addr)
				}
				return err
			}))
			found := time.Since(began)
			f.shown(100)
			after := len(demoted.log(t, "user0"))
			f.note("found after %v, %d messages for user0 on the wrong server", found.Round(time.Millisecond), after-frozen)
			if found > 5*time.Second {
				t.Errorf("found after %v", found)
			}
			f.shown(100)
			f.dust()
			v := f.done(PresenceForgotten)
			if n := len(demoted.log(t, "user0")); n != after {
				t.Errorf("the demoted master got %d more messages", n-after)
			}
			if after-frozen < 1 {
				t.Error("nothing was acknowledged on the wrong server: that proves nothing")
			}
			// Everybody hears of the new epoch, and what he has that is not in it.
			if people := len(f.ledger.people); v.Gaps["history"] != people || v.Gaps["ahead"] == 0 {
				t.Errorf("%d people were told of %v", people, v.Gaps)
			}
			for _, g := range f.gateways {
				if n := strings.Count(g.Log(), "dropped what led elsewhere"); n != 1 {
					t.Errorf("%s warned %d times", g.Name, n)
				}
			}
		})
	}
}

// On Redis Cluster the slots of people move to other masters, and then a master dies and its replica takes over. Sends may be refused
// meanwhile, but what is taken arrives: no subscription is left where nothing is published any more.
func TestFaultRedisCluster(t *testing.T) {
	t.Parallel()
	f := try(t, StartClusterWithReplicas(t), 2, scaled(swift, unhurried)...)
	f.onlyPulses()
	f.people(6, 30)
	for _, p := range f.ledger.people[:scaled(2, 6)] {
		f.must(f.r.MoveSlot(f.keyOf(p.Name)))
		f.shown(60)
	}
	for i := range scaled(1, 3) {
		f.r.Nodes[i].Kill()
		killed := time.Now()
		f.must(f.r.WaitPromoted(f.r.Nodes[3+i], time.Minute))
		f.note("promoted after %v", time.Since(killed).Round(time.Millisecond))
		back := time.Now()
		f.shown(100)
		f.firstAck(back)
		f.must(f.r.Nodes[i].Restart())
	}
	f.dust()
	v := f.done(PresenceForgotten)
	// Gateways hear what is published where it is published, not at the replica that their channel's master has become: else whoever
	// sends is told that nobody is there.
	for _, n := range f.r.Nodes {
		role, err := n.Do("ROLE")
		f.must(err)
		if role.([]any)[0] == "master" {
			continue
		}
		f.must(Poll(30*time.Second, func() error {
			heard, err := n.Do("PUBSUB", "SHARDCHANNELS")
			if channels := heard.([]any); err == nil && len(channels) > 0 {
				err = fmt.Errorf("%d channels are heard at the replica %s", len(channels), n.Addr)
			}
			return err
		}))
	}
	f.Logf("ack to shown: %v", v.FromAck)
	if v.FromAck.P100 > 5*time.Second {
		t.Errorf("somebody was starved for %v of what was stored", v.FromAck.P100)
	}
}

// keyOf finds the log of a user on whichever master has it.
func (f *trial) keyOf(user string) string {
	f.Helper()
	masters, err := f.r.Masters()
	f.must(err)
	for _, n := range masters {
		keys, err := n.Client().Keys(f.Context(), "cg:*:l:u:"+user).Result()
		f.must(err)
		if len(keys) > 0 {
			return keys[0]
		}
	}
	f.Fatalf("%s has no log", user)
	return ""
}
