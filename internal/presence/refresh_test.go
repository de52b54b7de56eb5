//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// A heartbeat pushes out the time until which a connection counts, and nothing else changes.
func TestARefreshMovesOnlyTheExpiry(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r, withEvents)
		a := f.gateway("a")
		e := a.entry("alice", "phone")
		e.Meta = `{"x":"` + "\u2028" + `"}`
		a.register(e)
		f.shiftExpiry(e, -10_000)
		expiry := func() int64 {
			l, err := a.registry.Get(context.Background(), "alice")
			if err != nil || len(l) != 1 {
				t.Fatalf("alice is at %v, %v", l, err)
			}
			return l[0].Expiry
		}
		before, version, story := expiry(), f.version("alice"), f.story("alice")
		a.registry.Refresh(e)
		f.eventually(func() error {
			if got := expiry(); got < before+9_000 {
				return fmt.Errorf("expiry moved by %d ms", got-before)
			}
			return nil
		})
		if got := f.version("alice"); got != version {
			t.Errorf("version %s, was %s", got, version)
		}
		if got := f.story("alice"); got != story {
			t.Errorf("events %s, were %s", got, story)
		}
	})
}

func (f *fleet) version(user string) string {
	epoch, n, _ := f.state(user)
	return epoch + "." + n
}

// Each refresh brings where the user's log stands, a second net for what was published and lost; so does registering again.
func TestARefreshTellsWhereTheLogStands(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		told := make(chan protocol.Position, 1000)
		a := f.gateway("a", func(c *Config) {
			c.OnLog = func(a protocol.Address, at protocol.Position) {
				if a == "u:alice" {
					told <- at
				}
			}
		})
		wantTold := func(want protocol.Position) {
			t.Helper()
			for deadline := time.After(patience); ; {
				select {
				case got := <-told:
					if got == want {
						return
					}
				case <-deadline:
					t.Fatalf("never told that the log stands at %v", want)
				}
			}
		}
		e := a.entry("alice", "")
		reg := a.register(e)
		head := f.head("alice")
		head[1] = "7"
		f.setHead("alice", head)
		a.registry.Refresh(e)
		wantTold(protocol.Position{Epoch: reg.Epoch, Offset: 7})
		// Redis lost both: a new log.
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		f.eventually(func() error {
			if a.registry.Stats().Again == 0 {
				return fmt.Errorf("not registered again")
			}
			return nil
		})
		wantTold(protocol.Position{Epoch: f.head("alice")[0]})
	})
}

// A connection that isn't refreshed for the TTL doesn't count any more for others. Its own gateway knows better.
func TestAnEntryThatIsNotRefreshedCountsNoLonger(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		e := a.connect("alice", "")
		f.wantAt("alice", e)
		f.shiftExpiry(e, -(f.cfg.TTL + time.Second).Milliseconds())
		f.eventually(func() error { return b.at("alice") })
		f.eventually(func() error { return a.at("alice", e) })
		a.registry.Refresh(e)
		f.eventually(func() error { return b.at("alice", e) })
	})
}

// scripts counts how often each script was called.
type scripts struct {
	mu  sync.Mutex
	ran map[string][]int // hash -> number of arguments of each call
}

func (*scripts) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*scripts) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (s *scripts) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			s.mu.Lock()
			hash := fmt.Sprint(cmd.Args()[1])
			s.ran[hash] = append(s.ran[hash], len(cmd.Args()))
			s.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

func (s *scripts) calls(script *redis.Script) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ran[script.Hash()])
}

// 600 heartbeats arrive within a window; each comes twice. They go to Redis in three calls of at most 256.
func TestRefreshesAreCollected(t *testing.T) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Embedded, gatewaytest.Standalone}, func(t *testing.T, r *gatewaytest.Redis) {
		// Without pulses: one that came late on a busy machine would ask for a refresh of everybody.
		f := newFleet(t, r, func(c *Config) { c.RefreshWindow, c.Pulse, c.Lease = 500*time.Millisecond, time.Hour, 3*time.Hour })
		counter := &scripts{ran: make(map[string][]int)}
		f.client = f.ownClient("", "")
		f.client.AddHook(counter)
		a := f.prepare("a")
		if err := a.registry.Join(context.Background()); err != nil {
			t.Fatal(err)
		}
		all := a.connectMany(users(600)...)
		for range 2 {
			for _, e := range all {
				a.registry.Refresh(e)
			}
		}
		a.run()
		f.eventually(func() error {
			if n := a.registry.Stats().Refreshed; n != 600 {
				return fmt.Errorf("%d refreshed", n)
			}
			return nil
		})
		if calls := counter.calls(a.registry.refresh); len(calls) != 3 || slices.Max(calls) > 3+2+2+4*256 {
			t.Errorf("refreshed by calls with %v arguments", calls)
		}
	})
}

