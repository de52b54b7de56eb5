package router

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
)

// resubscribePause is the longest pause before a lost subscription is made anew.
const resubscribePause = 500 * time.Millisecond

var (
	errStarved      = errors.New("router: no pulse on the channel")
	errUnsubscribed = errors.New("router: unsubscribed by redis")
)

// receive keeps this group's channel subscribed. It hands over and does nothing
// else, so that Redis never waits for a client.
func (d *deliverer) receive(ctx context.Context) {
	for ctx.Err() == nil {
		err := d.subscription(ctx)
		if ctx.Err() != nil {
			return
		}
		d.router.cfg.Log.Log(ctx, d.router.lostLevel(), "subscription lost", "group", string(d.group), "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(resubscribePause/10 + rand.N(resubscribePause)):
		}
	}
}

// lostLevel is the level a lost subscription is logged at: on Cluster one outage
// ends 64 of them, and one warning says it.
func (r *Router) lostLevel() slog.Level {
	now, last := r.clock(), r.warned.Load()
	if last != 0 && now-last < int64(time.Second) || !r.warned.CompareAndSwap(last, now) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// subscription is one PubSub from its making to its end. A network error ends
// it: reconnecting inside the client would hide what was missed meanwhile.
func (d *deliverer) subscription(ctx context.Context) error {
	r := d.router
	channel := keyspace.Channel(d.group, r.cfg.Gateway)
	var ps *redis.PubSub
	if r.cfg.Layout.Sharded {
		ps = r.client.SSubscribe(ctx, channel)
	} else {
		ps = r.client.Subscribe(ctx, channel)
	}
	defer ps.Close()
	d.listening.Store(ps)
	defer d.subscribed.Store(false)
	stop := context.AfterFunc(ctx, func() { _ = ps.Close() })
	defer stop()
	for {
		v, err := ps.ReceiveTimeout(ctx, r.cfg.Starved)
		if err != nil {
			if isTimeout(err) {
				return errStarved
			}
			return err
		}
		switch v := v.(type) {
		case *redis.Subscription:
			if v.Kind != "subscribe" && v.Kind != "ssubscribe" {
				return errUnsubscribed // the channel's slot moved to another master
			}
			d.subscribed.Store(true)
			r.counts.subscriptions.Add(1)
			// Whatever was published before this moment may have been missed.
			select {
			case d.commands <- command{kind: commandCheck}:
			case <-ctx.Done():
				return ctx.Err()
			}
		case *redis.Message:
			select {
			case d.payloads <- v.Payload:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// deaf is how many pulses in a row nobody hears before the subscription is made
// anew: the answer to one may be older than the subscription.
const deaf = 2

// listen looks whether the pulses are heard where they are published. A server that
// was demoted keeps its subscribers, and passes on what its master publishes: all
// arrives, but the master counts nobody, and senders are told so.
func (d *deliverer) listen(heard int) {
	if heard != 0 || !d.subscribed.Load() {
		d.unheard = 0
		return
	}
	if d.unheard++; d.unheard == deaf {
		d.unheard = 0
		d.router.cfg.Log.Log(d.router.ctx, d.router.lostLevel(), "subscribed where nothing is published: subscribing again", "group", string(d.group))
		if ps := d.listening.Load(); ps != nil {
			_ = ps.Close()
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
