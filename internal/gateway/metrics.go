package gateway

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"chatgate/internal/api"
	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/handler"
	"chatgate/internal/hook"
	"chatgate/internal/presence"
	"chatgate/internal/router"
)

// metrics returns the registry of everything /metrics shows. No label holds an
// id, so the number of series doesn't grow with users.
func (g *Gateway) metrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{g})
	return r
}

// collector reads the counters the packages keep, when it is asked.
type collector struct{ g *Gateway }

// figures is one moment of all counters.
type figures struct {
	g *Gateway // for what it counts itself
	connection.Stats
	router    router.Stats
	presence  presence.Stats
	handler   handler.Stats
	admission handler.AdmissionStats
	tokens    auth.Stats
	api       api.Stats
	commands  api.CommandStats
	revoked   auth.RevocationStats
	outboxes  int // bytes
	largest   int // of outboxes
}

// metric is a figure of F.
type metric[F any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*F) float64
}

func counter(name, help string, value func(*figures) float64) metric[figures] {
	return metric[figures]{prometheus.NewDesc("gateway_"+name, help, nil, nil), prometheus.CounterValue, value}
}

func gauge(name, help string, value func(*figures) float64) metric[figures] {
	return metric[figures]{prometheus.NewDesc("gateway_"+name, help, nil, nil), prometheus.GaugeValue, value}
}

