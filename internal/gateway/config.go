package gateway

import (
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/handler"
	"chatgate/internal/hook"
)

// Config is everything an operator can set on one gateway. A field's name gives the flag (--limits.connect-rate), the
// environment variable (GATEWAY_LIMITS_CONNECT_RATE) and the key in the file (limits: connect-rate:). The tags hold the rest:
// help says what it is and in which unit, default its value, zero what 0 or empty means, enum what it may be, secret that it
// is never shown, reload that SIGHUP takes it over. A number without a zero tag must be above 0. docs/configuration.md is made from them.
//
// Code that builds a Config starts from DefaultConfig and ends with Validate.
type Config struct {
	Name           string   `default:"${hostname}" help:"Name of this gateway in logs, /stats and Redis; each start adds a random id to it."`
	Listen         string   `default:"127.0.0.1:8080" help:"Address of the public listener: /ws, /stats, /healthz, /readyz and the page."`
	InternalListen string   `default:"127.0.0.1:9090" zero:"no internal listener" help:"Address of the internal listener: /metrics, /debug and the server API. Keep it private."`
	Insecure       bool     `negatable:"" help:"Let anonymous users in where they otherwise are not: beyond loopback, behind a proxy, beside tokens."`
	Page           string   `default:"auto" enum:"auto,on,off" help:"The page at /: on, off, or auto (on while listening on loopback)."`
	TrustedProxies []string `zero:"none" placeholder:"CIDR" help:"Address ranges of proxies whose X-Forwarded-For is believed."`
	ProxyProtocol  bool     `negatable:"" help:"Read the PROXY protocol (v1 and v2) on the public listener from trusted-proxies, which must send it with every connection."`
	Origins        []string `zero:"same host only" placeholder:"ORIGIN" help:"Further origins whose pages may connect, each in full: https://chat.example.com."`
	Compression    bool     `negatable:"" help:"Let clients compress what they send (permessage-deflate, without context takeover). What comes out is held to limits.frame-bytes. What they get is never compressed."`
	StampMeta      bool     `negatable:"" help:"Put the meta of its sender's connection on each message."`

	Auth      AuthConfig      `embed:"" prefix:"auth." group:"Tokens (the same on every gateway)"`
	TLS       TLSConfig       `embed:"" prefix:"tls." group:"TLS on the public listener"`
	Redis     RedisConfig     `embed:"" prefix:"redis." group:"Redis"`
	Limits    LimitsConfig    `embed:"" prefix:"limits." group:"Limits"`
	Heartbeat HeartbeatConfig `embed:"" prefix:"heartbeat." group:"Life of a connection"`
	Cluster   ClusterConfig   `embed:"" prefix:"cluster." group:"Cluster (the same on every gateway)"`
	History   HistoryConfig   `embed:"" prefix:"history." group:"History (the same on every gateway)"`
	Events    EventsConfig    `embed:"" prefix:"events." group:"Events (the same on every gateway)"`
	Hooks     HooksConfig     `embed:"" prefix:"hooks." group:"Hooks that decide (the same on every gateway)"`
	API       APIConfig       `embed:"" prefix:"api." group:"Server API (the same on every gateway)"`
	Drain     DrainConfig     `embed:"" prefix:"drain." group:"Drain on SIGTERM"`
	Log       LogConfig       `embed:"" prefix:"log." group:"Log"`
}

// AuthConfig says whose tokens are good. See config.go of package auth, and docs/security.md.
type AuthConfig struct {
	Issuers   []string `zero:"tokens are not taken" placeholder:"ISSUER" help:"Issuers whose tokens are good (iss), to the byte."`
	Audiences []string `zero:"tokens are not taken" placeholder:"NAME" help:"What a token must be meant for (aud): one of these."`
	Keys      []string `reload:"" zero:"none" placeholder:"FILE" help:"Files with public keys: PEM, or a JSON Web Key Set. With several issuers each begins with its own: ISSUER=FILE."`
	Secrets   []string `reload:"" zero:"none" placeholder:"FILE" help:"Files with a shared secret (HS256) of at least 32 bytes, as [ISSUER=]FILE."`
	KeySets   []string `zero:"none" placeholder:"URL" help:"JSON Web Key Sets to fetch, as [ISSUER=]URL: https, or http on this machine."`

	Leeway      time.Duration `default:"30s" zero:"none" help:"How far an issuer's clock may be ahead, for nbf and iat. A token ends at its exp to the second."`
	MaxLifetime time.Duration `default:"24h" help:"Longest time from iat to exp. Revocations are kept as long, a little more."`

	KeySetRefresh     time.Duration `default:"5m" help:"How often a key set is fetched again."`
	KeySetMinInterval time.Duration `default:"10s" help:"Least time between fetches of a key set, however many tokens name a key that it lacks."`
	KeySetTimeout     time.Duration `default:"2s" help:"Time for one fetch of a key set."`
}

