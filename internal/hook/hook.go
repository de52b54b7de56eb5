package hook

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Hooks carries the events of a cluster to its sinks, together with the Hooks of
// the other gateways.
type Hooks struct {
	carriers []*carrier // immutable
}

// New prepares the sinks; none of them is spoken to yet. The client is for this
// alone, and should not repeat commands by itself. What New opened is closed when
// Run returns.
func New(client redis.UniversalClient, cfg Config) (*Hooks, error) {
	h := &Hooks{}
	for i := range cfg.Sinks {
		s := &cfg.Sinks[i]
		sink, err := open(client, &cfg, s)
		if err != nil {
			h.close()
			return nil, fmt.Errorf("events.sinks: %s: %w", s.Name, err)
		}
		h.carriers = append(h.carriers, newCarrier(client, &cfg, s, sink))
	}
	return h, nil
}

// errTooMany says that a sink takes fewer events at a time.
var errTooMany = errors.New("too many events at a time")

// A sink takes events.
type sink interface {
	// deliver hands events over in their order, and returns how many the sink took.
	// That is at least one when err is nil. What it did not take is given again, and
	// so may be what it did: a sink tells an event by its id. refused counts those
	// among the taken that the sink will never take. After errTooMany, or where there was
	// no time for any, it is given fewer.
	deliver(ctx context.Context, events []*Event) (taken, refused int, err error)
	close() error
}

func open(client redis.UniversalClient, cfg *Config, s *SinkConfig) (sink, error) {
	switch {
	case s.Webhook != nil:
		return newWebhook(s)
	case s.MySQL != nil:
		return newMySQL(s, cfg.Log)
	case s.Redis != nil:
		return newStream(client, s.Redis, cfg.Connect)
	default:
		return newFile(s.File.Path), nil
	}
}

// Run carries events until ctx ends, and then gives up what this gateway carries,
// for the others to go on at once.
func (h *Hooks) Run(ctx context.Context) error {
	defer h.close()
	var running sync.WaitGroup
	for _, c := range h.carriers {
		running.Go(func() { c.run(ctx) })
	}
	running.Wait()
	<-ctx.Done() // also without sinks
	return nil
}

func (h *Hooks) close() {
	for _, c := range h.carriers {
		_ = c.sink.close() // what it took is acknowledged, or comes again
	}
}
