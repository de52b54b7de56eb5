//go:build !race

package gatewaytest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The faults that a cluster must survive, each under load: people talk over real gateways while it happens, and their
// ledgers are compared afterwards. In `make test` outages are short; `make chaos` runs them at full length (scripts/chaos).
var (
	full        = flag.Bool("chaos.full", false, "faults at full length, not scaled down")
	chaosFor    = flag.Duration("chaos.for", 20*time.Second, "how long the mix of faults goes on, on all kinds of Redis together")
	chaosFaults = flag.Int("chaos.faults", 1000, "how many faults the mix has at most")
	chaosKills  = flag.Int("chaos.kills", 5, "how many gateways are killed under load, one after the other")
	chaosSeed   = flag.Uint64("chaos.seed", 0, "seed of the mix; 0: another one each time")
)

// scaled is a length of time or a number: short in `make test`, long in `make chaos`.
func scaled[T any](short, long T) T {
	if *full {
		return long
	}
	return short
}

// FullLength is for the tests outside of this package.
func FullLength() bool { return *full }

// A trial is people who talk over gateways on a Redis while something fails.
type trial struct {
	*testing.T
	r        *Redis
	gateways []*Gateway
	ledger   *Ledger
	keeps    bool // Redis loses nothing of what it acknowledged, cursors included
	notes    []string
}

// swift are gateways for people in a hurry. Their judgements come sooner than by default, unless a trial is about these.
var swift = []string{
	"--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", "--limits.connect-rate-per-ip=0", "--limits.connect-rate=0",
	"--cluster.pulse-interval=500ms", "--cluster.lease=1500ms", "--cluster.quiet=1500ms", "--cluster.reap-after=1s", "--cluster.grace=3s",
}

// unhurried are gateways that judge by default.
var unhurried = swift[:3]

// try starts gateways a, b, c, … on a Redis.
func try(t *testing.T, r *Redis, gateways int, flags ...string) *trial {
	t.Helper()
	f := &trial{T: t, r: r}
	var urls []string
	for i := range gateways {
		g := StartGateway(t, r, Options{Name: string(rune('a' + i)), Flags: flags})
		f.gateways, urls = append(f.gateways, g), append(urls, g.WS())
	}
	f.ledger = NewLedger(t, urls...)
	f.ledger.Patience, f.ledger.Heartbeat, f.ledger.Grace = 4*time.Second, 500*time.Millisecond, 4*time.Second
	if slices.Contains(flags, "--cluster.grace=3s") {
		f.ledger.Grace = 2 * time.Second
	}
	return f
}

// dust settles: whoever is falsely believed to be gone has been reaped by then, and his grace is over, so that the observer has heard.
func (f *trial) dust() { lasts(f.ledger.Grace + scaled(1500*time.Millisecond, 10*time.Second)) }

// people lets so many come, watched by an observer. Each talks to all the others and in a room, at a rate, and keeps copies of
// some of it. The first has a second device, which says little; where the trial's Redis keeps what it has, that trusts its cursor.
func (f *trial) people(n int, rate float64) {
	f.Helper()
	var coming sync.WaitGroup
	come := func(name string, fields ...any) {
		p := f.ledger.Invite(name, fields...)
		coming.Go(func() {
			if err := p.WaitPresent(startDeadline); err != nil {
				f.Error(err)
			}
		})
	}
	names := make([]string, n)
	room := func(i int) string { return "room" + strconv.Itoa(i/roomSize) }
	for i := range n {
		names[i] = "user" + strconv.Itoa(i)
		come(names[i], "rooms", []string{room(i)})
	}
	come(names[0], "deviceId", "tablet", "rooms", []string{room(0)}, "byCursor", f.keeps)
	coming.Wait()
	if f.Failed() {
		f.FailNow()
	}
	f.ledger.Watch(100 * time.Millisecond)
	if rate == 0 {
		return
	}
	for i, p := range f.ledger.people[:n] {
		to := slices.Concat(names[i+1:], names[:i], []string{roomPrefix + room(i)})
		p.Talk(Talk{To: to, Copies: 4, Rate: rate, Window: 16, Pad: 20})
	}
	f.ledger.people[n].Talk(Talk{To: []string{names[n-1], roomPrefix + room(0)}, Copies: 2, Rate: rate / 10, Window: 16})
	f.shown(5 * n)
	if f.keeps {
		f.cursors(names[0], "u:"+names[0], "r:"+room(0)+"\x1f"+names[0])
	}
}

