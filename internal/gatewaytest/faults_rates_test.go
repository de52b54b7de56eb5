//go:build !race

package gatewaytest

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// rated counts what a rate lets in of several times as much.
type rated struct {
	// Immutable.
	perSecond, burst float64

	mu  sync.Mutex
	let int // guarded by mu
}

func (r *rated) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.let += n
}

func (r *rated) sum() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return float64(r.let)
}

// want waits out the time of the trial since began, and wants no more and hardly less to have been let in than the rate and its burst: whatever
// is let in waits for its place for the whole time.
func (r *rated) want(t *testing.T, unit string, began time.Time) {
	t.Helper()
	lasts(time.Until(began.Add(scaled(4*time.Second, time.Minute))))
	took := time.Since(began)
	let, exact := r.sum(), r.perSecond*took.Seconds()+r.burst
	// One more is let in and owed; and what was let in last may not have been answered yet, a busy machine takes its time.
	if let > 1.05*exact+1 || let < scaled(0.7, 0.95)*exact-1 {
		t.Errorf("%.0f %s in %v, want %.1f", let, unit, took, exact)
	}
	row(t, "%.0f %s in %v, by the rate and the burst %.1f: %+.2f %%", let, unit, took.Round(time.Millisecond), exact, 100*(let/exact-1))
}

// flood writes the frames that next makes, as fast as the gateway takes them, until the test ends; each answer counts as so much.
func (r *rated) flood(t *testing.T, c *Client, answer string, each int, next func(i int) string) {
	nc := c.conn.NetConn()
	_ = nc.SetWriteDeadline(time.Time{}) // a full buffer takes more when a third of it is free, which may last long
	over := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			if _, err := nc.Write(RawFrame(0x81, next(i))); err != nil {
				return // the end has come
			}
		}
	})
	all.Go(func() {
		for {
			frames, ended, changed := c.drain()
			for _, f := range frames {
				if f.Type == answer {
					r.add(each)
				}
			}
			if ended {
				return
			}
			select {
			case <-changed:
			case <-over:
				return
			}
		}
	})
	t.Cleanup(func() {
		close(over)
		c.Cut()
		all.Wait()
	})
}

// knock has clients come from an address, several times as many as may, until the test ends.
func (r *rated) knock(t *testing.T, g *Gateway, source string) {
	const hands, offered = 4, 4
	over := make(chan struct{})
	var all sync.WaitGroup
	var tried int
	var mu sync.Mutex
	for range hands {
		all.Go(func() {
			tick := time.NewTicker(time.Duration(float64(time.Second) * hands / (offered * r.perSecond)))
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-over:
					return
				}
				answer, err := shakeHands(source, g.Addr)
				mu.Lock()
				tried++
				mu.Unlock()
				switch {
				case err != nil:
					t.Error(err)
					return
				case strings.HasPrefix(answer, "HTTP/1.1 101"):
					r.add(1)
				case !strings.HasPrefix(answer, "HTTP/1.1 503"):
					t.Errorf("answered %s", answer)
				}
			}
		})
	}
	began := time.Now()
	t.Cleanup(func() {
		close(over)
		all.Wait()
		if per := float64(tried) / time.Since(began).Seconds(); per < 1.5*r.perSecond {
			t.Errorf("only %.1f a second came, which is no overload for %v", per, r.perSecond)
		}
	})
}

