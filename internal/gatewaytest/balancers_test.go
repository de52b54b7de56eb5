//go:build !race

package gatewaytest

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Through a real load balancer: two gateways, 200 clients, 20,000 messages. Each is received once, in order for each pair.
func TestEveryMessageArrivesOnceAndInOrderThroughABalancer(t *testing.T) {
	for name, startBalancer := range map[string]func(testing.TB, ...string) *Proxy{"nginx": StartNginx, "haproxy": StartHAProxy} {
		t.Run(name, func(t *testing.T) {
			r := Shared(t, Standalone)
			flags := []string{"--trusted-proxies=127.0.0.1/32", "--insecure", "--limits.connect-rate-per-ip=0", "--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0"}
			a, b := StartGateway(t, r, Options{Name: "a", Flags: flags}), StartGateway(t, r, Options{Name: "b", Flags: flags})
			balancer := startBalancer(t, a.Addr, b.Addr)

			const clients, messages = 200, 100
			ring := connectRing(t, balancer.WS(), clients)
			if crossing := ring.crossing(); crossing < clients/10 {
				t.Errorf("only %d of %d pairs are on two gateways", crossing, clients)
			}
			began := time.Now()
			ring.chat(t, messages)
			t.Logf("%d messages in %v", clients*messages, time.Since(began))
			ring.wantOnceInOrder(t, messages)
			if t.Failed() {
				for _, g := range []*Gateway{a, b} {
					stats, err := g.Stats()
					t.Logf("gateway %s: %v %v", g.Name, stats, err)
				}
			}
		})
	}
}

// ring is many clients of which each writes to the next, and so hears from the one before.
type ring struct {
	clients  []*Client
	gateways []string // by client
}

func connectRing(t *testing.T, url string, size int) *ring {
	t.Helper()
	w := &ring{clients: make([]*Client, size), gateways: make([]string, size)}
	errs := make([]error, size)
	var all sync.WaitGroup
	for i := range size {
		all.Go(func() {
			c, err := Dial(url, nil)
			if err != nil {
				errs[i] = err
				return
			}
			w.clients[i] = c
			registered, err := c.Register("user" + strconv.Itoa(i))
			w.gateways[i], errs[i] = registered.GatewayID, err
		})
	}
	all.Wait()
	t.Cleanup(func() {
		for _, c := range w.clients {
			if c != nil {
				c.Cut()
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return w
}

// crossing counts the pairs whose two ends are on different gateways.
func (w *ring) crossing() (n int) {
	for i := range w.clients {
		if w.gateways[i] != w.gateways[(i+1)%len(w.gateways)] {
			n++
		}
	}
	return n
}

// chat lets everyone send at once, a few messages under way each, and returns when everything was acknowledged and received.
// What is refused on a busy machine is repeated.
func (w *ring) chat(t *testing.T, messages int) {
	t.Helper()
	const window, within = 8, time.Minute
	errs := make([]error, len(w.clients))
	var all sync.WaitGroup
	for i, c := range w.clients {
		all.Go(func() {
			to := "user" + strconv.Itoa((i+1)%len(w.clients))
			for n := range messages {
				_, err := c.Send(to, n, "")
				if err == nil {
					err = c.WaitCount(n+1-window, within, "ack", "error")
				}
				if err != nil {
					errs[i] = err
					return
				}
			}
			for _, sent := range c.Notes().Sent {
				if _, err := c.Settle(sent.ID, within); err != nil {
					errs[i] = err
					return
				}
			}
			errs[i] = c.WaitCount(messages, within, "message")
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err) // the comparison tells what is missing
	}
}

func (w *ring) wantOnceInOrder(t *testing.T, messages int) {
	t.Helper()
	for i, c := range w.clients {
		sender := w.clients[(i+len(w.clients)-1)%len(w.clients)]
		if err := onceInOrder(sender.Notes(), c.Notes(), messages); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}

// onceInOrder compares what one client sent, and was told of it, with what the other received: everything once, at the
// offset that was acknowledged, without a hole. What was never refused is in the order in which it was sent.
func onceInOrder(from, to Notes, messages int) error {
	if len(from.Sent) != messages || len(from.Acked) != messages || len(to.Received) != messages {
		return fmt.Errorf("%d sent, %d acknowledged, %d received, want %d of each; not received: %v; errors: %v",
			len(from.Sent), len(from.Acked), len(to.Received), messages, notReceived(from, to), from.Errors)
	}
	number, sent, acked, refused := make(map[string]int), make(map[string]Sent), make(map[string]Frame), make(map[string]bool)
	for n, m := range from.Sent {
		number[m.ID], sent[m.ID] = n, m
	}
	for _, ack := range from.Acked {
		acked[ack.ID] = ack
	}
	for _, err := range from.Errors {
		if err.CodeText() != "overloaded" {
			return fmt.Errorf("an error: %v", err)
		}
		refused[err.ID] = true
	}
	last := -1
	for n, got := range to.Received {
		want, ack := sent[got.ID], acked[got.ID]
		switch {
		case got.Sender() != from.User || string(got.Content) != want.Content:
			return fmt.Errorf("message %d is %v, sent was %+v", n, got, want)
		case got.Offset != uint64(n+1) || got.Epoch != to.Received[0].Epoch:
			return fmt.Errorf("message %d has a wrong position: %v", n, got)
		case ack.Status != "routed" || ack.Offset != got.Offset || ack.Epoch != got.Epoch:
			return fmt.Errorf("message %d was acknowledged by %v, but is %v", n, ack, got)
		case !refused[got.ID] && number[got.ID] < last:
			return fmt.Errorf("message %d was sent before its predecessor: %v", n, got)
		case !refused[got.ID]:
			last = number[got.ID]
		}
	}
	return nil
}

// notReceived lists the acks of messages that did not arrive.
func notReceived(from, to Notes) (acks []Frame) {
	received := make(map[string]bool)
	for _, got := range to.Received {
		received[got.ID] = true
	}
	for _, ack := range from.Acked {
		if !received[ack.ID] {
			acks = append(acks, ack)
		}
	}
	return acks
}
