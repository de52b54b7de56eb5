package gateway

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"chatgate/internal/api"
	"chatgate/internal/connection"
	"chatgate/internal/handler"
	"chatgate/internal/hook"
	"chatgate/internal/problem"
	"chatgate/internal/protocol"
)

// Stats is what /stats answers: what this gateway holds now, and what it did
// since it started. Counters only grow.
type Stats struct {
	GatewayID         string               `json:"gateway_id"`
	Name              string               `json:"name"`
	Redis             string               `json:"redis"` // embedded, standalone, sentinel or cluster
	Ready             bool                 `json:"ready"`
	Draining          bool                 `json:"draining"`
	Degraded          bool                 `json:"degraded"`
	UptimeSeconds     int64                `json:"uptime_seconds"`
	Time              int64                `json:"time"`               // ms since 1970
	ActiveConnections int                  `json:"active_connections"` // sockets, registered or not
	Registered        int64                `json:"registered_connections"`
	ActiveUsers       int                  `json:"active_users"`
	ActiveRooms       int64                `json:"active_rooms"` // with members here
	Connections       ConnectionsStats     `json:"connections"`
	Messages          MessagesStats        `json:"messages"`
	Presence          PresenceStats        `json:"presence"`
	Sinks             []hook.SinkStats     `json:"sinks"` // of events
	Hooks             []hook.DecisionStats `json:"hooks"` // that decide
	Commands          api.CommandStats     `json:"commands"`
	Errors            map[string]int64     `json:"errors"` // by code, those that occurred
}

// ConnectionsStats tells of sockets.
type ConnectionsStats struct {
	Accepted      uint64            `json:"accepted"`
	Rejected      map[string]uint64 `json:"rejected"` // by reason, those that occurred
	Ended         map[string]uint64 `json:"ended"`    // by cause, those that occurred
	FramesIn      uint64            `json:"frames_in"`
	FramesOut     uint64            `json:"frames_out"`
	BytesIn       uint64            `json:"bytes_in"`
	BytesOut      uint64            `json:"bytes_out"`
	SlowConsumers uint64            `json:"slow_consumers"`
}

// MessagesStats tells of messages sent and delivered by this gateway.
type MessagesStats struct {
	Routed          uint64 `json:"routed"`
	Stored          uint64 `json:"stored"`
	Ephemeral       uint64 `json:"ephemeral"`
	Everyone        uint64 `json:"everyone"`
	Dropped         uint64 `json:"dropped"`
	Delivered       uint64 `json:"delivered"`
	Unavailable     uint64 `json:"refused_unavailable"`
	Overloaded      uint64 `json:"refused_overloaded"`
	Pending         int    `json:"pending"`
	MissedPublishes uint64 `json:"missed_publishes"`
}

// PresenceStats tells of this gateway's hand in the registry.
type PresenceStats struct {
	Registered uint64 `json:"registered"`
	Refreshed  uint64 `json:"refreshed"`
	Removed    uint64 `json:"removed"`
	Again      uint64 `json:"registered_again"`
	Reaped     uint64 `json:"reaped"`
	Verdicts   uint64 `json:"verdicts"`
	Failed     uint64 `json:"failed_calls"`
}

