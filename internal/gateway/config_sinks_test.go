package gateway

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"chatgate/internal/connection"
	"chatgate/internal/hook"
)

const secretOfTest = "a secret of enough characters"

// parseSinks reads a file as the command does: the sinks are no flag.
func parseSinks(t *testing.T, text string) (Config, error) {
	t.Helper()
	c, sources, err := parse(t, []string{"GATEWAY_CONFIG=" + configFile(t, text)})
	c.Events.Sinks = sources.Sinks()
	return c, err
}

func TestSinksInFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secretOfTest+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := parseSinks(t, `
events:
  kept: 1000
  sinks:
    - name: backend
      types: [disconnect, offline]
      users: ["student:"]
      batch: 7
      timeout: 3s
      webhook: {url: https://example.com/hook, secret-file: `+path+`, allow: [10.0.0.0/8]}
    - name: proctor
      mysql:
        dsn: user:pass@tcp(db:3306)/exam
        statements:
          - {types: [disconnect], kinds: [drop], sql: "UPDATE p SET off = 1 WHERE user = :user"}
          - sql: DO 1
    - name: mirror
      redis: {url: "redis://u:hush@other:6379", stream: events}
    - name: lines
      file: {path: "-"}
`)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	standard := hook.SinkConfig{Batch: 100, Parallel: 4, Timeout: 10 * time.Second, RetryAfter: time.Second, RetryMost: 30 * time.Second}
	web, sql, mirror, lines := standard, standard, standard, standard
	web.Name, web.Batch, web.Timeout, web.Types, web.Users = "backend", 7, 3*time.Second, []string{"disconnect", "offline"}, []string{"student:"}
	web.Webhook = &hook.WebhookConfig{URL: "https://example.com/hook", Secret: secretOfTest, SecretFile: path, Allow: []string{"10.0.0.0/8"}}
	sql.Name, sql.MySQL = "proctor", &hook.MySQLConfig{DSN: "user:pass@tcp(db:3306)/exam", Statements: []hook.StatementConfig{
		{Filter: hook.Filter{Types: []string{"disconnect"}, Kinds: []string{"drop"}}, SQL: "UPDATE p SET off = 1 WHERE user = :user"}, {SQL: "DO 1"},
	}}
	mirror.Name, mirror.Redis = "mirror", &hook.RedisConfig{URL: "redis://u:hush@other:6379", Stream: "events", Kept: 100_000}
	lines.Name, lines.File = "lines", &hook.FileConfig{Path: "-"}
	if diff := cmp.Diff([]hook.SinkConfig{web, sql, mirror, lines}, c.Events.Sinks); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if c.Events.written(1) != 1000 || c.Events.written(64) != 16 {
		t.Errorf("%d and %d events are kept in a group", c.Events.written(1), c.Events.written(64))
	}

	var out bytes.Buffer
	if err := c.WriteYAML(&out, nil); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{secretOfTest, "user:pass", "hush"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%s is shown:\n%s", secret, &out)
		}
	}
	back, err := parseSinks(t, strings.Replace(out.String(), "dsn: '"+mask+"'", "dsn: user:pass@tcp(db:3306)/exam", 1))
	if err != nil {
		t.Fatalf("%v in\n%s", err, &out)
	}
	back.Events.Sinks[2].Redis.URL = mirror.Redis.URL
	if diff := cmp.Diff(c.Events, back.Events); diff != "" {
		t.Errorf("read back (-shown +read):\n%s", diff)
	}
}

// What is wrong with a sink is said with the line it stands in.
func TestWrongSinks(t *testing.T) {
	for text, want := range map[string]string{
		"events: {sinks: {name: a}}":                                                                                                   ":1: events.sinks: want a list, not names with values",
		"events:\n  sinks:\n  - nmae: a":                                                                                               ":3: events.sinks[0]: nmae: unknown setting, did you mean name?",
		"events:\n  sinks:\n  - name: a\n    file: {pth: x}":                                                                           ":4: events.sinks[0]: file: pth: unknown setting, did you mean path?",
		"events:\n  sinks:\n  - name: a\n    file: x":                                                                                  ":4: events.sinks[0]: file: want names with values, not a text",
		"events:\n  sinks:\n  - name: a\n    batch: many":                                                                              ":4: events.sinks[0]: batch: want a whole number, not a text",
		"events:\n  sinks:\n  - name: a\n    timeout: 5":                                                                               ":4: events.sinks[0]: timeout: want a duration such as 30s, not a number",
		"events:\n  sinks:\n  - name: a\n    types: disconnect":                                                                        ":4: events.sinks[0]: types: want a list, not a text",
		"events:\n  sinks:\n  - name: a\n    name: b":                                                                                  ":4: events.sinks[0]: name: set twice",
		"events:\n  sinks:\n  - name: a":                                                                                               ":3: events.sinks[0]: needs exactly one of webhook, mysql, redis and file",
		"events:\n  sinks:\n  - {name: a, file: {path: x}}\n  - {name: a, file: {path: y}}":                                            `:4: events.sinks[1]: name: "a" is that of the sink in line 3`,
		"events:\n  sinks:\n  - {name: a, webhook: {url: 'http://127.0.0.1/', secret: '" + secretOfTest + "'}}":                        ":3: events.sinks[0]: webhook.url: address is not public, and not allowed: 127.0.0.1",
		"events:\n  sinks:\n  - {name: a, mysql: {dsn: 'a@tcp(b:1)/c', statement: 'SELECT :nobody'}}":                                  ":3: events.sinks[0]: mysql: statement 1: names :nobody, which no event has",
		"events:\n  sinks:\n  - {name: a, causes: [clientclose], file: {path: '-'}}":                                                   `:3: events.sinks[0]: causes: no end is called "clientclose"`,
		"events:\n  sinks:\n  - {name: a, mysql: {statement: 'DO 1'}}":                                                                 ":3: events.sinks[0]: mysql.dsn: is needed",
		"events:\n  sinks:\n  - {name: a, mysql: {dsn: 'a@tcp(b:1)/c', statements: [{sql: 'DO 1'}, {sql: 'DO 2', kinds: [dropped]}]}}": `:3: events.sinks[0]: mysql: statement 2: kinds: no end is called "dropped"`,
		"events:\n  sinks:\n  - {name: a, mysql: {dsn-file: /nowhere/dsn, statement: 'DO 1'}}":                                         ":3: events.sinks[0]: mysql.dsn-file: open /nowhere/dsn: no such file or directory",
		"events:\n  sinks:\n  - {name: a, mysql: {dsn: x, dsn-file: y, statement: 'DO 1'}}":                                            ":3: events.sinks[0]: mysql.dsn: is set, and dsn-file too",
		"events:\n  sinks:\n  - {name: a, redis: {stream: s, url: 'http://b'}}":                                                        ":3: events.sinks[0]: redis.url: must begin with redis://, rediss:// or unix://",
		"events:\n  sink: []": ":2: events.sink: unknown setting, did you mean events.sinks?",
	} {
		_, err := parseSinks(t, strings.ReplaceAll(text, `" + secretOfTest + "`, secretOfTest))
		if err == nil || !strings.HasSuffix(err.Error(), want) || strings.Contains(err.Error(), secretOfTest) {
			t.Errorf("%s\n  %v\n  want %s", text, err, want)
		}
	}
	if _, err := parseSinks(t, "events:\n  sinks:\n"); err != nil {
		t.Errorf("a list that is commented out: %v", err)
	}
}

