package api

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"chatgate/internal/protocol"
)

// None is a request that asks for nothing in particular.
type None struct{}

// Gateway is one gateway, by the figures it left with its lease at its last pulse.
type Gateway struct {
	ID            protocol.GatewayID `json:"id" doc:"Its name and a random part: one that restarts is another." example:"a-k3v9x2mq"`
	Name          string             `json:"name" doc:"As configured." example:"a"`
	Alive         bool               `json:"alive" doc:"false: its lease has ended, and the figures are its last ones." example:"true"`
	Ready         bool               `json:"ready" doc:"New connections should come to it." example:"true"`
	Draining      bool               `json:"draining" doc:"It is about to end."`
	Degraded      bool               `json:"degraded" doc:"It lacks something it needs, Redis most likely."`
	Redis         string             `json:"redis" doc:"What it keeps the shared state in." example:"standalone"`
	UptimeSeconds int64              `json:"uptimeSeconds" doc:"Since it started." example:"3600"`
	Time          int64              `json:"time" doc:"When it took these figures, ms since 1970." example:"1795305600000"`
	Figures
}

// Figures are what a gateway holds now, and what it did since it started.
type Figures struct {
	Connections int64         `json:"connections" doc:"Sockets, registered or not." example:"2"`
	Registered  int64         `json:"registered" doc:"Connections of users." example:"2"`
	Users       int64         `json:"users" doc:"Users with a connection, each counted once at each gateway." example:"2"`
	Rooms       int64         `json:"rooms" doc:"Rooms with members, each counted once at each gateway." example:"1"`
	Messages    MessageCounts `json:"messages" doc:"Since the gateway started."`
}

// MessageCounts are messages, by what became of them.
type MessageCounts struct {
	Routed    int64 `json:"routed" doc:"Sent here and handed to gateways." example:"1"`
	Stored    int64 `json:"stored" doc:"Sent here and kept for later."`
	Delivered int64 `json:"delivered" doc:"Given to connections here." example:"1"`
}

// GatewaysAnswer lists the gateways.
type GatewaysAnswer struct {
	Gateways []Gateway `json:"gateways" doc:"All that the registry knows, by id."`
	Missing
}

// StatsAnswer sums them up.
type StatsAnswer struct {
	Gateways int `json:"gateways" doc:"Living ones, which the figures are of." example:"1"`
	Figures
	Missing
}

// snapshot is what a gateway leaves with its lease: its /stats, of which this is read.
type snapshot struct {
	Name     string `json:"name"`
	Redis    string `json:"redis"`
	Ready    bool   `json:"ready"`
	Draining bool   `json:"draining"`
	Degraded bool   `json:"degraded"`
	Uptime   int64  `json:"uptime_seconds"`
	Time     int64  `json:"time"`
	Active   int64  `json:"active_connections"`
	Held     int64  `json:"registered_connections"`
	Users    int64  `json:"active_users"`
	Rooms    int64  `json:"active_rooms"`
	Messages struct {
		Routed    int64 `json:"routed"`
		Stored    int64 `json:"stored"`
		Delivered int64 `json:"delivered"`
	} `json:"messages"`
}

var getGateways = on(operation{
	Name: "getGateways", Method: "GET", Path: "/gateways", Scope: ScopeStats,
	Summary:     "List the gateways",
	Description: "With the figures each left with its lease, a second old at most while it lives. No gateway is asked, so a dead one delays nothing: it is named in missing until it is cleaned up after.",
	Codes:       []Code{CodeUnavailable},
}, (*API).getGateways)

var getStats = on(operation{
	Name: "getStats", Method: "GET", Path: "/stats", Scope: ScopeStats,
	Summary:     "Sum up the cluster",
	Description: "The figures of all living gateways together.",
	Codes:       []Code{CodeUnavailable},
}, (*API).getStats)

func (a *API) getGateways(ctx context.Context, _ *None) (*GatewaysAnswer, error) {
	if !a.cfg.Registry.AnswersOfGateways() {
		return nil, unavailable()
	}
	snapshots, dead, silent, err := a.cfg.Registry.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	snapshots[a.cfg.Gateway] = string(a.cfg.Snapshot()) // of now
	missing := a.missing()
	for _, id := range slices.Concat(dead, silent) {
		if id != a.cfg.Gateway && !slices.Contains(missing.Missing, id) {
			missing.Missing = append(missing.Missing, id)
		}
	}
	answer := &GatewaysAnswer{Gateways: []Gateway{}}
	for id, text := range snapshots {
		var s snapshot
		if json.Unmarshal([]byte(text), &s) != nil {
			missing.Missing = append(missing.Missing, id) // another version's
			continue
		}
		answer.Gateways = append(answer.Gateways, Gateway{
			ID: id, Name: s.Name, Alive: !slices.Contains(dead, id), Ready: s.Ready, Draining: s.Draining, Degraded: s.Degraded,
			Redis: s.Redis, UptimeSeconds: s.Uptime, Time: s.Time,
			Figures: Figures{
				Connections: s.Active, Registered: s.Held, Users: s.Users, Rooms: s.Rooms,
				Messages: MessageCounts{Routed: s.Messages.Routed, Stored: s.Messages.Stored, Delivered: s.Messages.Delivered},
			},
		})
	}
	slices.SortFunc(answer.Gateways, func(a, b Gateway) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(missing.Missing)
	answer.Missing = missing
	return answer, nil
}

func (a *API) getStats(ctx context.Context, q *None) (*StatsAnswer, error) {
	all, err := a.getGateways(ctx, q)
	if err != nil {
		return nil, err
	}
	answer := &StatsAnswer{Missing: all.Missing}
	for i := range all.Gateways {
		if g := &all.Gateways[i]; g.Alive {
			answer.Gateways++
			answer.Connections += g.Connections
			answer.Registered += g.Registered
			answer.Users += g.Users
			answer.Rooms += g.Rooms
			answer.Messages.Routed += g.Messages.Routed
			answer.Messages.Stored += g.Messages.Stored
			answer.Messages.Delivered += g.Messages.Delivered
		}
	}
	return answer, nil
}