// Verification is the same as package auth wants it.
func (c AuthConfig) Verification(log *slog.Logger) auth.Config {
	return auth.Config{
		Issuers: c.Issuers, Audiences: c.Audiences, Keys: c.Keys, Secrets: c.Secrets, KeySets: c.KeySets,
		Leeway: c.Leeway, MaxLifetime: c.MaxLifetime,
		KeySetRefresh: c.KeySetRefresh, KeySetMinInterval: c.KeySetMinInterval, KeySetTimeout: c.KeySetTimeout, Log: log,
	}
}

// Enabled reports whether there are tokens at all.
func (c AuthConfig) Enabled() bool {
	v := c.Verification(nil)
	return v.Enabled()
}

// TLSConfig has the public listener speak TLS: wss:// and https://, and nothing else.
type TLSConfig struct {
	Cert string `reload:"" zero:"no TLS" placeholder:"FILE" help:"Certificate chain of the public listener, PEM. With it only wss:// and https:// are served."`
	Key  string `reload:"" zero:"no TLS" placeholder:"FILE" help:"Its private key, PEM."`
}

// On reports whether the public listener speaks TLS.
func (c TLSConfig) On() bool { return c.Cert != "" }

// RedisConfig says where the shared state lives. See Universal for the forms of URL.
type RedisConfig struct {
	URL         string        `secret:"" zero:"embedded Redis, this process only" placeholder:"URL" help:"redis://[user:password@]host:port[,host:port...][/db]; rediss:// for TLS, unix:// for a socket."`
	Mode        string        `default:"auto" enum:"auto,standalone,sentinel,cluster" help:"Kind of Redis: standalone, sentinel, cluster, or auto (it is asked)."`
	MasterName  string        `zero:"the only one they watch" placeholder:"NAME" help:"Name of the master that the Sentinels of redis.url watch; ?master=NAME in the URL does the same."`
	Force       bool          `negatable:"" help:"Start although maxmemory-policy lets Redis evict keys, which loses messages silently."`
	DialTimeout time.Duration `default:"1s" help:"Time for a new connection to Redis."`
	Timeout     time.Duration `default:"1s" help:"Deadline of one call to Redis, repeats included."`

	WaitReplicas int           `default:"0" zero:"no waiting" help:"Replicas that must have a message before it is acknowledged; where they don't in time, the sender is told unknown."`
	WaitTimeout  time.Duration `default:"150ms" help:"How long an ack waits for redis.wait-replicas."`
}

// LimitsConfig bounds what one client, and all of them together, may use.
type LimitsConfig struct {
	ConnectRate          int             `reload:"" default:"500" zero:"no limit" help:"New connections a second on this gateway; as many may come at once."`
	ConnectRatePerIP     int             `reload:"" default:"50" zero:"no limit" help:"New connections a second from one client address (IPv6: one /64); as many may come at once."`
	MaxConnections       ConnectionLimit `reload:"" default:"auto" zero:"no limit" help:"Connections at a time on this gateway; auto: what the limit of open files leaves room for."`
	MessageRate          int             `reload:"" default:"100" zero:"no limit" help:"Messages a second from one connection; as many may come at once."`
	FrameRate            int             `reload:"" default:"1000" zero:"no limit" help:"Frames a second from one connection, of any kind, also pings, heartbeats and what is refused; as many may come at once."`
	ByteRate             int             `reload:"" default:"262144" zero:"no limit" help:"Bytes a second from one connection, as they come from the network (after TLS); as many, or one largest frame, may come at once."`
	NewAddresses         int             `reload:"" default:"100" zero:"no limit" help:"Users and rooms an hour to which nobody has written yet and one user may be the first to, on this gateway; as many may come at once. Each takes kilobytes of Redis for weeks."`
	ConnectionsPerUser   int             `reload:"" default:"5" zero:"no limit" help:"Connections of one user in the whole cluster; a further one ends the stalest."`
	DeviceClasses        []string        `zero:"none" placeholder:"CLASS=N" help:"Classes of devices, and how many connections of each a user may have in the whole cluster (0: no limit): phone=1,desktop=1. Clients must name one when they register."`
	ClassPolicy          string          `default:"newest" enum:"newest,oldest" help:"Who keeps the place in a full class of devices: the newest connection, or those that have it."`
	RoomsPerConnection   int             `reload:"" default:"500" zero:"no limit" help:"Rooms one connection may be in at a time."`
	OpenRooms            bool            `reload:"" negatable:"" help:"Let a connection send to rooms it has not joined."`
	WatchesPerConnection int             `reload:"" default:"1000" zero:"no limit" help:"Users one connection may watch at a time."`
	MemberPushes         int             `default:"1000" zero:"nobody is told" help:"Members a room may have for them to be told who joins and leaves it; in larger rooms clients ask. The same on every gateway."`
	FrameBytes           int             `default:"65536" help:"Bytes of one frame from a client."`
	OutboxBytes          int             `default:"262144" help:"Bytes waiting for one client before it counts as a slow consumer."`
	OutboxFrames         int             `default:"1024" help:"Frames waiting for one client before it counts as a slow consumer."`
	InFlight             int             `default:"64" help:"Messages of one connection being sent at a time; then its reader waits."`
}

