//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// head returns the fields of the head of a user's log: epoch, top, line, gen, count, since, extended, cursor.
func (f *fleet) head(user string) []string {
	f.t.Helper()
	s, err := f.client.HGet(context.Background(), keyspace.Log(protocol.UserAddress(protocol.UserID(user))), "h").Result()
	if err != nil {
		f.t.Fatal(err)
	}
	fields := strings.Split(s, " ")
	if len(fields) != 8 {
		f.t.Fatalf("the head of the log is %q", s)
	}
	return fields
}

func (f *fleet) setHead(user string, fields []string) {
	f.t.Helper()
	if err := f.client.HSet(context.Background(), keyspace.Log(protocol.UserAddress(protocol.UserID(user))), "h", strings.Join(fields, " ")).Err(); err != nil {
		f.t.Fatal(err)
	}
}

// A connection learns the position in its log: the next message gets top+1, and first is the oldest still kept.
func TestRegisteringTellsThePosition(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		first := a.register(a.entry("alice", ""))
		if first.Top != 0 || first.First != 1 || first.Epoch != f.head("alice")[0] {
			t.Errorf("a new log: %+v, head %v", first, f.head("alice"))
		}
		// As if five messages had been sent, and the first two were trimmed.
		head := f.head("alice")
		head[1] = "5"
		f.setHead("alice", head)
		for i := 3; i <= 5; i++ {
			if err := f.client.XAdd(context.Background(), &redis.XAddArgs{
				Stream: keyspace.Stream("u:alice"), ID: fmt.Sprintf("%d-1795310105531", i), Values: []any{"1", "{"},
			}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if got := a.register(a.entry("alice", "")); got.Epoch != first.Epoch || got.Top != 5 || got.First != 3 {
			t.Errorf("five messages, three kept: %+v", got)
		}
		// All of them are too old: the position stays.
		if err := f.client.Del(context.Background(), keyspace.Stream("u:alice")).Err(); err != nil {
			t.Fatal(err)
		}
		if got := a.register(a.entry("alice", "")); got.Epoch != first.Epoch || got.Top != 5 || got.First != 6 {
			t.Errorf("five messages, none kept: %+v", got)
		}
	})
}

// Redis' history line is another: something may have been lost. The epoch rolls, the offsets go on, and what the log was
// before is remembered, eight times. When the log was last extended is not the register's to say: a message that comes
// next must push out the expiry of the stream, which may be about to end.
func TestRegisteringRollsTheEpochOfAnotherLine(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		last := a.register(a.entry("alice", ""))
		var want []string
		for i := range 10 {
			head := f.head("alice")
			head[1], head[2], head[6] = fmt.Sprint(10+i), fmt.Sprint("another", i), fmt.Sprint(1000+i)
			f.setHead("alice", head)
			want = append([]string{last.Epoch + ":" + head[1]}, want...)

			e := a.entry("alice", "")
			got := a.register(e)
			if got.Epoch == last.Epoch || got.Top != uint64(10+i) {
				t.Fatalf("registered with %+v after %+v", got, last)
			}
			if again := f.head("alice"); again[0] != got.Epoch || again[1] != head[1] || again[2] == head[2] || again[6] != head[6] {
				t.Fatalf("the head is %v, was %v", again, head)
			}
			a.disconnect(e)
			last = got
		}
		pairs := f.client.HGet(context.Background(), keyspace.Log("u:alice"), "p").Val()
		if pairs != strings.Join(want[:8], " ") {
			t.Errorf("remembered %q, want %q", pairs, want[:8])
		}
		// Nothing rolls twice.
		if got := a.register(a.entry("alice", "")); got.Epoch != last.Epoch {
			t.Errorf("rolled again: %+v", got)
		}
	})
}

// The head of a log that holds nothing is kept as long as positions are, and what a former log of that name left is not
// taken for its messages.
func TestANewLogBeginsEmpty(t *testing.T) {
	eachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		f := newFleet(t, r)
		a := f.gateway("a")
		ctx := context.Background()
		if err := f.client.XAdd(ctx, &redis.XAddArgs{Stream: keyspace.Stream("u:alice"), ID: "7-1", Values: []any{"1", "{"}}).Err(); err != nil {
			t.Fatal(err)
		}
		if got := a.register(a.entry("alice", "")); got.Top != 0 || got.First != 1 {
			t.Errorf("registered with %+v", got)
		}
		if n := f.client.Exists(ctx, keyspace.Stream("u:alice")).Val(); n != 0 {
			t.Error("the former stream is still there")
		}
		if ttl := f.client.PTTL(ctx, keyspace.Log("u:alice")).Val(); ttl <= f.cfg.LogTTL/2 || ttl > f.cfg.LogTTL {
			t.Errorf("the head is kept for %v", ttl)
		}
	})
}
