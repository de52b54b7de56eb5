package hook

import (
	"log/slog"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// Config is what Hooks needs to know. Every duration must be positive.
type Config struct {
	// Gateway is this gateway: configured name and random boot id.
	Gateway protocol.GatewayID
	// Layout is how the keyspace is grouped.
	Layout keyspace.Layout
	Log    *slog.Logger

	// Lease is for how long a gateway carries the events of a group without a word
	// to Redis, Renew how often it says it, and how often the others look whether
	// it still does.
	Lease, Renew time.Duration
	// Poll is how often the one who carries looks for new events.
	Poll time.Duration
	// Timeout bounds each call to Redis.
	Timeout time.Duration
	// StopWait is how long deliveries under way are waited for at the end.
	StopWait time.Duration

	// Messages says that there are events of messages to carry.
	Messages bool

	// Sinks are where events go. Each passed Validate, and no two have one name.
	Sinks []SinkConfig
	// Connect returns a client for the Redis of a sink that names one of its own.
	Connect func(url string) (redis.UniversalClient, error)
}

// DefaultConfig returns the figures of docs/events.md, without identity and sinks.
func DefaultConfig() Config {
	return Config{
		Lease: 3 * time.Second, Renew: time.Second, Poll: 250 * time.Millisecond,
		Timeout: time.Second, StopWait: 2 * time.Second,
	}
}

// SinkConfig is one place events go to. The yaml tags are its keys in the
// configuration file, secret ones are never shown, and default ones are what an
// absent key means.
type SinkConfig struct {
	Name   string `yaml:"name"`
	Filter `yaml:",inline"`

	Batch      int           `yaml:"batch" default:"100"`      // events delivered at a time, at most
	Timeout    time.Duration `yaml:"timeout" default:"10s"`    // of one attempt to deliver a batch
	RetryAfter time.Duration `yaml:"retry-after" default:"1s"` // the pause after a failure is random up to this, doubled with each
	RetryMost  time.Duration `yaml:"retry-most" default:"30s"` // but never longer than this
	Parallel   int           `yaml:"parallel" default:"4"`     // deliveries at a time: of groups on Redis Cluster, and of messages beside the other events

	// Exactly one of these.
	Webhook *WebhookConfig `yaml:"webhook"`
	MySQL   *MySQLConfig   `yaml:"mysql"`
	Redis   *RedisConfig   `yaml:"redis"`
	File    *FileConfig    `yaml:"file"`
}

// WebhookConfig is a server of the customer's that is POSTed to.
type WebhookConfig struct {
	URL        string   `yaml:"url"`
	Secret     string   `yaml:"secret" secret:"all"`
	SecretFile string   `yaml:"secret-file"`
	Allow      []string `yaml:"allow"` // addresses and ranges that are reached although they aren't public
}

// MySQLConfig is a database and what is done in it.
type MySQLConfig struct {
	DSN        string            `yaml:"dsn" secret:"all"` // as go-sql-driver/mysql has it
	DSNFile    string            `yaml:"dsn-file"`
	Statement  string            `yaml:"statement"` // for every event; or
	Statements []StatementConfig `yaml:"statements"`
}

// StatementConfig is one SQL statement and the events it is executed for.
type StatementConfig struct {
	Filter `yaml:",inline"`
	SQL    string `yaml:"sql"`
}

// RedisConfig is a stream that events are appended to.
type RedisConfig struct {
	URL     string `yaml:"url" secret:"url"` // empty: the Redis of the gateways
	URLFile string `yaml:"url-file"`
	Stream  string `yaml:"stream"`
	Kept    int    `yaml:"kept" default:"100000"` // entries, about; 0: all
}

// FileConfig is a file that gets one line of JSON for each event.
type FileConfig struct {
	Path string `yaml:"path"` // "-": standard output
}
