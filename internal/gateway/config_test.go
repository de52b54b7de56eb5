package gateway

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite generated documents and golden files")

// parse goes the way of the command: flags, then Sources over environ and the file in it.
func parse(t *testing.T, environ []string, args ...string) (Config, *Sources, error) {
	t.Helper()
	var c Config
	sources := NewSources(environ)
	k, err := kong.New(&c, sources)
	if err != nil {
		t.Fatal(err)
	}
	if err := sources.Load(""); err != nil {
		return c, sources, err
	}
	_, err = k.Parse(args)
	return c, sources, err
}

func mustParse(t *testing.T, environ []string, args ...string) Config {
	t.Helper()
	c, _, err := parse(t, environ, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func configFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// These are promised to operators; a renamed field must not rename them.
func TestNamesAndDefaultsThatAreFixed(t *testing.T) {
	want := map[string]string{
		"listen": "127.0.0.1:8080", "internal-listen": "127.0.0.1:9090", "redis.url": "", "redis.mode": "auto",
		"trusted-proxies": "", "limits.connect-rate": "500", "limits.connect-rate-per-ip": "50", "limits.max-connections": "auto",
		"limits.message-rate": "100", "limits.connections-per-user": "5", "insecure": "",
	}
	got := map[string]string{}
	for _, s := range settingsOf(new(Config)) {
		if _, ok := want[s.Name]; ok {
			got[s.Name] = s.Default()
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fixed names (-want +got):\n%s", diff)
	}
}

func TestDefaultsAreValidAndWhatTheCommandLineGives(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, mustParse(t, nil)); diff != "" {
		t.Errorf("DefaultConfig and the command line differ:\n%s", diff)
	}
	if c.Limits.MaxConnections != AutoConnections || c.Heartbeat.Interval != 30*time.Second || c.Limits.FrameBytes != 64<<10 {
		t.Errorf("defaults %+v", c)
	}
}

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
				value, inFile = "true", "true"
			case strings.HasSuffix(s.Name, "listen"):
				value, inFile = ":7", "':7'"
			case s.Name == "name", s.Name == "redis.master-name":
				value, inFile = "x", "x"
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
	want.Redis.URL, want.Redis.Mode, want.Redis.Timeout = "redis://chat:s%2Fecret@r1:7000,r2:7001", "cluster", 500*time.Millisecond
	want.Limits.ConnectRate, want.Limits.MessageRate = 0, 250
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

func wantGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), rewrite it with -update:\n%s", path, diff)
	}
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

