package gateway

import (
	"log/slog"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/hook"
	"chatgate/internal/protocol"
)

// newHooks prepares the carrying of events to the configured sinks.
func newHooks(cfg Config, b *backend, id protocol.GatewayID, log *slog.Logger) (*hook.Hooks, error) {
	hc := hook.DefaultConfig()
	hc.Gateway, hc.Layout, hc.Log, hc.Timeout = id, b.layout, log, cfg.Redis.Timeout
	hc.Lease, hc.Renew, hc.Poll = cfg.Cluster.Lease, cfg.Cluster.PulseInterval, cfg.Cluster.PulseInterval/4
	if b.layout.Sharded {
		// 64 groups, each asked in turn: four times a second would cost more than the events are worth.
		hc.Poll = cfg.Cluster.PulseInterval / 2
	}
	hc.Sinks, hc.Messages = cfg.Events.Sinks, cfg.Events.messagesWritten(1) > 0
	hc.Connect = func(url string) (redis.UniversalClient, error) {
		rc := cfg.Redis
		rc.URL, rc.Mode, rc.MasterName = url, "auto", ""
		o, err := rc.Universal()
		if err != nil {
			return nil, err
		}
		o.MaxRetries = -1
		return newClient(o), nil
	}
	return hook.New(b.hooks, hc)
}
