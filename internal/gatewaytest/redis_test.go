//go:build !secondpass

package gatewaytest

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

func wantValue(t *testing.T, r *Redis, key, want string) {
	t.Helper()
	got, err := r.Client().Get(context.Background(), key).Result()
	if err != nil || got != want {
		t.Fatalf("%s: GET %s: %q, %v, want %q", r.Kind, key, got, err, want)
	}
}

func mustSet(t *testing.T, r *Redis, key, value string) {
	t.Helper()
	if err := r.Client().Set(context.Background(), key, value, 0).Err(); err != nil {
		t.Fatal(err)
	}
}

// Every kind keeps what is written, to any slot, and is empty after FlushAll.
func TestEveryKindKeepsAndForgets(t *testing.T) {
	EachRedis(t, func(t *testing.T, r *Redis) {
		for i := range 50 {
			mustSet(t, r, "key"+itoa(i), itoa(i))
		}
		for i := range 50 {
			wantValue(t, r, "key"+itoa(i), itoa(i))
		}
		if err := r.FlushAll(); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			if n := r.Client().Exists(context.Background(), "key"+itoa(i)).Val(); n != 0 {
				t.Fatalf("key%d outlived FLUSHALL", i)
			}
		}
	})
}

// Keys expire on the embedded one too, although its clock has to be pushed.
func TestKeysExpireOnEveryKind(t *testing.T) {
	t.Parallel()
	EachRedis(t, func(t *testing.T, r *Redis) {
		if err := r.Client().Set(context.Background(), "key", "value", 300*time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
		wantValue(t, r, "key", "value")
		wantWithin(t, 5*time.Second, func() bool { return r.Client().Exists(context.Background(), "key").Val() == 0 })
	})
}

// A shared server is empty for each test and survives what tests do to it.
func TestSharedServerIsCleanForEachTest(t *testing.T) {
	for _, kind := range []Kind{Standalone, Cluster, Sentinel} {
		t.Run(string(kind), func(t *testing.T) {
			var first *Redis
			t.Run("leaves a mess", func(t *testing.T) {
				first = Shared(t, kind)
				mustSet(t, first, "key", "value")
				if err := first.Pause(); err != nil {
					t.Fatal(err)
				}
			})
			t.Run("finds it clean", func(t *testing.T) {
				r := Shared(t, kind)
				if r != first {
					t.Error("a paused server should have been resumed, not replaced")
				}
				if n := r.Client().Exists(context.Background(), "key").Val(); n != 0 {
					t.Error("the key of the test before is still there")
				}
			})
		})
	}
}

// A paused server answers nobody and forgets nothing.
func TestPausedRedisComesBack(t *testing.T) {
	for _, kind := range []Kind{Standalone, Cluster, Sentinel} {
		t.Run(string(kind), func(t *testing.T) {
			r := Shared(t, kind)
			mustSet(t, r, "key", "value")
			if err := r.Pause(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			if err := r.Client().Get(ctx, "key").Err(); err == nil {
				t.Error("a paused server answered")
			}
			if err := r.Resume(); err != nil {
				t.Fatal(err)
			}
			wantValue(t, r, "key", "value")
		})
	}
}

// However long it is paused: the sentinels promote nobody meanwhile.
func TestPausedRedisKeepsItsMaster(t *testing.T) {
	t.Parallel()
	r := Shared(t, Sentinel)
	before, err := r.masterBySentinels()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Sentinels {
		wantWithin(t, 5*downAfter, func() bool {
			fields, err := n.client.Do(context.Background(), "SENTINEL", "MASTER", masterName).StringSlice()
			m := lastReply.FindStringSubmatch(fmt.Sprint(fields))
			if err != nil || m == nil {
				return false
			}
			silent, err := strconv.Atoi(m[1])
			return err == nil && silent > 2*int(downAfter.Milliseconds())
		})
	}
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	if after, err := r.masterBySentinels(); err != nil || after != before {
		t.Errorf("the master is %s, %v, was %s", after, err, before)
	}
}

// A restarted server without persistence is empty; with it, it isn't.
func TestRestartedRedisKeepsWhatItWasToldToKeep(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want int64
	}{
		"in memory": {nil, 0},
		"appending": {[]string{"--appendonly", "yes", "--appendfsync", "always"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := StartRedis(t, tc.args...)
			mustSet(t, r, "key", "value")
			if err := r.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := r.Restart(); err != nil {
				t.Fatal(err)
			}
			if n := r.Client().Exists(context.Background(), "key").Val(); n != tc.want {
				t.Errorf("%d keys after the restart, want %d", n, tc.want)
			}
		})
	}
}

// The sentinels promote a replica of a dead master within seconds, and clients by name find it.
func TestSentinelsFailOver(t *testing.T) {
	t.Parallel()
	r := StartSentinel(t)
	mustSet(t, r, "key", "value")
	wantWithin(t, 5*time.Second, func() bool { return r.Nodes[1].Client().Exists(context.Background(), "key").Val() == 1 })
	old := r.Nodes[0].Addr
	r.Nodes[0].Kill()
	master, err := r.WaitFailover(old, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if master == old {
		t.Errorf("%s was promoted, but it is dead", master)
	}
	wantValue(t, r, "key", "value")
}

func TestMissingServerFailsUnlessNamed(t *testing.T) {
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	for name, tc := range map[string]struct {
		skip            string
		failed, skipped bool
	}{
		"missing":           {"", true, false},
		"missing and named": {"nginx,chromium", false, true},
		"another is named":  {"nginx", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CHATGATE_SKIP_SERVERS", tc.skip)
			failed, skipped := outcome(func(tb testing.TB) { Need(tb, "chromium") })
			if failed != tc.failed || skipped != tc.skipped {
				t.Errorf("failed %v, skipped %v, want %v, %v", failed, skipped, tc.failed, tc.skipped)
			}
		})
	}
	t.Setenv("PATH", path)
}

// outcome runs f with a testing.TB that notes what became of it.
func outcome(f func(testing.TB)) (failed, skipped bool) {
	tb := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(tb)
	}()
	<-done
	return tb.failed, tb.skipped
}
