//go:build !race

package gatewaytest_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

// One connection joins 100,000 rooms (a fifth of that in `make test` where all are granted), as fast as it is answered: were it further ahead, a busy machine
// might let it be a slow consumer. It gets as many as one may have, and every other join is answered; or it gets them all, where nothing is limited, or
// at the rate of messages. Its neighbours notice nothing, and nothing of it stays when it ends.
func TestFaultManyJoins(t *testing.T) {
	const joins = 100_000
	for name, c := range map[string]struct {
		flags  []string
		joined int
		limit  string // what the others are told
	}{
		"limited rooms":  {[]string{"--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0"}, 500, "rooms-per-connection"},
		"limited frames": {[]string{"--limits.rooms-per-connection=0"}, -1, ""},
		"no limits":      {unlimited, joins, ""},
	} {
		t.Run(name, func(t *testing.T) {
			joins, granted := joins, c.joined
			if c.joined == joins && !gatewaytest.FullLength() {
				joins /= 5
				granted = joins
			}
			if c.joined < 0 {
				joins, granted = 400, 400 // a hundred at once, and a hundred in each second
			}
			r := gatewaytest.StartRedis(t)
			flags := append([]string{"--limits.rooms-per-connection=0"}, c.flags...)
			if c.joined == 500 {
				flags = c.flags
			}
			g := gatewaytest.StartGateway(t, r, gatewaytest.Options{Flags: flags})
			neighbours := gatewaytest.StartGateway(t, r, gatewaytest.Options{Name: "n", Flags: flags})
			alice, bob := gatewaytest.Connect(t, g.WS(), "alice"), gatewaytest.Connect(t, neighbours.WS(), "bob")
			w, err := dialWire(g.Addr, 64<<10)
			must(t, err)
			must(t, enter(w, "eager"))

			const ahead, together = 500, 100 // an outbox holds 1,024 frames, and some are about who is in the rooms
			open, over := make(chan struct{}, ahead), make(chan struct{})
			written := make(chan struct{})
			go func() {
				defer close(written)
				var frames []byte
				for i := range joins {
					select {
					case open <- struct{}{}:
					case <-over:
						return
					}
					frames = appendFrame(frames, opText, fmt.Appendf(nil, `{"type":"join","id":"%d","room":"room%d"}`, i, i))
					if i%together == together-1 {
						if w.write(frames) != nil {
							return // the reader hears of it
						}
						frames = frames[:0]
					}
				}
			}()
			talked := make(chan time.Duration, 1)
			go func() {
				var slowest time.Duration
				defer func() { talked <- slowest }()
				for n := 0; ; n++ {
					select {
					case <-over:
						return
					case <-time.After(20 * time.Millisecond):
					}
					began := time.Now()
					id, err := alice.Send("bob", n, "")
					if err == nil {
						_, err = bob.NextOf("message", gatewaytest.Deadline, func(f gatewaytest.Frame) bool { return f.ID == id })
					}
					if err != nil {
						t.Errorf("a neighbour: %v", err)
						return
					}
					slowest = max(slowest, time.Since(began))
				}
			}()

			joined, limited, closed := 0, 0, ""
			began := time.Now()
			for joined+limited < joins && closed == "" {
				frame, err := w.next()
				switch {
				case err != nil:
					closed = err.Error()
				case bytes.HasPrefix(frame, []byte(`{"type":"joined"`)):
					joined++
					<-open
				case bytes.Contains(frame, []byte(`"code":"limited"`)) && bytes.Contains(frame, []byte(`"limit":"`+c.limit+`"`)):
					limited++
					<-open
				case bytes.HasPrefix(frame, membersHead): // it is told of itself
				case bytes.HasPrefix(frame, []byte(`{"type":"closing"`)):
					closed = string(frame)
				default:
					t.Fatalf("got %s", frame)
				}
			}
			took := time.Since(began)
			close(over)
			t.Logf("%d joined, %d limited, closed by %q, after %v; slowest message of a neighbour %v", joined, limited, closed, took, <-talked)
			if joined != granted || c.joined < 0 && took < 2900*time.Millisecond {
				t.Errorf("%d joined in %v", joined, took)
			}
			if closed != "" && !strings.Contains(closed, `"code":4505`) {
				t.Errorf("closed by %s", closed)
			}
			_ = w.nc.Close()
			<-written

			ended := time.Now()
			must(t, gatewaytest.Poll(time.Minute, func() error {
				left, err := r.Client().Keys(context.Background(), "cg:*:h:r:*").Result()
				if err == nil && len(left) > 0 {
					err = fmt.Errorf("%d rooms still have a holder", len(left))
				}
				return err
			}))
			t.Logf("nothing of it is left after %v", time.Since(ended))
			must(t, func() error { _, err := alice.Heartbeat(gatewaytest.Deadline); return err }())
		})
	}
}