var metrics = []metric[figures]{
	gauge("connections", "Open connections.", func(f *figures) float64 { return float64(f.Connections) }),
	gauge("registered_connections", "Connections the registry holds for this gateway.", func(f *figures) float64 { return float64(f.presence.Held) }),
	gauge("users", "Users with a connection here.", func(f *figures) float64 { return float64(f.Users) }),
	gauge("rooms", "Rooms with members here.", func(f *figures) float64 { return float64(f.presence.HeldRooms) }),
	gauge("room_members", "Users of this gateway in rooms, each counted once in each room.", func(f *figures) float64 { return float64(f.presence.Memberships) }),
	gauge("watched_users", "Users somebody here watches.", func(f *figures) float64 { return float64(f.presence.HeldWatches) }),
	gauge("watches", "Users watched here, counted for each connection that watches.", func(f *figures) float64 { return float64(f.router.Watches) }),
	gauge("connection_writers", "Connections whose socket takes no more at the moment.", func(f *figures) float64 { return float64(f.Writers) }),
	gauge("outbox_bytes", "Bytes waiting for clients to take them.", func(f *figures) float64 { return float64(f.outboxes) }),
	gauge("largest_outbox_bytes", "Those of the client that has most of them waiting.", func(f *figures) float64 { return float64(f.largest) }),
	gauge("send_pending", "Messages waiting in the lanes.", func(f *figures) float64 { return float64(f.router.Pending) }),
	counter("connections_accepted_total", "Connections upgraded.", func(f *figures) float64 { return float64(f.Added) }),
	counter("received_bytes_total", "Bytes read from clients.", func(f *figures) float64 { return float64(f.BytesIn) }),
	counter("sent_bytes_total", "Bytes written to clients.", func(f *figures) float64 { return float64(f.BytesOut) }),
	counter("received_frames_total", "Text frames read from clients.", func(f *figures) float64 { return float64(f.FramesIn) }),
	counter("sent_frames_total", "Text frames written to clients.", func(f *figures) float64 { return float64(f.FramesOut) }),
	counter("pings_total", "Pings sent to silent clients.", func(f *figures) float64 { return float64(f.Pings) }),
	counter("discarded_frames_total", "Frames taken for a connection that ended before they were written.", func(f *figures) float64 { return float64(f.Discarded) }),
	counter("delivered_messages_total", "Messages appended to local connections.", func(f *figures) float64 { return float64(f.router.Delivered) }),
	counter("duplicate_messages_total", "Messages that arrived a second time and were dropped.", func(f *figures) float64 { return float64(f.router.Duplicates) }),
	counter("unheld_messages_total", "Messages for addresses nobody here holds any more.", func(f *figures) float64 { return float64(f.router.Unheld) }),
	counter("envelopes_total", "Envelopes received from gateways.", func(f *figures) float64 { return float64(f.router.Envelopes) }),
	counter("unreadable_envelopes_total", "Envelopes of another version, or cut.", func(f *figures) float64 { return float64(f.router.Unreadable) }),
	counter("missed_publishes_total", "Publishes that never arrived, by the channel's numbers.", func(f *figures) float64 { return float64(f.router.MissedPublishes) }),
	counter("feed_holes_total", "Offsets that were skipped by what arrived.", func(f *figures) float64 { return float64(f.router.Holes) }),
	counter("feed_repairs_total", "Feeds that read their log because something was missing.", func(f *figures) float64 { return float64(f.router.Repairs) }),
	counter("channel_checks_total", "Times all feeds of a channel were compared with their logs.", func(f *figures) float64 { return float64(f.router.Checks) }),
	counter("log_reads_total", "Pages of logs that were read.", func(f *figures) float64 { return float64(f.router.Reads) }),
	counter("told_states_total", "Changes of watched users appended to local connections.", func(f *figures) float64 { return float64(f.router.Told) }),
	counter("state_reads_total", "Reads of states of watched users, 64 at most in each.", func(f *figures) float64 { return float64(f.router.StateReads) }),
	counter("gaps_total", "Gap frames sent to connected clients.", func(f *figures) float64 { return float64(f.router.Gaps) }),
	counter("healed_messages_total", "Acknowledged messages sent again because Redis told another history.", func(f *figures) float64 { return float64(f.router.Healed) }),
	counter("unhealable_chunks_total", "Parts of 64 KB of acknowledged messages that were forgotten early, for want of room.", func(f *figures) float64 { return float64(f.router.Unhealable) }),
	counter("held_readers_total", "Messages whose reader was held because their lane had too much to do.", func(f *figures) float64 { return float64(f.router.Held) }),
	counter("member_pushes_total", "Frames that told connections who joined and left a room.", func(f *figures) float64 { return float64(f.router.MemberPushes) }),
	counter("subscriptions_total", "Subscriptions made, also anew.", func(f *figures) float64 { return float64(f.router.Subscriptions) }),
	counter("send_calls_total", "Calls of the send script.", func(f *figures) float64 { return float64(f.router.Calls) }),
	counter("send_failed_calls_total", "Batches that Redis did not answer.", func(f *figures) float64 { return float64(f.router.FailedCalls) }),
	counter("redis_stray_connections_total", "Connections to Redis dropped because the Sentinels name another master.", func(f *figures) float64 { return float64(f.g.backend.strays()) }),
	counter("presence_registered_total", "Connections entered in the registry.", func(f *figures) float64 { return float64(f.presence.Registered) }),
	counter("presence_refreshed_total", "Presence entries refreshed.", func(f *figures) float64 { return float64(f.presence.Refreshed) }),
	counter("presence_removed_total", "Connections taken out of the registry.", func(f *figures) float64 { return float64(f.presence.Removed) }),
	counter("presence_registered_again_total", "Entries that Redis had lost and got back.", func(f *figures) float64 { return float64(f.presence.Again) }),
	counter("presence_reaped_total", "Entries of dead gateways removed by this one.", func(f *figures) float64 { return float64(f.presence.Reaped) }),
	counter("presence_verdicts_total", "Local connections the registry wanted closed.", func(f *figures) float64 { return float64(f.presence.Verdicts) }),
	counter("presence_failed_calls_total", "Registry calls that Redis did not answer.", func(f *figures) float64 { return float64(f.presence.Failed) }),
	counter("tokens_accepted_total", "Tokens that were good, at register and refresh.", func(f *figures) float64 { return float64(f.tokens.Accepted) }),
	counter("tokens_unjudged_total", "Tokens whose key could not be fetched when they were shown.", func(f *figures) float64 { return float64(f.tokens.Unavailable) }),
	gauge("token_keys", "Keys that tokens are verified with.", func(f *figures) float64 { return float64(f.tokens.Keys) }),
	counter("key_set_fetches_total", "Key sets fetched.", func(f *figures) float64 { return float64(f.tokens.Fetched) }),
	counter("key_set_failed_fetches_total", "Fetches of key sets that failed; the keys from before stay.", func(f *figures) float64 { return float64(f.tokens.FetchFailed) }),
	gauge("revocations", "Revocations known here.", func(f *figures) float64 { return float64(f.revoked.Held) }),
	counter("revocation_failed_reads_total", "Times the revocations could not be read.", func(f *figures) float64 { return float64(f.revoked.Failed) }),
	gauge("api_calls_under_way", "Calls of the server API that are being answered.", func(f *figures) float64 { return float64(f.api.UnderWay) }),
	counter("api_wrong_keys_total", "Calls of the server API with a key that is none.", func(f *figures) float64 { return float64(f.api.WrongKeys) }),
	gauge("commands_backlog", "Commands in the stream that are not done, those in hand among them. The same on all gateways.", func(f *figures) float64 { return float64(f.commands.Backlog) }),
	gauge("commands_in_hand", "Commands that a gateway has in hand. The same on all gateways.", func(f *figures) float64 { return float64(f.commands.InHand) }),
	gauge("commands_oldest_seconds", "Age of the oldest command that is not done. The same on all gateways.", func(f *figures) float64 { return float64(f.commands.OldestSeconds) }),
	counter("commands_done_total", "Commands from the stream done by this gateway.", func(f *figures) float64 { return float64(f.commands.Done) }),
	counter("commands_refused_total", "Commands that were wrong, and were answered so.", func(f *figures) float64 { return float64(f.commands.Refused) }),
	counter("commands_dead_total", "Commands that were given up.", func(f *figures) float64 { return float64(f.commands.Dead) }),
	counter("commands_left_total", "Times a command could not be done and was left for later.", func(f *figures) float64 { return float64(f.commands.Left) }),
	counter("commands_taken_over_total", "Commands that were handed out before, to a gateway that died or could not do them.", func(f *figures) float64 { return float64(f.commands.TakenOver) }),
	counter("commands_failed_calls_total", "Calls for commands that Redis did not answer.", func(f *figures) float64 { return float64(f.commands.FailedCalls) }),
	gauge("raw_connections", "Sockets of the public listener that are not upgraded.", func(f *figures) float64 { return float64(f.g.public.raw.Load()) }),
	gauge("accepting_paused", "1 while no connections are accepted, for want of open files.", func(f *figures) float64 { return oneIf(f.g.public.paused.Load()) }),
	counter("accepting_pauses_total", "Times accepting paused for want of open files.", func(f *figures) float64 { return float64(f.g.public.pauses.Load()) }),
	counter("foreign_hosts_total", "Requests refused because a listener on loopback was called by another name.", func(f *figures) float64 { return float64(f.g.foreignHosts.Load()) }),
	counter("proxy_headers_missing_total", "Connections of trusted proxies that began without a good PROXY header, with proxy-protocol.", func(f *figures) float64 { return float64(f.g.headerless.Load()) }),
	counter("foreign_origins_total", "Handshakes refused for their Origin.", func(f *figures) float64 { return float64(f.handler.ForeignOrigins) }),
	counter("failed_upgrades_total", "Requests to /ws that were no valid handshake.", func(f *figures) float64 { return float64(f.handler.FailedUpgrades) }),
}

