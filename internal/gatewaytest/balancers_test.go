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
			flags := []string{"--trusted-proxies=127.0.0.1/32", "--limits.connect-rate-per-ip=0", "--limits.message-rate=0"}
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

// chat lets everyone send at once, and returns when everything was answered and received. Each keeps a few messages under
// way: whoever sends all at once is refused as overloaded, and a message that is repeated comes after its successors.
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
			errs[i] = errors.Join(c.WaitCount(messages, within, "ack", "error"), c.WaitCount(messages, within, "message"))
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
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

// onceInOrder compares what one client sent, and was told of it, with what the other received.
func onceInOrder(from, to Notes, messages int) error {
	if len(from.Errors)+len(to.Errors) > 0 {
		return fmt.Errorf("errors: %v %v", from.Errors, to.Errors)
	}
	if len(from.Sent) != messages || len(from.Acked) != messages || len(to.Received) != messages {
		return fmt.Errorf("%d sent, %d acknowledged, %d received, want %d of each", len(from.Sent), len(from.Acked), len(to.Received), messages)
	}
	acked := make(map[string]Frame)
	for _, ack := range from.Acked {
		acked[ack.ID] = ack
	}
	for n, got := range to.Received {
		sent := from.Sent[n]
		ack := acked[sent.ID]
		switch {
		case got.Sender() != from.User || got.ID != sent.ID || string(got.Content) != sent.Content:
			return fmt.Errorf("message %d is %v, want %+v", n, got, sent)
		case got.Offset != uint64(n+1) || got.Epoch != to.Received[0].Epoch:
			return fmt.Errorf("message %d has a wrong position: %v", n, got)
		case ack.Status != "routed" || ack.Offset != got.Offset || ack.Epoch != got.Epoch:
			return fmt.Errorf("message %d was acknowledged by %v, but is %v", n, ack, got)
		}
	}
	return nil
}