// The four answers of the registry, for connections of one call: fine, told to go, taken while the gateway was away, lost.
func TestARefreshIsAnsweredForEachConnection(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.prepare("a")
		// On Cluster, one call is about users of one partition.
		mates := f.partitionMates(4)
		fine, marked, reaped, absent := a.connect(mates[0], ""), a.connect(mates[1], ""), a.connect(mates[2], ""), a.connect(mates[3], "")
		if n, err := a.registry.Kick(context.Background(), marked.User, Order{Conn: marked.Conn, Code: protocol.CloseKicked, Reason: "kicked", By: "ops desk 2"}); n.Marked != 1 || err != nil {
			t.Fatal(n, err)
		}
		ctx := context.Background()
		f.lose(absent)
		a.obeys = false
		ask := func(entries ...*Entry) {
			if !a.registry.refreshSome(ctx, a.registry.groupOf(entries[0].User), entries) {
				t.Fatal("Redis didn't answer")
			}
		}
		ask(fine, marked, absent)
		v, ok := a.verdict(marked)
		want := Verdict{Conn: marked.Conn, Fence: marked.Fence(), Code: protocol.CloseKicked, Reason: "kicked", By: "ops desk 2", At: v.At}
		if !ok || v != want || !lately(v.At) {
			t.Errorf("marked: %+v, want %+v", v, want)
		}
		f.eventually(func() error { return a.at(mates[3], absent) })

		// Now with a tombstone: what isn't there was reaped.
		f.lose(reaped)
		if err := f.client.HSet(ctx, keyspace.Tombstones(f.group(mates[2])), string(a.id), 1).Err(); err != nil {
			t.Fatal(err)
		}
		ask(reaped, fine)
		if v, ok := a.verdict(reaped); !ok || v != (Verdict{Conn: reaped.Conn, Fence: reaped.Fence(), Reaped: true}) {
			t.Errorf("reaped: %+v", v)
		}
		for _, e := range []*Entry{fine, absent} {
			if v, ok := a.verdict(e); ok {
				t.Errorf("%s was told %+v", e.User, v)
			}
		}
		a.disconnect(reaped)
		a.disconnect(marked)
	})
}

// lose undoes the registration of a user's only connection, as a failover to a replica does that had not heard of it.
func (f *fleet) lose(e *Entry) {
	f.t.Helper()
	ctx := context.Background()
	for _, key := range []string{keyspace.Conns(e.User), keyspace.Holders(protocol.UserAddress(e.User)), keyspace.State(e.User)} {
		if err := f.client.Del(ctx, key).Err(); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.client.HDel(ctx, keyspace.Own(f.group(string(e.User)), f.holder(e).id), string(e.Conn)).Err(); err != nil {
		f.t.Fatal(err)
	}
}

// partitionMates are users of one partition.
func (f *fleet) partitionMates(n int) (mates []string) {
	for i := 0; len(mates) < n; i++ {
		name := fmt.Sprint("mate", i)
		if keyspace.Partition(protocol.UserAddress(protocol.UserID(name))) == 17 {
			mates = append(mates, name)
		}
	}
	return mates
}

// The registry lost a connection, and before it came back its device registered elsewhere: the older one has to go.
func TestALostConnectionDoesNotComeBackBesideItsSuccessor(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.prepare("a")
		b := f.gateway("b")
		old := a.connect("alice", "phone")
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		now := b.connect("alice", "phone")
		a.run()
		v := a.wantVerdict(old)
		if v.Reaped || v.Code != protocol.CloseReplaced {
			t.Errorf("the older one was told %+v", v)
		}
		f.wantAt("alice", now)
	})
}

