//go:build !race

package gatewaytest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// talkOn has two talk to each other, a message every 20 ms, until the returned function is called: it tells how many there were, and the
// longest that any took to arrive.
func talkOn(t *testing.T, alice, bob *Client) (stop func() (messages int, slowest time.Duration)) {
	over, done := make(chan struct{}), make(chan struct{})
	var slowest time.Duration
	n := 0
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			began := time.Now()
			id, err := alice.Send(bob.Name, n, "")
			if err == nil {
				_, err = bob.NextOf("message", 4*Deadline, func(f Frame) bool { return f.ID == id })
			}
			if err != nil {
				t.Errorf("a neighbour: %v", err)
				return
			}
			n++
			slowest = max(slowest, time.Since(began))
		}
	}()
	return func() (int, time.Duration) {
		close(over)
		<-done
		return n, slowest
	}
}

// wantUnharmed ends the talk. A neighbour waits a second at most; a busy machine, which `make test` stands on, may add to that.
func wantUnharmed(t *testing.T, stop func() (int, time.Duration)) string {
	t.Helper()
	n, slowest := stop()
	if most := scaled(Deadline/2, time.Second); slowest > most || n == 0 {
		t.Errorf("of %d messages between neighbours the slowest took %v", n, slowest)
	}
	return fmt.Sprintf("%d messages between neighbours, the slowest took %v", n, slowest.Round(time.Millisecond))
}

// row puts a trial without a ledger into the table of `make chaos`.
func row(t *testing.T, format string, args ...any) {
	t.Helper()
	note := fmt.Sprintf(format, args...)
	t.Log(note)
	report.note(t, note)
}

