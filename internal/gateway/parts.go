package gateway

import (
	"slices"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/handler"
	"chatgate/internal/presence"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// presenceConfig is how this gateway takes part in the registry.
func (g *Gateway) presenceConfig(classes map[protocol.ClassID]int) presence.Config {
	cfg, groups := &g.cfg, len(g.backend.layout.Groups())
	pc := presence.DefaultConfig()
	pc.Gateway, pc.Layout = g.id, g.backend.layout
	pc.TTL, pc.Heartbeat, pc.ConnectionsPerUser = cfg.Heartbeat.PresenceTTL, cfg.Heartbeat.Interval, cfg.Limits.ConnectionsPerUser
	pc.Pulse, pc.Lease, pc.Quiet = cfg.Cluster.PulseInterval, cfg.Cluster.Lease, cfg.Cluster.Quiet
	pc.ReapAfter, pc.Grace, pc.Timeout = cfg.Cluster.ReapAfter, cfg.Cluster.Grace, cfg.Redis.Timeout
	pc.LogTTL, pc.MemberPushes = cfg.History.Positions, cfg.Limits.MemberPushes
	pc.Classes, pc.OldestStay = classes, cfg.Limits.ClassPolicy == "oldest"
	pc.EventsKept, pc.RoomEventsKept = cfg.Events.written(groups), cfg.Events.roomsWritten(groups)
	pc.Lost = handler.EndOf(connection.Cause{Kind: connection.KindGatewayLost})
	pc.Abandoned = handler.EndOf(connection.Cause{Kind: connection.KindAbandoned})
	pc.Each = handler.Each(g.manager)
	pc.OnVerdict = func(v presence.Verdict) { handler.Judged(g.manager, v, cfg.Cluster.ReapAfter) }
	pc.Snapshot = g.snapshot
	pc.OnPulse = func(group int, number uint64, line string, heard int) { g.router.Pulsed(group, number, line, heard) }
	pc.OnSilence = func(group int) { g.router.Silent(group) }
	pc.OnLog = func(a protocol.Address, at protocol.Position) { g.router.Stands(a, at) }
	return pc
}

// classNames are what a client may choose from.
func classNames(classes map[protocol.ClassID]int) (names []string) {
	for name := range classes {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

// routerConfig is how it carries messages.
func (g *Gateway) routerConfig() router.Config {
	cfg, groups := &g.cfg, len(g.backend.layout.Groups())
	rc := router.DefaultConfig()
	rc.Gateway, rc.Layout, rc.Log, rc.History = g.id, g.backend.layout, g.log, g.history
	rc.WaitReplicas, rc.WaitTimeout = cfg.Redis.WaitReplicas, cfg.Redis.WaitTimeout
	rc.HealFor = cfg.Cluster.Heal
	rc.ProbeWait = cfg.Redis.DialTimeout + cfg.Redis.Timeout
	rc.Starved, rc.PushBytes = 4*cfg.Cluster.PulseInterval, cfg.Limits.FrameBytes
	rc.Kept, rc.Retention, rc.LogTTL = cfg.History.Messages, cfg.History.Age, cfg.History.Positions
	rc.EventsKept, rc.EventContent = cfg.Events.messagesWritten(groups), cfg.Events.Messages == "content"
	rc.Everyone = handler.Registered(g.manager)
	rc.MayBegin = func(u protocol.UserID) time.Duration { return g.handler.MayBegin(u) }
	rc.OnKick = func(k protocol.Kick) { handler.Kicked(g.manager, k) }
	rc.OnQuestion = g.asked
	return rc
}
