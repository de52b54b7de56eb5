//go:build !race

package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// kill -9, again and again. Whoever was there resumes elsewhere.
func TestFaultKilledGateways(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t), 3, swift...)
	f.keeps = true
	dice := f.dice()
	f.people(8, scaled(30.0, 60))
	for range *chaosKills {
		g := f.gateways[dice.IntN(len(f.gateways))]
		g.Kill()
		f.shown(20)
		f.revive(g)
		f.shown(20)
	}
	n := float64(*chaosKills)
	f.note("%.0f kills: the rate of any failure is below %.2g", n, 3/n)
	f.done()
}

// A gateway stands still for longer than its lease and its reaping, and runs on. Patient people wait for it and are sent away
// when it has learned what it lost; the others have gone by themselves.
func TestFaultPausedGateway(t *testing.T) {
	for name, patience := range map[string]time.Duration{"patient people": time.Minute, "impatient people": time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := try(t, StartRedis(t), 2, scaled(swift, unhurried)...)
			f.ledger.Patience = patience
			f.people(6, 30)
			for _, pause := range scaled([]time.Duration{4 * time.Second}, []time.Duration{5 * time.Second, 20 * time.Second}) {
				f.gateways[0].Pause()
				lasts(pause)
				f.gateways[0].Resume()
				f.shown(100)
			}
			if patience > time.Second {
				// A heartbeat, and the second over which the closes are spread; the rest is for a busy machine.
				wantWithin(t, 2*Deadline, func() bool { return f.ledger.Check().Ends[4004] >= 3 })
			}
			f.done()
		})
	}
}

// A gateway dies in the very moment in which Redis has stored a message and its answer is on the way. The sender repeats it
// elsewhere: it gets the answer it would have had, and there is one copy.
func TestFaultKilledBetweenAppendAndAck(t *testing.T) {
	t.Parallel()
	r := StartRedis(t)
	w := StartWire(t, r.Nodes[0].Addr)
	f := try(t, r, 1, swift...) // b, the last to die
	a := StartGateway(t, r.Through(w), Options{Name: "doomed", Flags: swift})
	f.ledger.urls = append(f.ledger.urls, a.WS())
	bob, alice := f.ledger.Join("bob"), f.ledger.Join("alice") // in turn: bob at b, alice at the doomed one
	say := func(n int) {
		t.Helper()
		alice.Talk(Talk{To: []string{"bob"}, Count: 1})
		wantWithin(t, 4*Deadline, func() bool { return alice.open() == 0 && len(alice.Record().Sent) == n })
	}
	say(1) // from now on Redis knows the script
	n := scaled(5, 100)
	for i := 2; i < 2+n; i++ {
		id := "alice-" + strconv.Itoa(i)
		var copies int
		var epoch string
		w.CutAfter(`"id":"`+id+`"`, func() {
			a.Kill()
			copies, epoch = f.copies("bob", id)
		})
		say(i)
		if copies != 1 {
			t.Errorf("%d copies of message %d were stored when the gateway died", copies, i)
		}
		m := alice.Record().Sent[i-1]
		if copies, _ := f.copies("bob", m.ID); copies != 1 || len(m.Tries) < 2 || len(m.Acks) != 1 {
			t.Errorf("message %d: %d copies, sent %d times, acknowledged %v", i, copies, len(m.Tries), m.Acks)
		}
		if want := (Position{epoch, uint64(i)}); len(m.Acks) == 1 && m.Acks[0].Pos != want {
			t.Errorf("message %d was acknowledged at %v, and is stored at %v", i, m.Acks[0].Pos, want)
		}
		w.Release()
		w.Reset()
		f.revive(a)
		alice.Move(1)
		f.must(Poll(2*Deadline, func() error { return errors.Join(alice.at(a.WS()), bob.present()) }))
	}
	f.note("%d gateways killed between append and ack", n)
	f.done()
}

// at returns nil when the person is registered at a gateway.
func (p *Person) at(url string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.here || p.ledger.urls[p.gateway] != url {
		return errors.New(p.Name + " is elsewhere")
	}
	return nil
}

// copies counts the stored copies of a message, and returns the epoch of the log.
func (f *trial) copies(user, id string) (n int, epoch string) {
	f.Helper()
	ctx := context.Background()
	streams, err := f.r.Client().Keys(ctx, "cg:*:s:u:"+user).Result()
	f.must(err)
	for _, stream := range streams {
		entries, err := f.r.Client().XRange(ctx, stream, "-", "+").Result()
		f.must(err)
		for _, e := range entries {
			if strings.Contains(fmt.Sprint(e.Values), `"id":"`+id+`"`) {
				n++
			}
		}
		head, err := f.r.Client().HGet(ctx, strings.Replace(stream, ":s:", ":l:", 1), "h").Result()
		f.must(err)
		epoch, _, _ = strings.Cut(head, " ")
	}
	return n, epoch
}

// A phone hops between two gateways, and each new connection overtakes the end of the one before, in whichever way it ends.
// Nobody erases the newest; nothing is left of the others.
func TestFaultHoppingUser(t *testing.T) {
	t.Parallel()
	f := try(t, StartRedis(t), 2, append(slices.Clone(swift), "--cluster.grace=1s")...)
	f.people(2, 30)
	dice := f.dice()
	var last *Client
	for i := range scaled(200, 1000) {
		next := Connect(t, f.gateways[i%2].WS(), "hopper", "deviceId", "phone")
		if last != nil {
			switch dice.IntN(3) {
			case 0:
				last.Cut()
			case 1:
				_ = last.Close() // the gateway may be faster
			}
			if _, err := last.WaitEnd(2 * Deadline); err != nil {
				t.Fatal(err)
			}
		}
		last = next
	}
	asker := Connect(t, f.gateways[0].WS(), "asker")
	wantState := func(state string, devices int) {
		t.Helper()
		wantWithin(t, 4*Deadline, func() bool {
			states, err := asker.Presence("hopper")
			return err == nil && states["hopper"].State == state && states["hopper"].Devices == devices && states["hopper"].Version != ""
		})
	}
	wantState("online", 1)
	id, err := asker.Send("hopper", "there?", "")
	f.must(err)
	if ack, err := asker.Settle(id, Deadline); err != nil || ack.Status != "routed" || ack.DeviceCount() != 1 {
		t.Errorf("%v, %v: want it routed to one device", ack, err)
	}
	if got, err := last.Next("message", Deadline); err != nil || got.ID != id {
		t.Errorf("%v, %v: the last connection got something else", got, err)
	}
	last.Cut()
	wantState("offline", 0)
	for _, kind := range []string{"c", "h"} {
		left, err := f.r.Client().Keys(context.Background(), "cg:*:"+kind+":u:hopper").Result()
		if err != nil || len(left) > 0 {
			t.Errorf("ghosts: %v, %v", left, err)
		}
	}
	f.done()
}