// sinkMetrics are those of each sink of events; its name is in the configuration, so there are a handful.
var sinkMetrics = []metric[hook.SinkStats]{
	{sinkDesc("groups", "Groups of events that this gateway carries to the sink."), prometheus.GaugeValue, func(s *hook.SinkStats) float64 { return float64(s.Groups) }},
	{sinkDesc("backlog", "Events of these groups that the sink has not taken."), prometheus.GaugeValue, func(s *hook.SinkStats) float64 { return float64(s.Backlog) }},
	{sinkDesc("oldest_seconds", "Age of the oldest event that is being delivered."), prometheus.GaugeValue, func(s *hook.SinkStats) float64 { return float64(s.OldestSeconds) }},
	{sinkDesc("failing", "Failures since the sink last took events."), prometheus.GaugeValue, func(s *hook.SinkStats) float64 { return float64(s.Failing) }},
	{sinkDesc("delivered_total", "Events the sink took."), prometheus.CounterValue, func(s *hook.SinkStats) float64 { return float64(s.Delivered) }},
	{sinkDesc("filtered_total", "Events not meant for the sink."), prometheus.CounterValue, func(s *hook.SinkStats) float64 { return float64(s.Filtered) }},
	{sinkDesc("refused_total", "Events the sink will never take."), prometheus.CounterValue, func(s *hook.SinkStats) float64 { return float64(s.Refused) }},
	{sinkDesc("read_again_total", "Events read again after an interruption, and perhaps delivered twice."), prometheus.CounterValue, func(s *hook.SinkStats) float64 { return float64(s.Again) }},
	{sinkDesc("lost_total", "Events that fell out of retention before the sink took them."), prometheus.CounterValue, func(s *hook.SinkStats) float64 { return float64(s.Lost) }},
	{sinkDesc("failures_total", "Attempts to deliver that failed."), prometheus.CounterValue, func(s *hook.SinkStats) float64 { return float64(s.Failures) }},
	{sinkDesc("failed_calls_total", "Calls for the sink that Redis did not answer."), prometheus.CounterValue, func(s *hook.SinkStats) float64 { return float64(s.FailedCalls) }},
}

func sinkDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("gateway_event_sink_"+name, help, []string{"sink"}, nil)
}

var (
	messagesDesc = prometheus.NewDesc("gateway_messages_total", "Messages sent by clients of this gateway, by what became of them.", []string{"status"}, nil)
	endsDesc     = prometheus.NewDesc("gateway_connections_ended_total", "Connections ended, by cause.", []string{"cause"}, nil)
	rejectedDesc = prometheus.NewDesc("gateway_rejected_handshakes_total", "Handshakes refused before the upgrade, by reason.", []string{"reason"}, nil)
	refusedDesc  = prometheus.NewDesc("gateway_tokens_refused_total", "Tokens refused, by reason.", []string{"reason"}, nil)
	apiDesc      = prometheus.NewDesc("gateway_api_calls_total", "Calls of the server API, by operation and HTTP status.", []string{"operation", "status"}, nil)
	errorsDesc   = prometheus.NewDesc("gateway_error_frames_total", "Error frames sent to clients, by code.", []string{"code"}, nil)
)

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
	for _, m := range sinkMetrics {
		ch <- m.desc
	}
	for _, d := range append([]*prometheus.Desc{messagesDesc, endsDesc, rejectedDesc, refusedDesc, errorsDesc, apiDesc}, hookDescs...) {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	g := c.g
	f := figures{
		g: g, Stats: g.manager.Stats(), router: g.router.Stats(), presence: g.registry.Stats(), handler: g.handler.Stats(),
		admission: g.admission.Stats(), api: g.api.Stats(), commands: g.commands.Stats(),
	}
	f.outboxes, f.largest = g.manager.Held()
	if g.tokens != nil {
		f.tokens, f.revoked = g.tokens.Stats(), g.revoked.Stats()
	}
	for _, m := range metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&f))
	}
	for _, s := range g.hooks.Stats() {
		for _, m := range sinkMetrics {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s), s.Name)
		}
	}
	collectHooks(ch, g.decider.Stats())
	labelled := func(d *prometheus.Desc, label string, n uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	r := &f.router
	for status, n := range map[string]uint64{
		"routed": r.Routed, "stored": r.Stored, "ephemeral": r.Ephemeral, "everyone": r.Broadcasts, "dropped": r.Dropped, "conflict": r.Conflicts,
		"unavailable": r.RefusedUnavailable, "overloaded": r.RefusedOverloaded, "unconfirmed": r.Unconfirmed,
	} {
		labelled(messagesDesc, status, n)
	}
	for _, k := range connection.Kinds() {
		labelled(endsDesc, k.String(), f.Ends[k])
	}
	for reason, n := range f.admission.Rejected {
		labelled(rejectedDesc, string(reason), n)
	}
	for reason, n := range f.tokens.Refused {
		labelled(refusedDesc, string(reason), n)
	}
	for code, n := range f.handler.Errors {
		labelled(errorsDesc, string(code), n)
	}
	for call, n := range f.api.Calls {
		ch <- prometheus.MustNewConstMetric(apiDesc, prometheus.CounterValue, float64(n), call.Operation, strconv.Itoa(call.Status))
	}
}