// A kick reaches every connection of a user, or one; each is marked once, and its gateway hears of it at once.
func TestAKickMarksOnceAndTellsTheHolder(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		a.obeys, b.obeys = false, false
		ctx := context.Background()
		desktop, phone := a.connect("alice", "desktop"), b.connect("alice", "phone")
		bobs := b.connect("bob", "")
		toA, toB := f.listen(a, "alice"), f.listen(b, "alice")
		kick := func(conn protocol.ConnID, want int, told ...*Entry) {
			t.Helper()
			var ids []protocol.ConnID
			for _, e := range told {
				ids = append(ids, e.Conn)
			}
			k, err := a.registry.Kick(ctx, "alice", Order{Conn: conn, Code: protocol.CloseKicked, Reason: "kicked", By: "ops"})
			slices.Sort(k.Conns)
			slices.Sort(ids)
			if k.Marked != want || !slices.Equal(k.Conns, ids) || err != nil {
				t.Errorf("kick %q marked %+v, %v, want %d, of %v", conn, k, err, want, ids)
			}
		}
		kick("nobody", 0)
		kick(phone.Conn, 1, phone)
		f.wantAt("alice", desktop)
		kick(phone.Conn, 0, phone)
		kick("", 1, desktop, phone)
		kick("", 0, desktop, phone)
		f.wantAt("alice")
		f.wantAt("bob", bobs)
		for e, heard := range map[*Entry]<-chan string{desktop: toA, phone: toB} {
			kind, body, err := protocol.OpenEnvelope(next(t, heard))
			if err != nil || kind != protocol.EnvelopeKick {
				t.Fatalf("heard %q %q, %v", kind, body, err)
			}
			k, err := protocol.OpenKick(body)
			want := protocol.Kick{Conn: e.Conn, Fence: e.Fence(), Code: protocol.CloseKicked, Reason: "kicked", By: "ops", At: k.At}
			if err != nil || k != want || !lately(k.At) {
				t.Errorf("heard %+v, %v, want %+v", k, err, want)
			}
		}
		// The holder takes it out when the socket is closed.
		a.disconnect(desktop)
		b.disconnect(phone)
		f.wantState("alice", "offline")
		kick("", 0)
	})
}

// The word about a kick was lost: nobody was subscribed. The next refresh brings it, and every one after.
func TestALostKickIsFoundByTheNextRefresh(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a, b := f.gateway("a"), f.gateway("b")
		e := a.connect("alice", "")
		if n, err := b.registry.Kick(context.Background(), "alice", Order{Code: protocol.CloseRevoked, Reason: "revoked"}); n.Marked != 1 || err != nil {
			t.Fatal(n, err)
		}
		v := a.wantVerdict(e)
		if v != (Verdict{Conn: e.Conn, Fence: e.Fence(), Code: protocol.CloseRevoked, Reason: "revoked", At: v.At}) || !lately(v.At) {
			t.Errorf("told %+v", v)
		}
		f.wantSound()
		f.wantState("alice", "offline")
	})
}

// Who kicks is named by the outside, and so is the reason. Whatever they hold, the answers for other connections of the
// same call stay readable.
func TestAKickInStrangeWordsHarmsNobody(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.prepare("a")
		a.obeys = false
		mates := f.partitionMates(2)
		kicked, other := a.connect(mates[0], ""), a.connect(mates[1], "")
		heard := f.listen(a, mates[0])
		if n, err := a.registry.Kick(context.Background(), kicked.User, Order{Code: protocol.CloseKicked, Reason: "two words\n", By: "a\nb\x1fc d\u0085"}); n.Marked != 1 || err != nil {
			t.Fatal(n, err)
		}
		if !a.registry.refreshSome(context.Background(), a.registry.groupOf(other.User), []*Entry{kicked, other}) {
			t.Fatal("the refresh failed")
		}
		want := Verdict{Conn: kicked.Conn, Fence: kicked.Fence(), Code: protocol.CloseKicked, Reason: "two words ", By: "a b c d "}
		v, _ := a.verdict(kicked)
		if want.At = v.At; v != want || !lately(v.At) {
			t.Errorf("told %+v, want %+v", v, want)
		}
		_, body, _ := protocol.OpenEnvelope(next(t, heard))
		if k, err := protocol.OpenKick(body); err != nil || k.Reason != want.Reason || k.By != want.By {
			t.Errorf("heard %+v, %v", k, err)
		}
		if v, told := a.verdict(other); told {
			t.Errorf("the other was told %+v", v)
		}
		a.disconnect(kicked)
		f.wantAt(mates[0])
	})
}

// listen subscribes to a gateway's channel in the group of a user, and returns what is published there but pulses.
func (f *fleet) listen(g *gateway, user string) <-chan string {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	channel := keyspace.Channel(f.group(user), g.id)
	var ps *redis.PubSub
	if f.cfg.Layout.Sharded {
		ps = f.client.SSubscribe(ctx, channel)
	} else {
		ps = f.client.Subscribe(ctx, channel)
	}
	if _, err := ps.Receive(ctx); err != nil {
		f.t.Fatal(err)
	}
	heard, done := make(chan string, 1000), make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := ps.ReceiveMessage(ctx)
			if err != nil {
				return
			}
			if !strings.HasPrefix(m.Payload, "\x01p") {
				heard <- m.Payload
			}
		}
	}()
	f.t.Cleanup(func() {
		cancel()
		_ = ps.Close()
		<-done
	})
	return heard
}

func next(t *testing.T, heard <-chan string) string {
	t.Helper()
	select {
	case s := <-heard:
		return s
	case <-time.After(patience):
		t.Fatal("nothing was heard")
		return ""
	}
}
