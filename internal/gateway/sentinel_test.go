//go:build !secondpass

package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// journal is a log that a test may read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// count returns how many lines say something at a level.
func (j *journal) count(level, text string) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.text.String()) {
		if strings.Contains(line, "level="+level) && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// A house is what a gateway has of its Redis, with its watch running.
type house struct {
	*backend
	t   *testing.T
	log *journal
}

// sentinelsURL is a redis.url for these Sentinels, with more options if there are any.
func sentinelsURL(sentinels []*gatewaytest.RedisNode, options string) string {
	var addrs []string
	for _, n := range sentinels {
		addrs = append(addrs, n.Addr)
	}
	return "redis://" + strings.Join(addrs, ",") + "/0?master=mymaster" + options
}

func open(t *testing.T, url string) (*house, error) {
	t.Helper()
	cfg := DefaultConfig().Redis
	cfg.URL = url
	h := &house{t: t, log: &journal{}}
	var err error
	if h.backend, err = connect(context.Background(), cfg, slog.New(slog.NewTextHandler(h.log, nil))); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { _ = h.watch(ctx) })
	t.Cleanup(func() {
		cancel()
		watching.Wait()
		_ = h.close()
		if n := len(h.sentinels.links); n != 0 {
			t.Errorf("%d connections were left open", n)
		}
	})
	return h, nil
}

func mustOpen(t *testing.T, url string) *house {
	t.Helper()
	h, err := open(t, url)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// at returns the address of the server that answers a client; a call that fails is one that had to be repeated.
func at(c redis.UniversalClient) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	v, err := c.ConfigGet(ctx, "port").Result()
	if err != nil {
		return err.Error()
	}
	return "127.0.0.1:" + v["port"]
}

// wantAt checks where both clients lead, over the connections they have.
func (h *house) wantAt(n *gatewaytest.RedisNode) {
	h.t.Helper()
	for name, c := range map[string]redis.UniversalClient{"general": h.client, "lanes": h.lanes} {
		if got := at(c); got != n.Addr {
			h.t.Errorf("the %s client is at %s, want %s", name, got, n.Addr)
		}
	}
}

// wantDialed checks where new connections lead.
func (h *house) wantDialed(n *gatewaytest.RedisNode, times int) {
	h.t.Helper()
	for range times {
		c, err := h.sentinels.dial(context.Background(), "tcp", "")
		if err != nil {
			h.t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != n.Addr {
			h.t.Errorf("a new connection leads to %s, want %s", got, n.Addr)
		}
		c.Close()
	}
}

// asked waits for the outcome of a question.
func (h *house) asked() *question {
	q := h.sentinels.ask()
	<-q.done
	return q
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := gatewaytest.Poll(patience, func() error {
		if !ok() {
			return errors.New("it isn't true: " + what)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// One of three Sentinels names a server that the others don't: a partition it has not come back from. Nobody follows it, neither who is
// connected nor who comes, although redis.url names it first. When a second one agrees, everyone does: the calls in flight, the idle
// connections and the subscription of both clients are dropped, and the old master, which is up and takes writes, gets no more.
func TestTheMasterIsWhoMostSentinelsName(t *testing.T) {
	r, other := gatewaytest.StartSentinel(t), gatewaytest.StartRedis(t).Nodes[0]
	h := mustOpen(t, sentinelsURL(r.Sentinels, ""))
	h.wantAt(r.Nodes[0])
	subscribed := make(chan error, 1)
	ps := h.client.Subscribe(context.Background(), "cg:test")
	defer ps.Close()
	if _, err := ps.Receive(context.Background()); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := ps.ReceiveTimeout(context.Background(), patience)
		subscribed <- err
	}()

	must(t, r.Name(other.Addr, r.Sentinels[0]))
	for range 3 {
		if q := h.asked(); q.err != nil || q.master != r.Nodes[0].Addr {
			t.Errorf("the master is %q, %v", q.master, q.err)
		}
	}
	h.wantDialed(r.Nodes[0], 20)
	mustOpen(t, sentinelsURL(r.Sentinels, "")).wantAt(r.Nodes[0])
	h.wantAt(r.Nodes[0])
	if n := h.strays(); n != 0 {
		t.Errorf("%d connections were dropped for a minority's sake", n)
	}

	blocked := make(chan error, 1)
	go func() { blocked <- h.lanes.BLPop(context.Background(), patience, "cg:nothing").Err() }()
	eventually(t, "a call is in flight", func() bool {
		info, err := r.Nodes[0].Client().Info(context.Background(), "clients").Result()
		return err == nil && infoField(info, "blocked_clients") == "1"
	})
	must(t, r.Name(other.Addr, r.Sentinels[1]))
	for what, ended := range map[string]chan error{"subscription": subscribed, "call in flight": blocked} {
		select {
		case err := <-ended:
			if err == nil || errors.Is(err, redis.Nil) {
				t.Errorf("the %s was not dropped: %v", what, err)
			}
		case <-time.After(patience):
			t.Fatalf("the %s still leads to the old master", what)
		}
	}
	h.wantAt(other)
	h.wantDialed(other, 5)
	if n := h.log.count("WARN", "dropped what led elsewhere"); n != 1 || h.strays() < 2 {
		t.Errorf("%d warnings of %d dropped connections", n, h.strays())
	}
}

// The Sentinels go one by one. What is connected stays, and what is cut comes back to the same master, soon, whatever the last Sentinel
// says. When they are back they are heard again.
func TestWithoutAMajorityTheMasterStays(t *testing.T) {
	r, other := gatewaytest.StartSentinel(t), gatewaytest.StartRedis(t).Nodes[0]
	h := mustOpen(t, sentinelsURL(r.Sentinels, ""))
	h.wantAt(r.Nodes[0])
	must(t, r.Name(other.Addr, r.Sentinels[0]))
	r.Sentinels[1].Kill()
	r.Sentinels[2].Pause()
	began := time.Now()
	h.wantDialed(r.Nodes[0], 1)
	t.Logf("a dial took %v", time.Since(began))
	if q := h.asked(); q.err == nil {
		t.Errorf("one of three Sentinels decided for %s", q.master)
	}
	r.Sentinels[0].Kill()
	h.asked()
	h.wantAt(r.Nodes[0])
	if _, err := r.Nodes[0].Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both clients are at the master again", func() bool {
		return at(h.client) == r.Nodes[0].Addr && at(h.lanes) == r.Nodes[0].Addr
	})
	if n, warned := h.strays(), h.log.count("WARN", "name no master"); n != 0 || warned != 1 {
		t.Errorf("%d connections were dropped, and %d warnings given", n, warned)
	}
	r.Sentinels[2].Resume()
	must(t, r.Sentinels[1].Restart())
	eventually(t, "a majority names the master again", func() bool { return h.asked().err == nil })
	eventually(t, "the log says so", func() bool { return h.log.count("INFO", "name a master again") == 1 })
}

// A minority doesn't decide at the start either: who knows no master yet must not believe the only Sentinel that answers.
func TestAGatewayDoesNotStartOnAMinority(t *testing.T) {
	r := gatewaytest.StartSentinel(t)
	r.Sentinels[1].Kill()
	r.Sentinels[2].Kill()
	for name, sentinels := range map[string][]*gatewaytest.RedisNode{"all named": r.Sentinels, "the last one named": r.Sentinels[:1]} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, sentinelsURL(sentinels, ""))
			if !errors.Is(err, ErrDependency) || !strings.Contains(err.Error(), "of 3 sentinels no majority names a master") {
				t.Errorf("%v", err)
			}
		})
	}
}