// stats takes the figures of now.
func (g *Gateway) stats() Stats {
	m, r, p, h, a := g.manager.Stats(), g.router.Stats(), g.registry.Stats(), g.handler.Stats(), g.admission.Stats()
	s := Stats{
		GatewayID: string(g.id), Name: g.cfg.Name, Redis: g.backend.kind,
		Draining: g.draining.Load(), Degraded: g.router.Degraded() || !g.registry.Reachable(),
		UptimeSeconds: int64(time.Since(g.started).Seconds()), Time: time.Now().UnixMilli(),
		ActiveConnections: g.manager.Count(), Registered: p.Held, ActiveUsers: g.manager.Users(), ActiveRooms: p.HeldRooms,
		Connections: ConnectionsStats{
			Accepted: m.Added, Rejected: map[string]uint64{}, Ended: map[string]uint64{},
			FramesIn: m.FramesIn, FramesOut: m.FramesOut, BytesIn: m.BytesIn, BytesOut: m.BytesOut, SlowConsumers: m.SlowConsumers(),
		},
		Messages: MessagesStats{
			Routed: r.Routed, Stored: r.Stored, Ephemeral: r.Ephemeral, Everyone: r.Broadcasts, Dropped: r.Dropped, Delivered: r.Delivered,
			Unavailable: r.RefusedUnavailable, Overloaded: r.RefusedOverloaded, Pending: r.Pending, MissedPublishes: r.MissedPublishes,
		},
		Presence: PresenceStats{
			Registered: p.Registered, Refreshed: p.Refreshed, Removed: p.Removed, Again: p.Again,
			Reaped: p.Reaped, Verdicts: p.Verdicts, Failed: p.Failed,
		},
		Sinks: g.hooks.Stats(), Hooks: g.decider.Stats(), Commands: g.commands.Stats(),
		Errors: map[string]int64{},
	}
	s.Ready = !s.Draining && g.registry.Reachable() && g.router.Subscribed()
	for _, k := range connection.Kinds() {
		if n := m.Ends[k]; n > 0 {
			s.Connections.Ended[k.String()] = n
		}
	}
	for reason, n := range a.Rejected {
		if n > 0 {
			s.Connections.Rejected[string(reason)] = n
		}
	}
	if h.ForeignOrigins > 0 {
		s.Connections.Rejected[string(handler.ReasonOrigin)] = h.ForeignOrigins
	}
	for code, n := range h.Errors {
		if n > 0 {
			s.Errors[string(code)] = int64(n)
		}
	}
	return s
}

// snapshot is what the registry keeps for ?scope=cluster.
func (g *Gateway) snapshot() []byte {
	b, err := json.Marshal(g.stats())
	if err != nil {
		return nil
	}
	return b
}

// ClusterStats is what /stats?scope=cluster answers: the last snapshot of every
// gateway, a second old at most while it lives. No gateway is asked, so a dead
// one delays nothing; it is named, until it is reaped.
type ClusterStats struct {
	GatewayID         string            `json:"gateway_id"` // who answers
	Complete          bool              `json:"complete"`   // false: Redis did not answer, or a gateway is dead
	Error             string            `json:"error,omitempty"`
	ActiveConnections int               `json:"active_connections"` // of living gateways
	Dead              []string          `json:"dead"`
	Gateways          []json.RawMessage `json:"gateways"`
}

func (g *Gateway) clusterStats(ctx context.Context) ClusterStats {
	c := ClusterStats{GatewayID: string(g.id), Dead: []string{}}
	snapshots, dead, missing, err := g.registry.Cluster(ctx)
	if err != nil {
		c.Error = "redis does not answer"
		snapshots = make(map[protocol.GatewayID]string)
	}
	snapshots[g.id] = string(g.snapshot()) // of now
	for _, id := range slices.Sorted(maps.Keys(snapshots)) {
		raw := json.RawMessage(snapshots[id])
		if !json.Valid(raw) {
			continue
		}
		c.Gateways = append(c.Gateways, raw)
		if slices.Contains(dead, id) {
			c.Dead = append(c.Dead, string(id))
			continue
		}
		var s struct {
			N int `json:"active_connections"`
		}
		if json.Unmarshal(raw, &s) == nil {
			c.ActiveConnections += s.N
		}
	}
	c.Complete = err == nil && len(c.Dead) == 0 && len(missing) == 0
	return c
}

func (g *Gateway) serveStats(w http.ResponseWriter, r *http.Request) {
	switch scope := r.URL.Query().Get("scope"); scope {
	case "", "gateway":
		writeJSON(w, http.StatusOK, g.stats())
	case "cluster":
		writeJSON(w, http.StatusOK, g.clusterStats(r.Context()))
	default:
		problem.Problem{Status: http.StatusBadRequest, Detail: "scope: must be gateway or cluster"}.Write(w)
	}
}
