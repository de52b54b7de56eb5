//go:build !race

package gatewaytest

import (
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A swarm is sockets that were opened to be in the way.
type swarm struct {
	all   sync.WaitGroup
	mu    sync.Mutex // guards the rest
	lived []time.Duration
	errs  []error
}

// open connects so many, and sends each what comes before a silence. Everyone waits for its end.
func (s *swarm) open(g *Gateway, n int, said string) {
	const dialers = 16
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	for range dialers {
		s.all.Go(func() {
			for range todo {
				r, err := DialRaw(g.Addr, 0)
				opened := time.Now()
				if err == nil {
					_, _ = r.Write([]byte(said))
				}
				s.mu.Lock()
				if err != nil {
					s.errs = append(s.errs, err)
				}
				s.mu.Unlock()
				if err != nil {
					continue
				}
				s.all.Go(func() {
					_, err := r.Ended(time.Minute)
					r.Close()
					s.mu.Lock()
					defer s.mu.Unlock()
					if err != nil {
						s.errs = append(s.errs, err)
					}
					s.lived = append(s.lived, time.Since(opened))
				})
			}
		})
	}
}

// Thousands send half an upgrade and no more, thousands connect and say nothing. They are cut when the time for a header is over. Whoever
// comes meanwhile is let in.
func TestFaultHalfSentUpgradesAndSilentSockets(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, StartRedis(t), Options{Flags: swift})
	chat := talkOn(t, Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob"))
	rss := func() int64 {
		n, err := g.RSS()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before, peak := rss(), int64(0)
	each := scaled(500, 5000)
	began := time.Now()
	var attack swarm
	attack.open(g, each, Handshake(g.Addr)[:100])
	attack.open(g, each, "")
	over := make(chan struct{})
	go func() {
		attack.all.Wait()
		close(over)
	}()

	// Those who mean it come all the time, and each says a word.
	var honest sync.WaitGroup
	var mu sync.Mutex
	tried, failed := 0, 0
	var slowest time.Duration
	most := 0.0
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	slots := make(chan struct{}, 32)
	for attacked := true; attacked; {
		select {
		case <-over:
			attacked = false
			continue
		case <-tick.C:
		}
		slots <- struct{}{}
		tried++
		n := tried
		honest.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			c, err := Dial(g.WS(), nil)
			if err == nil {
				defer c.Cut()
				if _, err = c.Register("guest" + strconv.Itoa(n)); err == nil {
					_, err = c.Heartbeat(Deadline)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, time.Since(began))
			if err != nil {
				failed++
				t.Logf("a guest: %v", err)
			}
		})
		if tried%50 == 0 {
			peak = max(peak, rss())
			if raw, err := g.metric("gateway_raw_connections"); err == nil {
				most = max(most, raw)
			}
		}
	}
	honest.Wait()
	for _, err := range attack.errs {
		t.Errorf("an attacker: %v", err)
	}
	lived := timesOf(attack.lived)
	if success := 100 * float64(tried-failed) / float64(tried); success < 99.9 {
		t.Errorf("%.2f %% of %d guests were let in", success, tried)
	}
	if lived.P100 > 5*time.Second+headerSlack {
		t.Errorf("a socket that said nothing lived %v", lived.P100)
	}
	row(t, "%d half-sent upgrades and %d silent sockets (%v at a time): cut after %v (p50), %v (p100), all within %v; %d guests, %d failed, the slowest took %v; RSS %d MB, at most %d MB; %s",
		each, each, most, lived.P50.Round(time.Millisecond), lived.P100.Round(time.Millisecond), time.Since(began).Round(10*time.Millisecond),
		tried, failed, slowest.Round(time.Millisecond), before>>20, peak>>20, wantUnharmed(t, chat))
}

// A gateway that may open few files meets more sockets than that. It stops accepting short of the limit, says so, keeps whom it has, and
// goes on when there is room. Then the limit falls under what it holds: the same, without the warning ahead.
func TestFaultOutOfFiles(t *testing.T) {
	t.Parallel()
	r := StartRedis(t)
	const files = 200
	g := NewGateway(t, r, Options{Flags: swift})
	g.args = append([]string{"-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, files), g.binary}, g.args...)
	g.binary = "/bin/sh"
	if err := g.Restart(); err != nil {
		t.Fatal(err)
	}
	chat := talkOn(t, Connect(t, g.WS(), "alice"), Connect(t, g.WS(), "bob"))
	paused := func(want bool) {
		t.Helper()
		reason := `"no open files to spare"`
		wantWithin(t, 4*Deadline, func() bool {
			status, body, err := g.GetInternal("/readyz")
			if err != nil {
				return false
			}
			n, err := g.metric("gateway_accepting_paused")
			unready := status == http.StatusServiceUnavailable && strings.Contains(string(body), reason)
			return err == nil && (n == 1) == want && unready == want
		})
	}
	guest := func() {
		t.Helper()
		if err := Poll(4*Deadline, func() error {
			c, err := Dial(g.WS(), nil)
			if err != nil {
				return err
			}
			defer c.Cut()
			_, err = c.Register("guest")
			return err
		}); err != nil {
			t.Error(err)
		}
	}

	// Silent ones go by themselves.
	var silent swarm
	began := time.Now()
	const inTheWay = files + files/4
	silent.open(g, inTheWay, "")
	paused(true)
	silent.all.Wait()
	paused(false)
	recovered := time.Since(began)
	guest()
	for _, err := range silent.errs {
		t.Errorf("one in the way: %v", err)
	}
	for _, said := range []string{"accepting is paused", "accepting again"} {
		if !strings.Contains(g.Log(), said) {
			t.Errorf("the log does not say %q", said)
		}
	}

	// The files went elsewhere: no socket may be opened, nothing be dialled.
	limit := func(n int) {
		t.Helper()
		if out, err := exec.Command("prlimit", "--pid", strconv.Itoa(g.Pid), fmt.Sprintf("--nofile=%d:%d", n, files)).CombinedOutput(); err != nil {
			t.Fatalf("prlimit: %v\n%s", err, out)
		}
	}
	var keep []*Raw
	pauses, err := g.metric("gateway_accepting_pauses_total")
	if err != nil {
		t.Fatal(err)
	}
	limit(8)
	for range 5 {
		c, err := DialRaw(g.Addr, 0) // into the kernel's queue
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		keep = append(keep, c)
	}
	lasts(scaled(2*time.Second, 10*time.Second))
	limit(files)
	paused(false)
	guest()
	if now, err := g.metric("gateway_accepting_pauses_total"); err != nil || now <= pauses {
		t.Errorf("%v pauses, %v before, %v", now, pauses, err)
	}
	for _, c := range keep {
		if _, err := c.Ended(4 * Deadline); err != nil {
			t.Error(err)
		}
	}
	if !g.Running() {
		t.Error("the gateway is gone")
	}
	row(t, "%d files, %d silent sockets: accepting paused, and went on, within %v; %s", files, inTheWay, recovered.Round(10*time.Millisecond), wantUnharmed(t, chat))
}
