package history

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

// A shelf is the logs of one test.
type shelf struct {
	*Reader
	t *testing.T
	c redis.UniversalClient
}

func newShelf(t *testing.T, r *gatewaytest.Redis, tune ...func(*Config)) *shelf {
	cfg := DefaultConfig()
	cfg.Layout = keyspace.Layout{Sharded: r.Kind == gatewaytest.Cluster}
	for _, f := range tune {
		f(&cfg)
	}
	return &shelf{Reader: New(r.Client(), cfg), t: t, c: r.Client()}
}

// eachRedis runs a test on every kind of Redis.
func eachRedis(t *testing.T, run func(t *testing.T, s *shelf), tune ...func(*Config)) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) { run(t, newShelf(t, r, tune...)) })
}

func (s *shelf) head(u protocol.UserID) Log {
	s.t.Helper()
	logs, err := s.Heads(context.Background(), protocol.UserAddress(u))
	if err != nil {
		s.t.Fatal(err)
	}
	return logs[0]
}

// fields are those of the log's head, as keyspace/lua/log.lua names them.
func (s *shelf) fields(u protocol.UserID) []string {
	s.t.Helper()
	h, err := s.c.HGet(context.Background(), keyspace.Log(protocol.UserAddress(u)), "h").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Fields(h)
}

func (s *shelf) setField(u protocol.UserID, i int, value string) {
	s.t.Helper()
	f := s.fields(u)
	f[i] = value
	if err := s.c.HSet(context.Background(), keyspace.Log(protocol.UserAddress(u)), "h", strings.Join(f, " ")).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// frame is a stored message of that many bytes; it says its own offset.
func frame(offset uint64, size int) string {
	f := fmt.Sprintf(`{"type":"message","id":"m%d"`, offset)
	return f + strings.Repeat(" ", max(0, size-len(f)))
}

// store appends messages behind the log's top.
func (s *shelf) store(u protocol.UserID, n, size int) {
	s.t.Helper()
	top := s.head(u).Top
	_, err := s.c.Pipelined(context.Background(), func(p redis.Pipeliner) error {
		for i := range uint64(n) {
			o := top + 1 + i
			p.XAdd(context.Background(), &redis.XAddArgs{
				Stream: keyspace.Stream(protocol.UserAddress(u)), ID: fmt.Sprintf("%d-%d", o, 1000+o), Values: []string{"1", frame(o, size)},
			})
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.setField(u, 1, fmt.Sprint(top+uint64(n)))
}

// trim drops everything below an offset, as retention does.
func (s *shelf) trim(u protocol.UserID, first uint64) {
	s.t.Helper()
	if err := s.c.XTrimMinID(context.Background(), keyspace.Stream(protocol.UserAddress(u)), fmt.Sprint(first)).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// roll makes Redis' history another one than the log's, which the next call sees.
func (s *shelf) roll(u protocol.UserID) Log {
	s.t.Helper()
	s.setField(u, 2, "another")
	return s.head(u)
}

func (s *shelf) wantPage(p Page, err error, more bool, from, to uint64) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	if p.More != more || uint64(len(p.Messages)) != to+1-from {
		s.t.Fatalf("%d messages, more %v, want %d to %d and %v", len(p.Messages), p.More, from, to, more)
	}
	for i, m := range p.Messages {
		o := from + uint64(i)
		if m.Offset != o || m.Time != int64(1000+o) || !strings.HasPrefix(m.Frame, fmt.Sprintf(`{"type":"message","id":"m%d"`, o)) {
			s.t.Fatalf("at %d: offset %d, time %d, %.60s, want offset %d", i, m.Offset, m.Time, m.Frame, o)
		}
	}
}
