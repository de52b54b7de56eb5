//go:build !race

package gatewaytest

import (
	"testing"
	"time"
)

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

// On Redis Cluster the slots of people move to other masters, and then a master dies and its replica takes over.
func TestFaultRedisCluster(t *testing.T) {
	t.Parallel()
	f := try(t, StartClusterWithReplicas(t), 2, swift...)
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
	f.done(PresenceForgotten)
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