// cursors waits until Redis knows the tablet of a user by these keys: one that it never heard of begins like a new one.
func (f *trial) cursors(user string, keys ...string) {
	f.Helper()
	for _, key := range keys {
		f.must(Poll(startDeadline, func() error {
			found, err := f.r.Client().Keys(f.Context(), "cg:*:d:"+key).Result()
			if err != nil || len(found) == 0 {
				return fmt.Errorf("%s has no cursors: %v, %v", user, found, err)
			}
			known, err := f.r.Client().HExists(f.Context(), found[0], "tablet").Result()
			if err == nil && !known {
				err = fmt.Errorf("%s has no cursor of the tablet", found[0])
			}
			return err
		}))
	}
}

// roomSize is how many are in one room.
const roomSize = 6

// everybodyOnline waits until everybody is told to be online by presence.
func (f *trial) everybodyOnline() {
	f.Helper()
	c := Connect(f, f.gateways[0].WS(), "guest")
	defer c.Cut()
	var names []string
	for _, p := range f.ledger.people {
		names = append(names, p.Name)
	}
	for some := range slices.Chunk(names, 500) {
		f.must(Poll(time.Minute, func() error {
			states, err := c.Presence(some...)
			for _, name := range some {
				if states[name].State != "online" && err == nil {
					err = fmt.Errorf("%s is %s", name, states[name].State)
				}
			}
			return err
		}))
	}
}

// shown waits until people were shown more messages.
func (f *trial) shown(more int) {
	f.Helper()
	if err := f.ledger.WaitShown(more, time.Minute); err != nil {
		f.Fatal(err)
	}
}

// must ends the trial for an error.
func (f *trial) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// revive starts a gateway again, as whatever supervises it would: where the machine has so little time that Redis' answer is late, it
// ends with 3 and is started once more.
func (f *trial) revive(g *Gateway) {
	f.Helper()
	f.must(Poll(startDeadline, func() error {
		err := g.Restart()
		if err == nil {
			return nil
		}
		if code, still := g.ExitCode(0); code != 3 || still != nil {
			return stop{err}
		}
		return err
	}))
}

func (f *trial) note(format string, args ...any) {
	f.notes = append(f.notes, fmt.Sprintf(format, args...))
}

// lasts lets time pass: the length of a fault is no waiting for something.
func lasts(d time.Duration) { <-time.After(d) }

// done ends the talk, compares the ledgers, and reports. Nothing may be broken but what this fault may break.
func (f *trial) done(may ...Fault) *Verdict {
	f.Helper()
	if err := f.ledger.Settle(time.Minute); err != nil {
		f.Error(err)
	}
	v := f.ledger.Check()
	v.Want(f, may...)
	for _, g := range f.gateways {
		if err := g.check(); err != nil {
			f.Error(err)
		}
	}
	f.Logf("%s\n%v", strings.Join(f.notes, "; "), v)
	report.add(f, v)
	return v
}

// report collects what all trials found, for the table at the end of `make chaos`.
var report reporter

type reporter struct {
	mu   sync.Mutex
	rows []string
}

func (r *reporter) add(f *trial, v *Verdict) {
	result := "ok"
	if f.Failed() {
		result = "FAILED"
	}
	r.row(fmt.Sprintf("%-44s %-6s %7d %7d %5d %5d %5d %5d %5d %5d %9v %9v  %s", strings.TrimPrefix(f.Name(), "TestFault"), result,
		v.Acked, v.Shown, v.Count(LostSilently), v.Count(LostAnnounced), v.Count(ShownTwice)+v.Count(RawDuplicate), v.Count(OutOfOrder),
		v.Count(HoleNotAnnounced), v.Count(FalseOffline)+v.Count(ToldOffline), short(v.FromAck.P100), short(v.LongestSilence()), strings.Join(f.notes, "; ")))
}

// note adds what a trial found that has no ledgers.
func (r *reporter) note(t *testing.T, note string) {
	result := "ok"
	if t.Failed() {
		result = "FAILED"
	}
	r.row(fmt.Sprintf("%-44s %-6s  %s", strings.TrimPrefix(t.Name(), "TestFault"), result, note))
}

func (r *reporter) row(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		testBinary.Cleanup(r.print)
	}
	r.rows = append(r.rows, s)
}

func (r *reporter) print() {
	if !*full {
		return
	}
	fmt.Fprintf(os.Stderr, "\n%-44s %-6s %7s %7s %5s %5s %5s %5s %5s %5s %9s %9s\n", "fault", "", "acked", "shown", "lost", "told", "twice", "order",
		"holes", "offl.", "ack-shown", "no ack")
	for _, row := range r.rows {
		fmt.Fprintln(os.Stderr, row)
	}
}

// dice are those of a trial that rolls any, told so that it can be repeated.
func (f *trial) dice() *rand.Rand {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	f.Logf("-chaos.seed=%d", seed)
	f.note("seed %d", seed)
	f.ledger.Seed = seed
	return rand.New(rand.NewPCG(seed, seed))
}