// redis.url names one Sentinel. The others are found through it, heard, and enough when it goes.
func TestSentinelsAreDiscovered(t *testing.T) {
	r, other := gatewaytest.StartSentinel(t), gatewaytest.StartRedis(t).Nodes[0]
	h := mustOpen(t, sentinelsURL(r.Sentinels[:1], ""))
	if q := h.asked(); q.seats() != 3 || q.master != r.Nodes[0].Addr {
		t.Errorf("%d Sentinels, master %s, %v", q.seats(), q.master, q.err)
	}
	r.Sentinels[0].Kill()
	h.wantDialed(r.Nodes[0], 5)
	must(t, r.Name(other.Addr, r.Sentinels[1:]...))
	eventually(t, "both clients are at the new master", func() bool { return at(h.client) == other.Addr && at(h.lanes) == other.Addr })
}

// A user of the Sentinels with the documented permissions, and no more, is enough.
func TestTheDocumentedACLOfTheSentinels(t *testing.T) {
	r := gatewaytest.StartSentinel(t)
	rules := documentedSentinelACL(t)
	for _, n := range r.Sentinels {
		if _, err := n.Do(append([]any{"ACL", "SETUSER", "chatgate", "reset"}, rules...)...); err != nil {
			t.Fatal(err)
		}
		// Nobody else may ask; the harness is connected already.
		if _, err := n.Do("ACL", "SETUSER", "default", ">another"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := open(t, sentinelsURL(r.Sentinels, "")); !errors.Is(err, ErrDependency) {
		t.Errorf("without a password: %v", err)
	}
	// One that may not say how many there are has no vote: it might be the only one.
	if _, err := r.Sentinels[0].Do("ACL", "SETUSER", "half", "reset", "on", ">SECRET", "-@all", "+info",
		"+sentinel|get-master-addr-by-name", "+sentinel|myid"); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, sentinelsURL(r.Sentinels[:1], "&sentinel_username=half&sentinel_password=SECRET")); !errors.Is(err, ErrDependency) {
		t.Errorf("without the others: %v", err)
	}
	const user = "&sentinel_username=chatgate&sentinel_password=SECRET"
	h := mustOpen(t, sentinelsURL(r.Sentinels[:1], user))
	h.wantAt(r.Nodes[0])
	if q := h.asked(); q.seats() != 3 || q.err != nil {
		t.Errorf("%d Sentinels, %v", q.seats(), q.err)
	}
	for _, n := range r.Sentinels {
		if refused, err := n.Client().Do(context.Background(), "ACL", "LOG").Slice(); err != nil || slices.ContainsFunc(refused, byUser("chatgate")) {
			t.Errorf("%s refused %v, %v", n.Addr, refused, err)
		}
	}
}

// documentedSentinelACL reads the rules of the ACL user for Sentinels in docs/redis-model.md: the second one there.
func documentedSentinelACL(t *testing.T) (rules []any) {
	t.Helper()
	text, err := os.ReadFile("../../docs/redis-model.md")
	must(t, err)
	parts := strings.Split(string(text), "ACL SETUSER chatgate ")
	if len(parts) != 3 {
		t.Fatalf("docs/redis-model.md has %d ACL users, want 2", len(parts)-1)
	}
	block, _, _ := strings.Cut(parts[2], "```")
	for _, rule := range strings.Fields(strings.ReplaceAll(block, "\\\n", " ")) {
		rules = append(rules, rule)
	}
	return rules
}

func byUser(name string) func(any) bool {
	return func(entry any) bool { return pairs(entry)["username"] == name }
}
