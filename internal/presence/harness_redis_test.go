//go:build !secondpass

package presence

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// ownClient returns another client to the same Redis, for a test that hooks it or gives it a user. It is closed with the
// test.
func (f *fleet) ownClient(username, password string) redis.UniversalClient {
	f.t.Helper()
	var c redis.UniversalClient
	switch shared := f.redis.Client().(type) {
	case *redis.ClusterClient:
		o := *shared.Options()
		o.Username, o.Password = username, password
		c = redis.NewClusterClient(&o)
	case *redis.Client:
		o := *shared.Options()
		o.Username, o.Password = username, password
		c = redis.NewClient(&o)
	default:
		f.t.Fatalf("unknown client %T", shared)
	}
	f.clients = append(f.clients, c)
	return c
}

// away stops Redis from answering for a while. The embedded one can't be paused: there every gateway is, which for the
// registry's clock is the same.
func (f *fleet) away(d time.Duration) {
	f.t.Helper()
	switch err := f.redis.Pause(); {
	case errors.Is(err, gatewaytest.ErrEmbedded):
		var stopped []*gateway
		for _, g := range f.gateways {
			if g.cancel != nil {
				g.stop()
				stopped = append(stopped, g)
			}
		}
		f.outlast(d)
		for _, g := range stopped {
			g.run()
		}
	case err != nil:
		f.t.Fatal(err)
	default:
		f.outlast(d)
		if err := f.redis.Resume(); err != nil {
			f.t.Fatal(err)
		}
	}
}

// quiet reports whether a gateway's quiet time runs, in the group of a user.
func (f *fleet) quiet(g *gateway, user string) bool {
	v := g.registry.groupOf(protocol.UserID(user)).view.Load()
	return v != nil && v.now() < v.quiet
}

// eachRedis runs a test on every kind of Redis, the kinds side by side: these tests wait more than they work.
func eachRedis(t *testing.T, run func(t *testing.T, r *gatewaytest.Redis)) {
	onRedis(t, gatewaytest.Kinds, run)
}

// eachRealRedis runs a test on the kinds that are processes of their own.
func eachRealRedis(t *testing.T, run func(t *testing.T, r *gatewaytest.Redis)) {
	onRedis(t, []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster, gatewaytest.Sentinel}, run)
}

func onRedis(t *testing.T, kinds []gatewaytest.Kind, run func(t *testing.T, r *gatewaytest.Redis)) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			run(t, gatewaytest.Shared(t, kind))
		})
	}
}