// connection is what one connection may do, as package handler wants it.
func (c LimitsConfig) connection() handler.Limits {
	return handler.Limits{
		MessageRate: c.MessageRate, FrameRate: c.FrameRate, ByteRate: c.ByteRate, NewAddresses: c.NewAddresses,
		MaxRooms: c.RoomsPerConnection, OpenRooms: c.OpenRooms, MaxWatches: c.WatchesPerConnection,
	}
}

// HeartbeatConfig says when a silent connection ends, and when any does.
type HeartbeatConfig struct {
	Interval        time.Duration `default:"30s" help:"How often clients are asked to send a heartbeat."`
	PresenceTTL     time.Duration `default:"90s" help:"How long a connection counts as present after its last refresh."`
	Silence         time.Duration `default:"90s" zero:"never" help:"A connection without a text frame for this long is closed."`
	PingAfter       time.Duration `default:"16s" zero:"no pings" help:"Silence on the socket before the gateway pings."`
	PongWait        time.Duration `default:"10s" help:"Time for any byte after a ping."`
	RegisterTimeout time.Duration `default:"10s" zero:"never" help:"A connection not registered after this long is closed."`
	MaxAge          time.Duration `default:"0s" zero:"no maximum" help:"A connection this old is closed and may come back."`
}

// ClusterConfig says when a gateway counts as gone, and what is done for the others. Gateways judge each other by these, so
// all must have the same.
type ClusterConfig struct {
	PulseInterval time.Duration `default:"1s" help:"How often a gateway renews its leases and checks its channels."`
	Lease         time.Duration `default:"3s" help:"A gateway not renewed for this long is no longer counted."`
	Quiet         time.Duration `default:"5s" help:"After Redis was away nobody is judged gone for this long."`
	ReapAfter     time.Duration `default:"5s" help:"Time after the end of a lease before what the gateway held is removed."`
	Grace         time.Duration `default:"5s" zero:"at once" help:"Time a user may be away before counting as offline."`
	Heal          time.Duration `default:"10s" zero:"what Redis loses stays lost" help:"What was acknowledged this lately is stored again when Redis has lost it; up to 32 MB are kept for it."`
}

// HistoryConfig says what is kept of each log. Gateways trim the same logs, so all must have the same.
type HistoryConfig struct {
	Messages  int           `default:"1000" help:"Messages kept for each user and each room, about: a log is trimmed in steps of Redis' stream nodes."`
	Age       time.Duration `default:"168h" help:"How long a message is kept; it is taken out at most an hour later."`
	Positions time.Duration `default:"888h" help:"How long a log's position and the cursors of devices outlive their last use."`
}

// EventsConfig says which events are kept and who is told of them. docs/events.md has the sinks.
type EventsConfig struct {
	Kept  int  `default:"250000" help:"Events kept for sinks that fall behind, about and in all (Redis Cluster keeps a 64th in each group); the oldest go first."`
	Write bool `negatable:"" help:"Write events although this gateway has no sink: other gateways carry them."`
	Rooms bool `default:"true" negatable:"" help:"Write who joins and who leaves a room, where a sink takes such events."`

	Messages     string `default:"off" enum:"off,envelope,content" help:"Write an event for each message that is stored: envelope says from whom, to whom and where it stands, content also what is in it."`
	MessagesKept int    `default:"100000" help:"Events of messages kept for sinks that fall behind, about and in all (Redis Cluster keeps a 64th in each group), beside those of events.kept."`

	Sinks []hook.SinkConfig `kong:"-"` // in the file only
}