// The sinks shown in docs/events.md are sinks.
func TestTheSinksOfTheDocumentAreValid(t *testing.T) {
	text, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, secret := range map[string]string{"chat-events": secretOfTest, "seats-dsn": "user:pass@tcp(db:3306)/exam"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d examples", len(blocks))
	}
	for _, m := range blocks {
		file := strings.ReplaceAll(m[1], "/run/secrets", dir)
		if strings.HasPrefix(file, "- ") {
			file = "events:\n  sinks:\n    " + strings.ReplaceAll(file, "\n", "\n    ")
		}
		if _, err := parseSinks(t, file); err != nil {
			t.Errorf("%v in\n%s", err, file)
		}
	}
}

// Events of rooms are written where a sink takes them, and not for a sink that wants others.
func TestEventsOfRoomsNeedASinkThatTakesThem(t *testing.T) {
	for name, tc := range map[string]struct {
		types string
		more  string
		kept  int
	}{
		"all types":               {"[]", "", 100},
		"one of them":             {"[left]", "", 100},
		"others":                  {"[connect]", "", 0},
		"others carry":            {"[connect]", "  write: true\n", 100},
		"all types, switched off": {"[]", "  rooms: false\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseSinks(t, "events:\n  kept: 6400\n"+tc.more+"  sinks:\n    - {name: a, types: "+tc.types+", file: {path: '-'}}\n")
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
			if got := c.Events.roomsWritten(64); got != tc.kept || c.Events.written(64) != 100 {
				t.Errorf("%d events of rooms are kept, %d in all", got, c.Events.written(64))
			}
		})
	}
	c, err := parseSinks(t, "events:\n  rooms: false\n  sinks:\n    - {name: a, types: [joined], file: {path: '-'}}\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "events.rooms") {
		t.Errorf("a sink wants what is not written: %v", err)
	}
}

// Events of messages are written only where somebody said so, and a sink takes them.
func TestEventsOfMessagesAreOffUnlessWanted(t *testing.T) {
	for name, tc := range map[string]struct {
		types, more string
		kept        int
	}{
		"by default":     {"[]", "", 0},
		"for all types":  {"[]", "  messages: envelope\n", 100},
		"one of them":    {"[message, left]", "  messages: content\n", 100},
		"for nobody":     {"[connect]", "  messages: content\n", 0},
		"others carry":   {"[connect]", "  messages: content\n  write: true\n", 100},
		"off by a word":  {"[]", "  messages: off\n", 0},
		"off for others": {"[connect]", "  messages: off\n  write: true\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseSinks(t, "events:\n  messages-kept: 6400\n"+tc.more+"  sinks:\n    - {name: a, types: "+tc.types+", file: {path: '-'}}\n")
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
			if got := c.Events.messagesWritten(64); got != tc.kept {
				t.Errorf("%d events of messages are kept", got)
			}
		})
	}
	c, err := parseSinks(t, "events:\n  sinks:\n    - {name: a, types: [message], file: {path: '-'}}\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "events.messages") {
		t.Errorf("a sink wants what is not written: %v", err)
	}
}

// Every end a connection can have may stand in a filter, and nothing else.
func TestTheCausesOfAFilterAreThoseOfConnections(t *testing.T) {
	causes := []string{connection.KindGatewayLost.String(), connection.KindAbandoned.String()}
	for _, k := range connection.Kinds() {
		causes = append(causes, k.String())
	}
	s := hook.SinkConfig{
		Name: "a", Batch: 1, Parallel: 1, Timeout: time.Second, RetryAfter: time.Second, RetryMost: time.Second, File: &hook.FileConfig{Path: "-"},
		Filter: hook.Filter{Causes: causes},
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range causes {
		if !strings.Contains(string(text), "`"+c+"`") {
			t.Errorf("docs/events.md does not speak of %s", c)
		}
	}
}