// Each rate is overloaded without a pause, for a minute in `make chaos`: what is let in is what the rate says, within 5 %. Nothing leaks in by
// being refused, by waiting, or by little errors that add up.
func TestFaultRatesUnderSustainedOverload(t *testing.T) {
	t.Parallel()
	redis := StartRedis(t)
	start := func(t *testing.T, flags ...string) *Gateway {
		return StartGateway(t, redis, Options{Name: "g" + strconv.Itoa(FreePort(t)), Flags: append([]string{"--limits.connect-rate-per-ip=0"}, flags...)})
	}
	t.Run("messages", func(t *testing.T) {
		t.Parallel()
		r := &rated{perSecond: 50, burst: 50}
		c := Connect(t, start(t, "--limits.message-rate=50").WS(), "alice")
		began := time.Now()
		r.flood(t, c, "ack", 1, func(i int) string { return fmt.Sprintf(`{"type":"message","id":"%d","to":"bob","content":1}`, i) })
		r.want(t, "messages", began)
	})
	t.Run("frames", func(t *testing.T) {
		t.Parallel()
		r := &rated{perSecond: 200, burst: 200}
		c := Connect(t, start(t, "--limits.frame-rate=200").WS(), "carol")
		began := time.Now()
		r.flood(t, c, "heartbeat", 1, func(int) string { return `{"type":"heartbeat"}` })
		r.want(t, "frames", began)
	})
	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		r := &rated{perSecond: 100_000, burst: 100_000}
		c := Connect(t, start(t, "--limits.byte-rate=100000").WS(), "dave")
		frame := `{"type":"heartbeat","x":"` + strings.Repeat("x", 1000) + `"}`
		began := time.Now()
		r.flood(t, c, "heartbeat", len(RawFrame(0x81, frame)), func(int) string { return frame })
		r.want(t, "bytes", began)
	})
	t.Run("connects", func(t *testing.T) {
		t.Parallel()
		r := &rated{perSecond: 50, burst: 50}
		g := start(t, "--limits.connect-rate=50")
		began := time.Now()
		r.knock(t, g, "127.0.0.33")
		r.want(t, "connects", began)
	})
	t.Run("connects from one address", func(t *testing.T) {
		t.Parallel()
		r := &rated{perSecond: 20, burst: 20}
		g := start(t, "--limits.connect-rate-per-ip=20")
		began := time.Now()
		r.knock(t, g, "127.0.0.34")
		r.want(t, "connects", began)
		for range 5 {
			if answer, err := shakeHands("127.0.0.35", g.Addr); err != nil || !strings.HasPrefix(answer, "HTTP/1.1 101") {
				t.Errorf("from another address: %s, %v", answer, err)
			}
		}
	})
	t.Run("new addresses", func(t *testing.T) {
		t.Parallel()
		perHour := scaled(7200, 18_000)
		g := start(t, "--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", fmt.Sprint("--limits.new-addresses=", perHour))
		c := Connect(t, g.WS(), "erin")
		n := 0
		send := func() {
			n++
			if err := c.WriteRaw(RawFrame(0x81, fmt.Sprintf(`{"type":"message","id":"%d","to":"new%d","content":1}`, n, n))); err != nil {
				t.Fatal(err)
			}
		}
		answer := func() bool {
			f, err := c.Ack(strconv.Itoa(n), Deadline)
			if err != nil || f.Type != "ack" && f.Limit != "new-addresses" {
				t.Fatalf("answered %s, %v", f, err)
			}
			return f.Type == "ack"
		}
		// An hour's worth may come at once. What may after it is the rate.
		for taken := true; taken; taken = answer() {
			for range 100 {
				send()
			}
		}
		c.drain()
		r := &rated{perSecond: float64(perHour) / 3600}
		began := time.Now()
		tick := time.NewTicker(time.Duration(float64(time.Second) / (5 * r.perSecond)))
		defer tick.Stop()
		for length := scaled(4*time.Second, time.Minute); time.Since(began) < length; <-tick.C {
			if send(); answer() {
				r.add(1)
			}
		}
		r.want(t, "new addresses", began)
	})
}

// shakeHands connects from an address, asks for an upgrade, and leaves with the beginning of the answer.
func shakeHands(source, addr string) (answer string, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 2 * Deadline}
	r, err := d.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer r.Close()
	if _, err := r.Write([]byte(Handshake(addr))); err != nil {
		return "", err
	}
	_ = r.SetReadDeadline(time.Now().Add(2 * Deadline))
	b := make([]byte, 256)
	n, err := r.Read(b)
	return string(b[:n]), err
}