// written is how many events are kept in each of so many groups; 0: none is written.
func (c EventsConfig) written(groups int) int {
	if len(c.Sinks) == 0 && !c.Write {
		return 0
	}
	return (c.Kept + groups - 1) / groups
}

// roomsWritten is the same of events of rooms. They may be many more than all others, and would push those out, so
// they are not written for nobody.
func (c EventsConfig) roomsWritten(groups int) int {
	if !c.Rooms || !c.Write && !c.taken("joined") && !c.taken("left") {
		return 0
	}
	return c.written(groups)
}

// messagesWritten is the same of events of messages, which have a stream of their own.
func (c EventsConfig) messagesWritten(groups int) int {
	if c.Messages == "off" || !c.Write && !c.taken("message") {
		return 0
	}
	return (c.MessagesKept + groups - 1) / groups
}

// taken reports whether a sink may take events of a type.
func (c EventsConfig) taken(name string) bool {
	return slices.ContainsFunc(c.Sinks, func(s hook.SinkConfig) bool { return s.Takes(name) })
}

// HooksConfig says what the customer's backend is asked, and where. docs/hooks.md has the questions.
type HooksConfig struct {
	Register          string        `zero:"not asked" placeholder:"URL" help:"Asked who registers, and what he may: http:// or https://."`
	RegisterOnFailure string        `default:"deny" enum:"deny,allow" help:"What is done with a register while the backend does not answer: deny, or allow (what tokens and anonymous users may without it)."`
	Join              string        `zero:"not asked" placeholder:"URL" help:"Asked which rooms a connection may join."`
	JoinOnFailure     string        `default:"deny" enum:"deny,allow" help:"What is done with a join while the backend does not answer: deny or allow."`
	Message           string        `zero:"not asked" placeholder:"URL" help:"Asked before each message, ephemeral ones too; it may change them."`
	MessageOnFailure  string        `default:"deny" enum:"deny,allow" help:"What is done with a message while the backend does not answer: deny or allow."`
	Secret            string        `secret:"all" zero:"none" placeholder:"SECRET" help:"Signs what is asked, as webhooks are: whsec_ and base64, or at least 24 characters."`
	Headers           []string      `zero:"none" placeholder:"NAME" help:"Headers of a client's handshake that the backend gets at register, such as Cookie; 16 KB in all."`
	Timeout           time.Duration `default:"1s" help:"How long a connection waits for one decision."`
	MaxInFlight       int           `default:"128" help:"Questions of a kind asked at a time; more wait within hooks.timeout."`
	Allow             []string      `zero:"none" placeholder:"CIDR" help:"Addresses and ranges that may be asked although they are not public."`
}

// Decider is the same as package hook wants it.
func (c HooksConfig) Decider(log *slog.Logger) hook.DeciderConfig {
	d := hook.DeciderConfig{
		Asked: make(map[hook.Question]hook.Asked), Secret: c.Secret, Allow: c.Allow,
		Timeout: c.Timeout, MaxInFlight: c.MaxInFlight, Log: log,
	}
	for q, to := range map[hook.Question]struct{ url, onFailure string }{
		hook.AskRegister: {c.Register, c.RegisterOnFailure}, hook.AskJoin: {c.Join, c.JoinOnFailure}, hook.AskMessage: {c.Message, c.MessageOnFailure},
	} {
		if to.url != "" {
			d.Asked[q] = hook.Asked{URL: to.url, AllowOnFailure: to.onFailure == "allow"}
		}
	}
	return d
}

// DrainConfig says how a gateway leaves. Together they should stay below the time the service manager waits before it kills.
type DrainConfig struct {
	Delay    time.Duration `default:"3s" zero:"at once" help:"Time between turning unready and the first close, for the balancer to notice."`
	Window   time.Duration `default:"10s" zero:"all at once" help:"Time over which connections are closed."`
	Deadline time.Duration `default:"25s" help:"The gateway ends after this long, whatever is left (exit code 4)."`
}

// LogConfig says what is written to standard error, and how.
type LogConfig struct {
	Level  slog.Level `default:"info" help:"Least level that is logged: debug, info, warn or error."`
	Format string     `default:"auto" enum:"auto,text,json" help:"text, json, or auto (text on a terminal)."`
}