func TestValidateNamesTheSetting(t *testing.T) {
	cases := map[string]struct {
		change func(*Config)
		want   string
	}{
		"negative":             {func(c *Config) { c.Limits.MessageRate = -1 }, "limits.message-rate: must be >= 0"},
		"negative duration":    {func(c *Config) { c.Heartbeat.Silence = -1 }, "heartbeat.silence: must be >= 0"},
		"zero without meaning": {func(c *Config) { c.Limits.InFlight = 0 }, "limits.in-flight: must be > 0"},
		"enum":                 {func(c *Config) { c.Log.Format = "xml" }, `log.format: must be one of auto, text, json, not "xml"`},
		"connections":          {func(c *Config) { c.Limits.MaxConnections = -2 }, "limits.max-connections: must be >= 0"},
		"name":                 {func(c *Config) { c.Name = "a b" }, "name: must be"},
		"name in keys":         {func(c *Config) { c.Name = "a{b}" }, "name: must be"},
		"long name":            {func(c *Config) { c.Name = strings.Repeat("a", 65) }, "name: must be"},
		"address":              {func(c *Config) { c.Listen = "8080" }, "listen: must be host:port"},
		"port":                 {func(c *Config) { c.Listen = ":65536" }, "listen: port"},
		"internal address":     {func(c *Config) { c.InternalListen = ":http" }, "internal-listen: port"},
		"same address":         {func(c *Config) { c.InternalListen = c.Listen }, "internal-listen: must differ"},
		"proxy":                {func(c *Config) { c.TrustedProxies = []string{"all"} }, "trusted-proxies: \"all\""},
		"origin":               {func(c *Config) { c.Origins = []string{"*"} }, "origins: \"*\""},
		"ttl":                  {func(c *Config) { c.Heartbeat.PresenceTTL = c.Heartbeat.Interval }, "heartbeat.presence-ttl: must be longer"},
		"silence":              {func(c *Config) { c.Heartbeat.Silence = time.Second }, "heartbeat.silence: must be longer"},
		"age":                  {func(c *Config) { c.Heartbeat.MaxAge = time.Second }, "heartbeat.max-age: must be longer"},
		"lease":                {func(c *Config) { c.Cluster.Lease = 2 * c.Cluster.PulseInterval }, "cluster.lease: must be longer"},
		"quiet":                {func(c *Config) { c.Cluster.Quiet = time.Second }, "cluster.quiet: must be at least"},
		"redis timeout":        {func(c *Config) { c.Redis.Timeout = time.Minute }, "redis.timeout: with"},
		"drain":                {func(c *Config) { c.Drain.Window = time.Hour }, "drain.deadline: must be at least"},
		"frame":                {func(c *Config) { c.Limits.FrameBytes = 100 }, "limits.frame-bytes: must be 1024"},
		"outbox":               {func(c *Config) { c.Limits.OutboxBytes = c.Limits.FrameBytes }, "limits.outbox-bytes: must be at least"},
		"redis":                {func(c *Config) { c.Redis.URL = "localhost:6379" }, "redis.url: must begin with"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			c.change(&cfg)
			if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	cfg := DefaultConfig()
	cfg.Limits.MessageRate, cfg.Listen = -1, "x"
	if err := cfg.Validate(); strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("want both mistakes, got %v", err)
	}
	cfg = DefaultConfig()
	cfg.Limits = LimitsConfig{FrameBytes: 65536, OutboxBytes: 262144, OutboxFrames: 1, InFlight: 1}
	cfg.Heartbeat.Silence, cfg.Heartbeat.PingAfter, cfg.Heartbeat.RegisterTimeout, cfg.Cluster.Grace, cfg.Drain.Delay = 0, 0, 0, 0, 0
	cfg.InternalListen = ""
	if err := cfg.Validate(); err != nil {
		t.Errorf("0 where it has a meaning: %v", err)
	}
}

func TestRedisURL(t *testing.T) {
	type want struct {
		Addrs                          []string
		User, Password, Master         string
		SentinelUser, SentinelPassword string
		DB                             int
		TLS, SkipVerify, Cluster       bool
	}
	cases := map[string]struct {
		cfg  RedisConfig
		want want
	}{
		"host":             {RedisConfig{URL: "redis://r"}, want{Addrs: []string{"r:6379"}}},
		"all":              {RedisConfig{URL: "redis://u:p%40ss@r:7/3"}, want{Addrs: []string{"r:7"}, User: "u", Password: "p@ss", DB: 3}},
		"password only":    {RedisConfig{URL: "redis://:pw@r:7"}, want{Addrs: []string{"r:7"}, Password: "pw"}},
		"TLS":              {RedisConfig{URL: "rediss://r:7"}, want{Addrs: []string{"r:7"}, TLS: true}},
		"TLS unverified":   {RedisConfig{URL: "rediss://r:7?skip_verify=true"}, want{Addrs: []string{"r:7"}, TLS: true, SkipVerify: true}},
		"IPv6":             {RedisConfig{URL: "redis://[::1]:7,[::2]"}, want{Addrs: []string{"[::1]:7", "[::2]:6379"}, Cluster: true}},
		"socket":           {RedisConfig{URL: "unix:///run/redis.sock?db=2"}, want{Addrs: []string{"/run/redis.sock"}, DB: 2}},
		"cluster":          {RedisConfig{URL: "redis://:pw@a:1,b:2,c"}, want{Addrs: []string{"a:1", "b:2", "c:6379"}, Password: "pw", Cluster: true}},
		"cluster of one":   {RedisConfig{URL: "redis://a:1", Mode: "cluster"}, want{Addrs: []string{"a:1"}, Cluster: true}},
		"standalone":       {RedisConfig{URL: "redis://a:1/0", Mode: "standalone"}, want{Addrs: []string{"a:1"}}},
		"sentinels":        {RedisConfig{URL: "redis://:pw@a:1,b/2?sentinel_password=sp&sentinel_username=su", MasterName: "m"}, want{Addrs: []string{"a:1", "b:26379"}, Password: "pw", Master: "m", DB: 2, SentinelUser: "su", SentinelPassword: "sp"}},
		"sentinels by URL": {RedisConfig{URL: "redis://a,b:2/0?master=m"}, want{Addrs: []string{"a:26379", "b:2"}, Master: "m"}},
		"any master":       {RedisConfig{URL: "redis://a", Mode: "sentinel"}, want{Addrs: []string{"a:26379"}}},
		"sentinel by mode": {RedisConfig{URL: "redis://a", Mode: "sentinel", MasterName: "m"}, want{Addrs: []string{"a:26379"}, Master: "m"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if c.cfg.Mode == "" {
				c.cfg.Mode = "auto"
			}
			if err := c.cfg.validate(); err != nil {
				t.Fatal(err)
			}
			o, err := c.cfg.Universal()
			if err != nil {
				t.Fatal(err)
			}
			got := want{o.Addrs, o.Username, o.Password, o.MasterName, o.SentinelUsername, o.SentinelPassword, o.DB, o.TLSConfig != nil, o.TLSConfig != nil && o.TLSConfig.InsecureSkipVerify, o.IsClusterMode}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The URL may hold a password, and errors end up in logs.
func TestWrongRedisURLsAreRefusedWithoutQuotingThem(t *testing.T) {
	for name, cfg := range map[string]RedisConfig{
		"no scheme":           {URL: "s3cret@host:6379"},
		"scheme":              {URL: "http://:s3cret@host"},
		"no host":             {URL: "redis://:s3cret@"},
		"port":                {URL: "redis://:s3cret@host:x"},
		"empty in list":       {URL: "redis://:s3cret@a,,b"},
		"slash in password":   {URL: "redis://:s3cret/s3cret@host:1"},
		"question mark":       {URL: "redis://:s3cret?s3cret@host:1"},
		"hash":                {URL: "redis://:s3cret#s3cret@host:1"},
		"percent":             {URL: "redis://:%s3cret@host:1"},
		"database":            {URL: "redis://:s3cret@host/s3cret"},
		"option":              {URL: "redis://:s3cret@host?other=s3cret"},
		"skip":                {URL: "rediss://:s3cret@host?skip_verify=s3cret"},
		"socket without path": {URL: "unix://s3cret"},
		"cluster database":    {URL: "redis://:s3cret@a,b/2"},
		"standalone list":     {URL: "redis://:s3cret@a,b", Mode: "standalone"},
		"master in cluster":   {URL: "redis://:s3cret@a,b", Mode: "cluster", MasterName: "m"},
		"sentinel password":   {URL: "redis://host?sentinel_password=s3cret"},
		"two masters":         {URL: "redis://a?master=m", MasterName: "n"},
		"nothing":             {Mode: "cluster"},
		"nothing but master":  {MasterName: "m"},
	} {
		t.Run(name, func(t *testing.T) {
			if cfg.Mode == "" {
				cfg.Mode = "auto"
			}
			err := cfg.validate()
			if err == nil || !strings.HasPrefix(err.Error(), "redis.") {
				t.Fatalf("error %v, want one that begins with the setting", err)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func TestShownSettingsHideSecretsAndCanBeReadBack(t *testing.T) {
	c := mustParse(t, []string{"GATEWAY_CONFIG=testdata/config/full.yaml"})
	var out bytes.Buffer
	if err := c.WriteYAML(&out, nil); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "ecret") || !strings.Contains(out.String(), "chat:"+mask+"@r1") {
		t.Errorf("the password is shown, or more is hidden:\n%s", &out)
	}
	back := mustParse(t, []string{"GATEWAY_CONFIG=" + configFile(t, out.String())})
	c.Redis.URL, back.Redis.URL = "", ""
	if diff := cmp.Diff(c, back); diff != "" {
		t.Errorf("read back (-shown +read):\n%s", diff)
	}
}

func TestShownSettingsNameTheirPlace(t *testing.T) {
	path := configFile(t, "page: on\n")
	c, sources, err := parse(t, []string{"GATEWAY_CONFIG=" + path, "GATEWAY_LIMITS_IN_FLIGHT=7"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.WriteYAML(&out, sources.Where); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"page: on # " + path + ":1\n", "in-flight: 7 # GATEWAY_LIMITS_IN_FLIGHT\n", "connect-rate: 500\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestMaskedURLs(t *testing.T) {
	for raw, want := range map[string]string{
		"redis://r:1":                   "redis://r:1",
		"redis://user@r":                "redis://user:*****@r",
		"redis://:a@b@r:1,s":            "redis://:*****@r:1,s",
		"redis://:pa/ss@r":              "redis://:*****@r",
		"redis://r?sentinel_password=x": "redis://r?*****",
		"redis://r?skip_verify=true":    "redis://r?skip_verify=true",
		"secret":                        "*****",
	} {
		if got := maskURL(raw); got != want {
			t.Errorf("%s is shown as %s, want %s", raw, got, want)
		}
	}
}

// Only a gateway that nobody beyond this machine reaches lets strangers in unasked.
func TestAnonymousUsersAndThePageStayOnLoopback(t *testing.T) {
	cases := map[string]struct {
		listen          string
		change          func(*Config)
		anonymous, page bool
	}{
		"default":         {"127.0.0.1:8080", nil, true, true},
		"localhost":       {"localhost:1", nil, true, true},
		"other loopback":  {"127.1.2.3:1", nil, true, true},
		"IPv6 loopback":   {"[::1]:1", nil, true, true},
		"mapped loopback": {"[::ffff:127.0.0.1]:1", nil, true, true},
		"all":             {":8080", nil, false, false},
		"all IPv4":        {"0.0.0.0:8080", nil, false, false},
		"all IPv6":        {"[::]:8080", nil, false, false},
		"some name":       {"localhost.example.com:1", nil, false, false},
		"behind a proxy":  {"127.0.0.1:8080", func(c *Config) { c.TrustedProxies = []string{"127.0.0.1"} }, false, true},
		"insecure":        {":8080", func(c *Config) { c.Insecure = true }, true, false},
		"page asked for":  {":8080", func(c *Config) { c.Page = "on" }, false, true},
		"page off":        {"127.0.0.1:8080", func(c *Config) { c.Page = "off" }, true, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.Listen = c.listen
			if c.change != nil {
				c.change(&cfg)
			}
			if err := cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			if cfg.Anonymous() != c.anonymous || cfg.PageOn() != c.page {
				t.Errorf("anonymous %v, page %v", cfg.Anonymous(), cfg.PageOn())
			}
			if warned := strings.Contains(strings.Join(cfg.Warnings(), " "), "nobody can register"); warned == c.anonymous {
				t.Errorf("warnings %q", cfg.Warnings())
			}
		})
	}
}

func TestAutomaticNumberOfConnectionsLeavesFilesForTheRest(t *testing.T) {
	cases := map[string]struct {
		limit ConnectionLimit
		files uint64
		per   int
		want  int
	}{
		"set":             {1000, 64, 1, 1000},
		"no limit":        {0, 64, 1, 0},
		"usual soft":      {AutoConnections, 1024, 1, 748},
		"usual hard":      {AutoConnections, 1_048_576, 1, 1_027_349},
		"tiny":            {AutoConnections, 64, 1, 32},
		"hardly any":      {AutoConnections, 1, 1, 1},
		"dev, three each": {AutoConnections, 1024, 9, 83},
		"endless":         {AutoConnections, 0, 1, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := c.limit.Number(c.files, c.per); got != c.want {
				t.Errorf("%d connections, want %d", got, c.want)
			}
		})
	}
	if c := DefaultConfig(); c.Limits.MaxConnections.Number(OpenFileLimit(), 1) < 0 {
		t.Error("negative")
	}
}

// docs/configuration.md lists every setting; the list is made here and compared.
func TestReferenceInTheDocsIsCurrent(t *testing.T) {
	const path = "../../docs/configuration.md"
	const begin, end = "<!-- begin settings: made by go test ./internal/gateway -update -->\n", "<!-- end settings -->"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the lines %q and %q", path, begin, end)
	}
	wantGolden(t, path, before+begin+reference()+end+after)
}

func reference() string {
	var out strings.Builder
	group := "\x00"
	for _, s := range settingsWith(new(Config), "the host's name") {
		if s.Group != group {
			group = s.Group
			title := group
			if title == "" {
				title = "The gateway"
			}
			fmt.Fprintf(&out, "\n### %s\n\n| flag, and key in the file | environment | default | meaning |\n|---|---|---|---|\n", title)
		}
		value := s.Default()
		switch {
		case s.Name == "name":
		case value == "" && s.flag.IsBool():
			value = "`false`"
		case value != "":
			value = "`" + value + "`"
		}
		meaning := s.Help
		if s.Zero != "" {
			word := "0"
			if s.value().Kind().String() == "string" || s.IsList() {
				word = "Empty"
			}
			meaning += " " + word + ": " + s.Zero + "."
		}
		env := "`" + s.Env() + "`"
		if s.Secret() {
			env += " `" + s.Env() + "_FILE`"
		}
		fmt.Fprintf(&out, "| `--%s` | %s | %s | %s |\n", s.Name, env, value, strings.ReplaceAll(meaning, "|", `\|`))
	}
	return out.String() + "\n"
}
