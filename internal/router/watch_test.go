//go:build !secondpass

package router

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// Alice watches bob, and is told each change above what she knows, once and in order, however often and late it comes.
func TestAWatcherIsToldEachVersionOnce(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	b.watch(alice, a, "bob", "offline e1.2")
	for _, s := range []string{"online e1.1", "offline e1.2", "online e1.3", "online e1.3", "offline e1.4", "online e1.3", "online e1.7"} {
		b.says("bob", s)
	}
	b.says("carol", "online e1.1") // whom nobody watches
	b.wantTold(alice, "bob", "online e1.3", "offline e1.4", "online e1.7")
	b.wantDoubt(false)
}

// Changes arrive while the answer is on its way. What is above it comes behind it, what is not doesn't.
func TestNoChangeFallsBetweenTheAnswerAndThePushes(t *testing.T) {
	for name, tc := range map[string]struct {
		answered string
		want     []string
	}{
		"older than all":  {"offline e1.2", []string{"offline e1.4"}},
		"in between":      {"online e1.3", []string{"offline e1.4"}},
		"the last":        {"offline e1.4", nil},
		"newer than they": {"online e1.5", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			alice, a := b.watcher("alice")
			dave, d := b.watcher("dave")
			b.watch(dave, d, "bob", "offline e1.2")
			w := NewWatch("bob", a.conn)
			b.collect([]*Watch{w})
			b.says("bob", "online e1.3")
			b.says("bob", "offline e1.4")
			b.wantTold(alice, "bob")
			b.answered(w, tc.answered)
			b.wantTold(alice, "bob", tc.want...)
			b.says("bob", "online e1.5")
			if tc.answered != "online e1.5" {
				tc.want = append(tc.want, "online e1.5")
			}
			b.wantTold(alice, "bob", tc.want...)
			// To the other, what somebody reads is a change as any.
			b.wantTold(dave, "bob", "online e1.3", "offline e1.4", "online e1.5")
			b.wantDoubt(false)
		})
	}
}

// The first to watch bob has no known version to compare with. What comes before the answer is looked up.
func TestWhatComesBeforeTheFirstAnswerIsRead(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	w := NewWatch("bob", a.conn)
	b.collect([]*Watch{w})
	b.says("bob", "online e1.3")
	b.answered(w, "offline e1.2")
	b.wantTold(alice, "bob")
	b.readState("bob", "online e1.3")
	b.wantTold(alice, "bob", "online e1.3")
	b.wantDoubt(false)
}

// A word of another epoch may be a late one of the time before, or news. Redis is asked, and what it says is told once.
func TestAnotherEpochIsReadAndNotBelieved(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	b.watch(alice, a, "bob", "online e1.1")
	b.says("bob", "offline e0.8")
	b.wantTold(alice, "bob")
	b.readState("bob", "online e1.1") // it was late
	b.wantTold(alice, "bob")
	b.says("bob", "offline e2.2")
	b.says("bob", "online e2.3")
	b.readState("bob", "offline e2.2") // the read was before the second
	b.wantTold(alice, "bob", "offline e2.2")
	b.readState("bob", "online e2.3")
	b.says("bob", "offline e1.2")
	b.readState("bob", "online e2.3")
	b.says("bob", "offline e2.4")
	b.wantTold(alice, "bob", "offline e2.2", "online e2.3", "offline e2.4")
	b.wantDoubt(false)
}

// While a read is under way news come by the channel. The read may be older, and changes nothing before it is repeated.
func TestAReadThatWasOvertakenIsRepeated(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	b.watch(alice, a, "bob", "online e1.1")
	b.check()
	b.says("bob", "offline e1.2")
	b.says("bob", "online e1.3")
	b.readState("bob", "offline e1.2")
	b.readState("bob", "online e1.3")
	b.wantTold(alice, "bob", "offline e1.2", "online e1.3")
	b.check()
	b.says("bob", "offline e1.4")
	b.readState("bob", "offline e9.9") // a FLUSHALL between the read and the word, say
	b.wantTold(alice, "bob", "offline e1.2", "online e1.3", "offline e1.4")
	b.readState("bob", "online e9.9")
	b.wantTold(alice, "bob", "offline e1.2", "online e1.3", "offline e1.4", "online e9.9")
	b.wantDoubt(false)
}

// One answer has the states of two users, both of whom were overtaken by news and are in doubt again by then. Neither is told what he was
// before, whoever comes first in the answer: that the first must be read again says nothing of the second.
func TestAnOvertakenAnswerIsJudgedAsAWhole(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	users := []protocol.UserID{"bob", "carol"}
	answer := func(s string) {
		t.Helper()
		b.readStates(state(t, users[0], s), state(t, users[1], s))
	}
	for _, u := range users {
		b.watch(alice, a, u, "online e1.1")
	}
	b.check()
	for _, u := range users {
		b.says(u, "offline e1.2")
		b.says(u, "online e1.3")
	}
	b.check() // while the states of before are on their way
	answer("offline e1.2")
	answer("online e1.3")
	for _, u := range users {
		b.wantTold(alice, u, "offline e1.2", "online e1.3")
	}
	b.wantDoubt(false)
}