// The cables of some are pulled, each right after a heartbeat, at any moment between two looks of the sweep: nothing passes any more and
// nobody hangs up. Who watches them is told that they are offline within 35 s, the grace included.
func TestFaultCablePulled(t *testing.T) {
	t.Parallel()
	flags := scaled(append([]string{"--heartbeat.ping-after=2s", "--heartbeat.pong-wait=1s", "--cluster.grace=1s"}, swift...), unhurried)
	most := scaled(5*time.Second+Deadline/2, 35*time.Second)
	r := StartRedis(t)
	a := StartGateway(t, r, Options{Name: "a", Flags: flags})
	b := StartGateway(t, r, Options{Name: "b", Flags: flags})
	chat := talkOn(t, Connect(t, a.WS(), "alice"), Connect(t, a.WS(), "bob"))
	cables := scaled(4, 20)
	took := make([]time.Duration, cables)
	var all sync.WaitGroup
	for i := range cables {
		w := StartWire(t, a.Addr)
		name := "far" + strconv.Itoa(i)
		far := Connect(t, "ws://"+w.Addr+"/ws", name)
		asker := Connect(t, b.WS(), "asker"+strconv.Itoa(i))
		all.Go(func() {
			lasts(time.Duration(i) * 2 * time.Second / time.Duration(cables))
			if states, err := asker.Watch("watch", name); err != nil || states[name].State != "online" {
				t.Errorf("%s is %v, %v", name, states[name], err)
				return
			}
			if _, err := far.Heartbeat(Deadline); err != nil {
				t.Error(err)
				return
			}
			w.Hold()
			pulled := time.Now()
			_, err := asker.NextOf("presence", 2*most, func(f Frame) bool { return f.States()[name].State == "offline" })
			took[i] = time.Since(pulled)
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	times := timesOf(took)
	if times.P100 > most {
		t.Errorf("offline after %v, want it within %v", times.P100, most)
	}
	row(t, "%d cables: offline after %v (p50), %v (p100); %s", cables, times.P50.Round(time.Millisecond), times.P100.Round(time.Millisecond), wantUnharmed(t, chat))
}

// Clients with small buffers stop reading. Whether they are flooded, so that their outboxes fill, or are sent a little more than the kernel
// takes: each is closed within ten seconds, holds little until then, and costs the others nothing.
func TestFaultClientsThatNeverRead(t *testing.T) {
	t.Parallel()
	for name, each := range map[string]int{"flooded": 0, "sent 320 KB each": 20} {
		t.Run(name, func(t *testing.T) { neverRead(t, scaled(10, 100), each) })
	}
}

// neverRead has senders send messages of 16 KB to so many that don't read, so many to each; 0: until they are gone.
func neverRead(t *testing.T, stalled, each int) {
	g := StartGateway(t, StartRedis(t), Options{Flags: swift})
	chat := talkOn(t, Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob"))
	var deaf []*Raw
	for i := range stalled {
		r, err := DialRaw(g.Addr, 4096)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := r.Upgrade(g.Addr, "deaf"+strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		deaf = append(deaf, r)
	}
	figure := func(name string) float64 {
		n, err := g.metric(name)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	wantWithin(t, startDeadline, func() bool { return int(figure("gateway_registered_connections")) == 2+stalled })

	over := make(chan struct{})
	var senders sync.WaitGroup
	const hands = 2
	for i := range hands {
		c := Connect(t, g.WS(), "sender"+strconv.Itoa(i))
		senders.Go(func() {
			content := strings.Repeat("x", 16<<10)
			for n := i; each == 0 || n < each*stalled; n += hands {
				select {
				case <-over:
					return
				default:
				}
				id, err := c.Send("deaf"+strconv.Itoa(n%stalled), content, "")
				if err == nil {
					_, err = c.Settle(id, 4*Deadline)
				}
				if err != nil {
					t.Errorf("a sender: %v", err)
					return
				}
			}
		})
	}
	var outbox, kernel int
	var firstStall, lastEnd time.Time
	err := Poll(scaled(time.Minute, 3*time.Minute), func() error {
		outbox = max(outbox, int(figure("gateway_largest_outbox_bytes")))
		kernel = max(kernel, sendQueue(t, g))
		if firstStall.IsZero() && figure("gateway_connection_writers") > 0 {
			firstStall = time.Now()
		}
		if ended := int(figure(`gateway_connections_ended_total{cause="slow_consumer"}`)); ended < stalled {
			return fmt.Errorf("%d of %d are closed", ended, stalled)
		}
		lastEnd = time.Now()
		return nil
	})
	close(over)
	senders.Wait()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range deaf {
		if _, err := r.Ended(Deadline); err != nil {
			t.Error(err)
		}
	}
	took := lastEnd.Sub(firstStall)
	if most := scaled(10*time.Second+Deadline/2, 10*time.Second); took > most {
		t.Errorf("the last was closed %v after the first stood still, want %v", took, most)
	}
	if outbox+kernel > 512<<10 || outbox == 0 || kernel == 0 {
		t.Errorf("up to %d bytes in an outbox and %d in the kernel, want some, and 512 KB at most in both", outbox, kernel)
	}
	row(t, "%d clients that never read: the last closed %v after the first stood still; at most %d KB of one in its outbox, %d KB in the kernel; %s",
		stalled, took.Round(10*time.Millisecond), outbox>>10, kernel>>10, wantUnharmed(t, chat))
}

// sendQueue is the longest send queue of a gateway's clients, in bytes, as Linux tells.
func sendQueue(t *testing.T, g *Gateway) (longest int) {
	raw, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Error(err)
	}
	_, port, _ := strings.Cut(g.Addr, ":")
	n, _ := strconv.Atoi(port)
	local := fmt.Sprintf(":%04X", n)
	for line := range strings.Lines(string(raw)) {
		// number, local and remote address, state, tx_queue:rx_queue, all in hex
		if f := strings.Fields(line); len(f) > 4 && strings.HasSuffix(f[1], local) {
			queue, _, _ := strings.Cut(f[4], ":")
			bytes, _ := strconv.ParseInt(queue, 16, 64)
			longest = max(longest, int(bytes))
		}
	}
	return longest
}

// Two gateways, most clients on one, which is killed. All come to the other at once, as often as it takes; those who were there go on.
func TestFaultStormOfReconnects(t *testing.T) {
	t.Parallel()
	flags := scaled(swift, nil)
	if flags == nil {
		flags = []string{"--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", "--limits.connect-rate-per-ip=0"} // all come from one address here
	} else {
		flags = append(flags, "--limits.connect-rate=100")
	}
	r := StartRedis(t)
	a := StartGateway(t, r, Options{Name: "a", Flags: flags})
	b := StartGateway(t, r, Options{Name: "b", Flags: flags})
	clients := scaled(300, 5000)
	came := make([]*Client, clients)
	join := func(g *Gateway, i int, within time.Duration) error {
		deadline := time.Now().Add(within)
		for {
			c, err := dial(g.WS(), nil, within)
			if err == nil {
				if _, err = c.Register("user" + strconv.Itoa(i)); err == nil {
					came[i] = c
					return nil
				}
				c.Cut()
			}
			wait := 200 * time.Millisecond
			var refused *Refused
			if errors.As(err, &refused) {
				seconds, _ := strconv.Atoi(refused.Header.Get("Retry-After"))
				wait = time.Duration(seconds) * time.Second
			}
			if time.Now().Add(wait).After(deadline) {
				return err
			}
			lasts(wait)
		}
	}
	everybody := func(g *Gateway, within time.Duration) (took time.Duration) {
		t.Helper()
		began := time.Now()
		errs := make([]error, clients)
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() { errs[i] = join(g, i, within) })
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatalf("%.2000v", err)
		}
		return time.Since(began)
	}
	everybody(a, 3*time.Minute)
	chat := talkOn(t, Connect(t, b.WS(), "alice"), Connect(t, b.WS(), "bob"))
	for _, c := range came {
		defer c.Cut()
	}
	a.Kill()
	most := scaled(time.Minute, 20*time.Second)
	old := came
	came = make([]*Client, clients)
	took := everybody(b, 3*time.Minute)
	for _, c := range came {
		defer c.Cut()
	}
	for _, c := range old {
		if _, err := c.WaitEnd(Deadline); err != nil {
			t.Error(err)
		}
	}
	if took > most {
		t.Errorf("the last of %d was back after %v, want %v", clients, took, most)
	}
	row(t, "%d clients of a killed gateway: the last was back after %v; %s", clients, took.Round(10*time.Millisecond), wantUnharmed(t, chat))
}

// A balancer cuts tunnels that are idle for ten seconds. With pings more often than that nothing happens; with those of the default a
// client is cut, comes back, and misses nothing.
func TestFaultBalancerCutsIdleTunnels(t *testing.T) {
	t.Parallel()
	tunnel := scaled(2*time.Second, 10*time.Second)
	cutting := func(config string) string {
		return strings.Replace(config, "timeout tunnel 90s", fmt.Sprintf("timeout tunnel %dms", tunnel.Milliseconds()), 1)
	}
	r := StartRedis(t)
	t.Run("pings keep them", func(t *testing.T) {
		g := StartGateway(t, r, Options{Flags: []string{fmt.Sprintf("--heartbeat.ping-after=%v", tunnel*4/10), "--heartbeat.pong-wait=10s", "--insecure"}})
		p := startHAProxy(t, cutting, g.Addr)
		bob := Connect(t, p.WS(), "bob")
		lasts(3 * tunnel)
		if _, err := bob.Heartbeat(Deadline); err != nil {
			t.Fatalf("after %v of silence: %v", 3*tunnel, err)
		}
		row(t, "tunnels cut after %v: one without a word for %v lives by pings", tunnel, 3*tunnel)
	})
	t.Run("or they resume", func(t *testing.T) {
		g := StartGateway(t, r, Options{Flags: []string{"--insecure"}}) // who comes through a balancer is a stranger
		p := startHAProxy(t, cutting, g.Addr)
		alice := Connect(t, g.WS(), "alice")
		bob := Connect(t, p.WS(), "bob")
		began := time.Now()
		send := func(n int) {
			t.Helper()
			id, err := alice.Send("bob", n, "")
			if err == nil {
				_, err = alice.Settle(id, Deadline)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		send(0)
		if _, err := bob.WaitEnd(tunnel + 4*Deadline); err != nil {
			t.Fatal(err)
		}
		cut := time.Since(began)
		epoch, offset := bob.Position()
		for n := 1; n < 4; n++ {
			send(n)
		}
		again := Connect(t, p.WS(), "bob", "resume", map[string]any{"epoch": epoch, "offset": offset})
		for n := 1; n < 4; n++ {
			f, err := again.Next("message", Deadline)
			if err != nil || string(f.Content) != strconv.Itoa(n) || f.Offset != uint64(n+1) {
				t.Errorf("%v, %v; want message %d", f, err, n)
			}
		}
		row(t, "a tunnel cut after %v: 3 messages sent meanwhile were resumed", cut.Round(10*time.Millisecond))
	})
}
