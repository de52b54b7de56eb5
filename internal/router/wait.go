package router

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// With WaitReplicas an ack says more than that the master has a message: so many
// replicas have it too. Healing and probing acknowledge nothing to anybody, so they
// don't wait; what they wrote is covered by the wait of the next batch.

// errUnrouted says that a call was not sent, since nobody could say where to.
var errUnrouted = errors.New("router: no master for the slot")

// evalAndWait runs the script and waits until the replicas have what it wrote, or
// don't within WaitTimeout. An error is the script's. All of it goes over one
// connection, since WAIT is about the writes of its own.
func (c *call) evalAndWait(ctx context.Context, r *Router, name, script string, g keyspace.Group) (reply any, confirmed bool, err error) {
	master, err := r.lanes.master(ctx, c.keys[0])
	if err != nil {
		return nil, false, err
	}
	pipe := master.Pipeline()
	cmd := c.eval(ctx, name, script)
	_ = pipe.Process(ctx, once{cmd})
	// A repeat may come over another connection, and the script answers it without
	// writing: since Redis 7.2 WAIT would then wait for nothing. This changes
	// nothing, but is a write like any other, behind everything before.
	touch := pipe.HIncrBy(ctx, keyspace.Numbers(g), string(r.cfg.Gateway), 0)
	wait := pipe.Do(ctx, "wait", r.cfg.WaitReplicas, r.cfg.WaitTimeout.Milliseconds())
	_, sent := pipe.Exec(ctx)
	if err = cmd.Err(); err == nil && cmd.Val() == nil {
		err = sent // the connection was refused before it carried anything
	}
	if err != nil {
		r.lanes.reload(ctx)
		return nil, false, err
	}
	replicas, err := wait.Int()
	return cmd.Val(), touch.Err() == nil && err == nil && replicas >= r.cfg.WaitReplicas, nil
}

// master is the client of the one server that has the key's slot: a pipeline of
// the Cluster's client would send a command without a key to any of them.
func (l *lanes) master(ctx context.Context, key string) (redis.UniversalClient, error) {
	cluster, ok := l.client.(*redis.ClusterClient)
	if !ok {
		return l.client, nil
	}
	master, err := cluster.MasterForKey(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnrouted, err)
	}
	return master, nil
}

// reload learns again who has which slot. The client of one server follows neither
// MOVED nor ASK; the lane repeats the call in a moment.
func (l *lanes) reload(ctx context.Context) {
	if cluster, ok := l.client.(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx)
	}
}

// doubt answers what the master has stored and too few replicas: a failover may
// lose it. The sender repeats it with its id, and then the replicas have it, or it
// is stored on their new master.
func (l *lane) doubt(batch []*Message) {
	r := l.router
	n := 0
	for _, m := range batch {
		if m.Result.Err == nil && !m.lacks {
			n++
			m.fail(protocol.CodeUnknown, doubtText, 2*r.cfg.Probe)
		}
	}
	r.counts.unconfirmed.Add(uint64(n))
	now, last := r.clock(), r.doubted.Load()
	if n > 0 && (last == 0 || now-last > int64(doubtEvery)) && r.doubted.CompareAndSwap(last, now) {
		r.cfg.Log.Warn("too few replicas confirm in time", "group", string(l.group), "messages", n,
			"want", r.cfg.WaitReplicas, "timeout", r.cfg.WaitTimeout)
	}
}

// doubtText tells the sender why, as the texts of lane.send do.
const doubtText = "too few replicas confirmed in time, repeat with the same id"

// doubtEvery is how often the log says that replicas don't confirm, which may be
// true of every call.
const doubtEvery = 10 * time.Second