// A failover has forgotten changes that were told. What is true now is told if it differs, and without a version that came before.
func TestWhatRedisForgotIsTakenBackWithoutAVersion(t *testing.T) {
	for name, tc := range map[string]struct {
		known, read string
		want        []string
	}{
		"the last change":      {"online e1.5", "offline e1.4", []string{"offline"}},
		"two changes":          {"offline e1.6", "offline e1.4", nil},
		"nothing":              {"offline e1.6", "offline e1.6", nil},
		"all, and he is there": {"online e1.5", "online e2.1", []string{"online e2.1"}},
		"all, and he was gone": {"offline e1.6", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			alice, a := b.watcher("alice")
			b.watch(alice, a, "bob", tc.known)
			b.check()
			b.readState("bob", tc.read)
			b.wantTold(alice, "bob", tc.want...)
			// The next change is of another history, so of another epoch.
			b.says("bob", "online e3.7")
			b.readState("bob", "online e3.7")
			b.wantTold(alice, "bob", append(tc.want, "online e3.7")...)
			b.wantDoubt(false)
		})
	}
}

// Redis has lost the state of somebody who was online. For some pulses his gateway may enter him again: then he was never away. If it
// doesn't he is gone, though no script will ever say so.
func TestWhoMissesHisStateIsGivenTime(t *testing.T) {
	for name, back := range map[string]bool{"he is entered again": true, "he is gone": false} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			alice, a := b.watcher("alice")
			b.watch(alice, a, "bob", "online e1.5")
			b.pulse(0, "none")
			b.check()
			for range missingReads {
				b.readState("bob", "")
				b.wantTold(alice, "bob")
				b.wantDoubt(false) // nothing is read between pulses
				b.pulse(0, "none")
			}
			want := "offline"
			if back {
				b.readState("bob", "online e2.1")
				want = "online e2.1"
			} else {
				b.readState("bob", "")
			}
			b.pulse(0, "none")
			b.wantTold(alice, "bob", want)
			b.wantDoubt(false)
		})
	}
}

// Nobody has ever seen bob. Then he comes.
func TestAUserNobodyKnowsCanBeWatched(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	b.watch(alice, a, "bob", "")
	b.says("bob", "online e1.1")
	b.readState("bob", "online e1.1")
	b.says("bob", "offline e1.2")
	b.wantTold(alice, "bob", "online e1.1", "offline e1.2")
}

// A lost word is missed by its number, a word that can't be read counts as lost, and after both all states are read.
func TestALostWordIsMissed(t *testing.T) {
	for name, lose := range map[string]func(b *bench){
		"by the next one":   func(b *bench) { b.open(fmt.Sprintf("\x01s%d\ncarol\x1fonline\x1fe1\x1f1\x1f1", b.number+2)) },
		"by a message":      func(b *bench) { b.open(envelopeOf(b.number + 2)) },
		"by a pulse":        func(b *bench) { b.open(fmt.Sprintf("\x01p%d 0 none", b.number+1)) },
		"by Redis itself":   func(b *bench) { b.pulse(b.number+1, "none"); b.pulse(b.number+1, "none") },
		"a new history":     func(b *bench) { b.pulse(b.number, "other") },
		"a subscription":    func(b *bench) { b.do(command{kind: commandCheck}) },
		"held again":        func(b *bench) { b.do(command{kind: commandStands, address: "w:bob"}) },
		"of another format": func(b *bench) { b.open("\x01sbob\x1foffline\x1fe1\x1f4\x1f1") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			alice, a := b.watcher("alice")
			b.pulse(0, "none")
			b.watch(alice, a, "bob", "online e1.3")
			b.says("bob", "offline e1.4")
			b.wantDoubt(false)
			lose(b)
			b.readState("bob", "online e1.5")
			b.wantTold(alice, "bob", "offline e1.4", "online e1.5")
		})
	}
}

// More users than one read asks for are read one batch after the other, all of them.
func TestManyStatesAreReadInBatches(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	const n = 3*checkBatch + 5
	for i := range n {
		b.watch(alice, a, protocol.UserID("user"+strconv.Itoa(i)), "online e1.1")
	}
	b.check()
	reads := 0
	for b.deliverer.reading {
		cmd := <-b.commands
		if cmd.kind != commandStates {
			continue
		}
		reads++
		for i := range cmd.states {
			cmd.states[i] = state(t, cmd.states[i].User, "offline e1.2")
		}
		if len(cmd.states) > checkBatch {
			t.Errorf("%d states in one read", len(cmd.states))
		}
		b.do(cmd)
	}
	if reads != 4 {
		t.Errorf("%d reads, want 4", reads)
	}
	for i := range n {
		b.wantTold(alice, protocol.UserID("user"+strconv.Itoa(i)), "offline e1.2")
	}
}