// DefaultConfig is the configuration of a gateway started without flags, environment and file.
func DefaultConfig() Config {
	var c Config
	for _, s := range settingsOf(&c) {
		if err := s.setDefault(); err != nil {
			panic("gateway: default of " + s.Name + ": " + err.Error()) // a wrong tag; every test would see it
		}
	}
	return c
}

// validName keeps the name usable as part of a Redis key and of a channel, and readable in logs.
var validName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// defaultName is the host's name, in the characters a gateway's name may have.
func defaultName() string {
	host, _ := os.Hostname()
	name := strings.Map(func(r rune) rune {
		if r < 128 && validName.MatchString(string(r)) {
			return r
		}
		return '-'
	}, host)
	if name == "" {
		return "gw"
	}
	return name[:min(len(name), 64)]
}

// Anonymous reports whether users without a token are let in: only while nobody beyond this machine can be behind a connection, and
// there are no tokens, or when the operator insists. A proxy on this machine brings in the world, which loopback doesn't show; so does one
// that isn't configured, which the handler sees by the headers it adds.
func (c Config) Anonymous() bool {
	return c.Insecure || onLoopback(c.Listen) && len(c.TrustedProxies) == 0 && !c.ProxyProtocol && !c.Auth.Enabled()
}

// PageOn reports whether the page is served at /.
func (c Config) PageOn() bool {
	return c.Page == "on" || c.Page == "auto" && onLoopback(c.Listen)
}

// warnInsecure is repeated every minute: a flag that was set to try something must not be forgotten.
const warnInsecure = "insecure is set: anyone who reaches this gateway may use any name"

// scheme is what browsers begin the public listener's addresses with.
func (c Config) scheme() string {
	if c.TLS.On() {
		return "https"
	}
	return "http"
}

// Warnings are the choices in a valid Config that an operator should see in the log.
func (c Config) Warnings() []string {
	var list []string
	if c.Insecure {
		list = append(list, warnInsecure)
	}
	if !c.Anonymous() && !c.Auth.Enabled() && c.Hooks.Register == "" {
		list = append(list, "nobody can register: without auth.issuers and their keys there are anonymous users only, and those are let in on loopback without a proxy, or with insecure")
	}
	if c.InternalListen != "" && !onLoopback(c.InternalListen) {
		list = append(list, "internal-listen is reachable beyond this machine")
	}
	if c.Redis.Force {
		list = append(list, "redis.force is set: a Redis that evicts keys loses messages silently")
	}
	for _, sink := range c.Events.Sinks {
		if sink.PlainText() {
			list = append(list, sinksName+": "+sink.Name+": events go beyond this machine by plain http, which others may read")
		}
	}
	for _, q := range hook.Questions {
		if to, asked := c.Hooks.Decider(nil).Asked[q]; asked && to.PlainText() {
			list = append(list, "hooks."+string(q)+": the backend is asked by plain http beyond this machine, where others may read and answer")
		}
	}
	return list
}

// ConnectionLimit is a number of connections: 0 is no limit, AutoConnections as many as open files leave room for.
type ConnectionLimit int

// AutoConnections is the default of limits.max-connections.
const AutoConnections ConnectionLimit = -1

// Number resolves the limit for a process that may open this many files (OpenFileLimit; 0 = no limit) and needs perConnection
// of them for each connection. The result is 0 for no limit. Some files are kept back for listeners, Redis, and the
// requests that are to be refused.
func (l ConnectionLimit) Number(files uint64, perConnection int) int {
	if l != AutoConnections || files == 0 {
		return max(0, int(l))
	}
	headroom := min(256+files/50, files/2)
	return max(1, int((files-headroom)/uint64(perConnection)))
}

// UnmarshalText reads "auto" or a number.
func (l *ConnectionLimit) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*l = AutoConnections
		return nil
	}
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 0 {
		return fmt.Errorf("want auto or a whole number >= 0, not %q", text)
	}
	*l = ConnectionLimit(n)
	return nil
}

func (l ConnectionLimit) String() string {
	if l == AutoConnections {
		return "auto"
	}
	return strconv.Itoa(int(l))
}

// The types of settings that are more than their kind says.
var (
	typeLevel           = reflect.TypeFor[slog.Level]()
	typeDuration        = reflect.TypeFor[time.Duration]()
	typeConnectionLimit = reflect.TypeFor[ConnectionLimit]()
)
