package hook

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// stream appends events to a Redis stream.
type stream struct {
	client redis.UniversalClient
	own    bool // opened for this sink
	key    string
	kept   int64
}

func newStream(gateways redis.UniversalClient, s *RedisConfig, connect func(string) (redis.UniversalClient, error)) (*stream, error) {
	to := &stream{client: gateways, key: s.Stream, kept: int64(s.Kept)}
	if s.URL == "" {
		return to, nil
	}
	client, err := connect(s.URL)
	if err != nil {
		return nil, err
	}
	to.client, to.own = client, true
	return to, nil
}

// deliver appends in one round trip. Only a beginning that Redis took entirely
// counts: what follows a failed entry must not stand before it.
func (s *stream) deliver(ctx context.Context, events []*Event) (taken, refused int, err error) {
	pipe := s.client.TxPipeline()
	for _, e := range events {
		pipe.XAdd(ctx, &redis.XAddArgs{
			Stream: s.key, MaxLen: s.kept, Approx: s.kept > 0,
			Values: []any{"id", e.ID, "type", e.Type, "user", e.User, "event", string(e.appendJSON(nil))},
		})
	}
	if _, err = pipe.Exec(ctx); err != nil {
		return 0, 0, err
	}
	return len(events), 0, nil
}

func (s *stream) close() error {
	if s.own {
		return s.client.Close()
	}
	return nil
}