// What changes together is told together: a frame for each client, and each change of one user in it once.
func TestChangesThatComeTogetherShareAFrame(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	dave, d := b.watcher("dave")
	for _, u := range []protocol.UserID{"bob", "carol", "erin"} {
		b.watch(alice, a, u, "offline e1.2")
	}
	b.watch(dave, d, "bob", "offline e1.2")
	for i, s := range []struct {
		user protocol.UserID
		s    string
	}{{"bob", "online e1.3"}, {"carol", "online e1.3"}, {"bob", "offline e1.4"}, {"erin", "online e1.3"}} {
		x := state(t, s.user, s.s)
		b.open(fmt.Sprintf("\x01s%d\n%s\x1f%s\x1f%s\x1f%d\x1f%d", i+1, s.user, x.State, x.Epoch, x.N, x.Since))
	}
	b.wantTold(alice, "bob", "online e1.3", "offline e1.4")
	b.wantTold(alice, "carol", "online e1.3")
	b.wantTold(alice, "erin", "online e1.3")
	b.wantTold(dave, "bob", "online e1.3", "offline e1.4")
	for c, want := range map[*client]int{alice: 2, dave: 2} {
		if n := len(c.Left("presence")); n != want {
			t.Errorf("%s got %d frames, want %d\n%s", c.Name, n, want, c.Story(9))
		}
	}
}

// Alice asks again for what she watches already. Nothing overtakes the answer, and behind it come only news.
func TestWatchingAgainIsAnsweredInOrder(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	w := b.watch(alice, a, "bob", "offline e1.2")
	x := state(t, "bob", "online e1.3")
	b.open(fmt.Sprintf("\x01s1\nbob\x1f%s\x1f%s\x1f%d\x1f7", x.State, x.Epoch, x.N))
	b.collect([]*Watch{w}) // what was noted is told before
	b.says("bob", "offline e1.4")
	b.says("bob", "online e1.5")
	b.wantTold(alice, "bob", "online e1.3")
	b.answered(w, "offline e1.4")
	b.wantTold(alice, "bob", "online e1.3", "online e1.5")

	// Redis doesn't answer the next time: she is where she was.
	b.collect([]*Watch{w})
	b.says("bob", "offline e1.6")
	b.tell([]*Watch{w}, nil)
	b.says("bob", "online e1.7")
	b.wantTold(alice, "bob", "online e1.3", "online e1.5", "offline e1.6", "online e1.7")
	if n := b.g.router.Stats().Watches; n != 1 {
		t.Errorf("%d watches", n)
	}
}

// Whoever unwatches is told nothing more, not even what was noted; the others are.
func TestNothingIsToldBehindTheEndOfAWatch(t *testing.T) {
	b := newBench(t)
	alice, a := b.watcher("alice")
	dave, d := b.watcher("dave")
	one, two := b.watch(alice, a, "bob", "offline e1.2"), b.watch(dave, d, "bob", "offline e1.2")
	b.open("\x01s1\nbob\x1fonline\x1fe1\x1f3\x1f7") // noted, and told before the watch ends
	b.unwatch([]*Watch{one})
	a.conn.Send(protocol.AppendHeartbeat(nil, 1, false)) // the answer
	b.flush()
	told, err1 := alice.Next("presence", patience)
	answer, err2 := alice.Next("heartbeat", patience)
	if err := errors.Join(err1, err2); err != nil || !told.At.Before(answer.At) {
		t.Errorf("told at %v, the answer came at %v (%v)", told.At, answer.At, err)
	}
	b.unwatch([]*Watch{one, NewWatch("carol", a.conn)}) // twice, and one that never was
	b.says("bob", "offline e1.4")
	b.wantTold(alice, "bob", "online e1.3")
	b.wantTold(dave, "bob", "online e1.3", "offline e1.4")
	b.check()
	b.unwatch([]*Watch{two})
	if len(b.watched)+len(b.doubted)+len(b.deliverer.missing) != 0 || b.g.router.Stats().Watches != 0 {
		t.Errorf("left: %v, %v, %v, %d watches", b.watched, b.doubted, b.deliverer.missing, b.g.router.Stats().Watches)
	}
	b.readState("bob", "online e1.5") // for nobody
	b.wantTold(dave, "bob", "online e1.3", "offline e1.4")
}

// The watches of one connection are told through real gateways; see also the property test beside.
func TestStatesComeThroughEveryRedis(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		quick := func(s *settings) { s.registry.Grace = 0 }
		a, b := net.gateway("a", quick), net.gateway("b", quick)
		alice := a.connect("alice")
		a.watch(alice, "bob", "carol", "alice")
		wantTold := func(user, want string) {
			t.Helper()
			eventually(t, "alice is told of "+user+" "+want, func() bool {
				var got []string
				for _, s := range alice.Told(user) {
					_, n, _ := s.Position()
					got = append(got, fmt.Sprintf("%s.%d", s.State, n))
				}
				return strings.Join(got, " ") == want
			})
		}
		bob := b.connect("bob")
		wantTold("bob", "online.1") // read, since nobody knew him: what follows would be read with it
		bob.leave(b)
		b.connect("carol")
		wantTold("bob", "online.1 offline.2")
		wantTold("carol", "online.1")
		wantTold("alice", "")
		if n := a.router.Stats(); n.Told != 3 || n.Watches != 3 {
			t.Errorf("%d states told, %d watches", n.Told, n.Watches)
		}
	})
}
