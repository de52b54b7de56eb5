package gateway

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	path := configFile(t, "limits: {connect-rate: 3, message-rate: 3, in-flight: 3}\norigins: [https://file.example]\nredis: {force: true}\n")
	environ := []string{"GATEWAY_CONFIG=" + path, "GATEWAY_LIMITS_CONNECT_RATE=2", "GATEWAY_LIMITS_MESSAGE_RATE=2", "GATEWAY_ORIGINS=https://a.example,https://b.example"}
	c := mustParse(t, environ, "--limits.connect-rate=1", "--redis.force=false")
	got := []any{c.Limits.ConnectRate, c.Limits.MessageRate, c.Limits.InFlight, c.Limits.ConnectionsPerUser, c.Origins, c.Redis.Force}
	want := []any{1, 2, 3, 5, []string{"https://a.example", "https://b.example"}, false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEverySettingCanComeFromEachPlace(t *testing.T) {
	for _, s := range settingsOf(new(Config)) {
		t.Run(s.Name, func(t *testing.T) {
			value, inFile := "7", "7"
			switch {
			case s.IsList():
				value, inFile = "10.0.0.0/8", "[10.0.0.0/8]"
				if s.Name == "origins" {
					value, inFile = "https://a.example", "[https://a.example]"
				}
			case s.Enum() != nil:
				value = s.Enum()[1]
				inFile = value
			case s.value().Type() == typeDuration:
				value, inFile = "4s", "4s"
			case s.value().Type() == typeLevel:
				value, inFile = "warn", "warn"
			case s.Name == "redis.url":
				value, inFile = "redis://r:1", "redis://r:1"
			case s.flag.IsBool():
				value = strconv.FormatBool(s.flag.Default != "true")
				inFile = value
			case strings.HasSuffix(s.Name, "listen"):
				value, inFile = ":7", "':7'"
			case s.Name == "name", s.Name == "api.from", s.Name == "redis.master-name", strings.HasPrefix(s.Name, "tls."):
				value, inFile = "x", "x"
			case strings.HasPrefix(s.Name, "hooks.") && !strings.HasSuffix(s.Name, "in-flight"):
				value, inFile = "http://h", "http://h"
			}
			// The value alone is looked at: some don't fit the defaults of other settings.
			shown := func(environ []string, args ...string) string {
				c, _, _ := parse(t, environ, args...)
				for _, got := range settingsOf(&c) {
					if got.Name == s.Name {
						return fmt.Sprint(got.value())
					}
				}
				return ""
			}
			fromFlag := shown(nil, "--"+s.Name+"="+value)
			fromEnv := shown([]string{s.Env() + "=" + value})
			fromFile := shown([]string{"GATEWAY_CONFIG=" + configFile(t, s.Name+": "+inFile+"\n")})
			if fromFlag == shown(nil) || fromFlag != fromEnv || fromFlag != fromFile {
				t.Errorf("flag gives %s, environment %s, file %s", fromFlag, fromEnv, fromFile)
			}
		})
	}
}

func TestFileInFull(t *testing.T) {
	c := mustParse(t, []string{"GATEWAY_CONFIG=testdata/config/full.yaml"})
	want := DefaultConfig()
	want.Name, want.Listen, want.InternalListen, want.Insecure, want.Page = "edge-1", "[::]:8080", "", true, "off"
	want.TrustedProxies, want.Origins = []string{"10.0.0.0/8", "2001:db8::/32"}, []string{"https://chat.example.com"}
	want.Auth.Issuers, want.Auth.Audiences = []string{"https://id.example.com", "legacy"}, []string{"chat"}
	want.Auth.Keys, want.Auth.Secrets = []string{"https://id.example.com=/etc/chatgate/id.pem"}, []string{"legacy=/run/secrets/legacy"}
	want.Auth.KeySets, want.Auth.Leeway = []string{"https://id.example.com=https://id.example.com/jwks.json"}, 5*time.Second
	want.Redis.URL, want.Redis.Mode, want.Redis.Timeout = "redis://chat:s%2Fecret@r1:7000,r2:7001", "cluster", 500*time.Millisecond
	want.Limits.ConnectRate, want.Limits.MessageRate = 0, 250
	want.Limits.DeviceClasses = []string{"phone=1", "desktop=2"}
	want.API.Commands = []string{"send", "control"}
	want.Log.Level, want.Log.Format = -4, "json"
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// One run shows everything that is wrong with a file, each with its line.
func TestEveryMistakeInAFileIsNamedWithItsLine(t *testing.T) {
	_, _, err := parse(t, []string{"GATEWAY_CONFIG=testdata/config/wrong.yaml"})
	if err == nil {
		t.Fatal("accepted")
	}
	wantGolden(t, "testdata/config/wrong.golden", err.Error()+"\n")
}

func TestFilesThatAreNoSettingsAreRefused(t *testing.T) {
	cases := map[string]struct{ content, want string }{
		"not YAML":          {"name: a\n\tlisten: b\n", ":2: found a tab character"},
		"a list":            {"- name\n", ":1: want names with values, not a list"},
		"a word":            {"hello\n", ":1: want names with values, not a text"},
		"two documents":     {"name: a\n---\nname: b\n", "a second document"},
		"a key twice":       {"name: a\nname: b\n", ":2: name: set twice, also at"},
		"a section twice":   {"limits: {in-flight: 1}\nlimits: {in-flight: 2}\n", ":2: limits.in-flight: set twice"},
		"alias onto itself": {"limits: &l\n  limits: *l\n", ":2: limits.limits: unknown setting"},
		"list in itself":    {"origins: &o [*o]\n", ":1: origins: want a list of texts, not of a list"},
		"config in itself":  {"config: other.yaml\n", ":1: config: unknown setting"},
		"other case":        {"Name: a\n", ":1: Name: unknown setting, did you mean name?"},
		"binary":            {"\x00\x01\x02", "gateway.yaml: "},
		"too large":         {"# " + strings.Repeat("x", maxConfigFile), "larger than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, err := parse(t, []string{"GATEWAY_CONFIG=" + configFile(t, c.content)})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	for _, content := range []string{"", "# nothing\n", "---\n", "limits:\n  # in-flight: 5\n"} {
		if _, _, err := parse(t, []string{"GATEWAY_CONFIG=" + configFile(t, content)}); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
	if _, _, err := parse(t, []string{"GATEWAY_CONFIG=/nowhere/gateway.yaml"}); err == nil {
		t.Error("a missing file was accepted")
	}
}

func TestAliasesInAFileMeanTheirAnchor(t *testing.T) {
	path := configFile(t, "limits: {connect-rate: &n 7, message-rate: *n}\n")
	if c := mustParse(t, []string{"GATEWAY_CONFIG=" + path}); c.Limits.MessageRate != 7 {
		t.Errorf("message rate %d, want 7", c.Limits.MessageRate)
	}
}

func TestPlatformVariablesStandBelowOurOwn(t *testing.T) {
	platform := []string{"PORT=5000", "REDIS_URL=redis://platform:6379"}
	file := "GATEWAY_CONFIG=" + configFile(t, "listen: file:1\nredis.url: redis://file:1\n")
	cases := map[string]struct {
		environ       []string
		args          []string
		listen, redis string
	}{
		"alone":         {platform, nil, ":5000", "redis://platform:6379"},
		"over the file": {append([]string{file}, platform...), nil, ":5000", "redis://platform:6379"},
		"under ours":    {append([]string{"GATEWAY_LISTEN=env:1", "GATEWAY_REDIS_URL=redis://env:1"}, platform...), nil, "env:1", "redis://env:1"},
		"under a flag":  {platform, []string{"--listen=flag:1", "--redis.url="}, "flag:1", ""},
		"empty":         {[]string{"PORT=", "REDIS_URL=", "GATEWAY_LISTEN="}, nil, "127.0.0.1:8080", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := mustParse(t, c.environ, c.args...)
			if got.Listen != c.listen || got.Redis.URL != c.redis {
				t.Errorf("listen %q, redis %q", got.Listen, got.Redis.URL)
			}
		})
	}
}

func TestMistakesInTheEnvironmentNameTheVariable(t *testing.T) {
	cases := map[string]struct{ entry, want string }{
		"number":      {"GATEWAY_LIMITS_CONNECT_RATE=many", "GATEWAY_LIMITS_CONNECT_RATE: "},
		"enum":        {"GATEWAY_PAGE=perhaps", `GATEWAY_PAGE: must be one of auto, on, off, not "perhaps"`},
		"duration":    {"GATEWAY_CLUSTER_LEASE=3", "GATEWAY_CLUSTER_LEASE: "},
		"port":        {"PORT=http", "PORT: port"},
		"secret file": {"GATEWAY_REDIS_URL_FILE=/nowhere/secret", "GATEWAY_REDIS_URL_FILE: "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, err := parse(t, []string{c.entry})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestSecretFromAFile(t *testing.T) {
	path := configFile(t, "redis://:secret@r:1\n")
	if c := mustParse(t, []string{"GATEWAY_REDIS_URL_FILE=" + path}); c.Redis.URL != "redis://:secret@r:1" {
		t.Errorf("url %q", c.Redis.URL)
	}
	if _, _, err := parse(t, []string{"GATEWAY_REDIS_URL_FILE=" + path, "GATEWAY_REDIS_URL=redis://r:1"}); err == nil {
		t.Error("both forms were accepted")
	}
	if c := mustParse(t, []string{"GATEWAY_REDIS_URL_FILE=" + path, "REDIS_URL=redis://r:1"}); c.Redis.URL != "redis://:secret@r:1" {
		t.Errorf("url %q, the platform's won", c.Redis.URL)
	}
}

func TestMisspeltVariablesAreListedAndServiceLinksAreNot(t *testing.T) {
	sources := NewSources([]string{
		"GATEWAY_LIMIT_CONNECT_RATE=1", "GATEWAY_NAME=a", "GATEWAY_CONFIG=x", "GATEWAY_REDIS_URL_FILE=x", "GATEWAY_PAGE_FILE=x", "OTHER=1",
		"GATEWAY_SERVICE_HOST=10.0.0.1", "GATEWAY_SERVICE_PORT=80", "GATEWAY_PORT=tcp://10.0.0.1:80", "GATEWAY_PORT_80_TCP=x",
		"GATEWAY_PORT_80_TCP_ADDR=x", "GATEWAY_INTERNAL_SERVICE_PORT_HTTP=80",
	})
	want := []string{"GATEWAY_LIMIT_CONNECT_RATE", "GATEWAY_PAGE_FILE"}
	if diff := cmp.Diff(want, sources.UnknownEnv()); diff != "" {
		t.Error(diff)
	}
}
