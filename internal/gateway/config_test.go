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
	"github.com/google/go-cmp/cmp/cmpopts"
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
		"class":                {func(c *Config) { c.Limits.DeviceClasses = []string{"phone"} }, "limits.device-classes: \"phone\": want"},
		"places":               {func(c *Config) { c.Limits.DeviceClasses = []string{"phone=-1"} }, "limits.device-classes: \"phone=-1\": want"},
		"class without a name": {func(c *Config) { c.Limits.DeviceClasses = []string{"=1"} }, "limits.device-classes: \"=1\": not a name"},
		"class twice":          {func(c *Config) { c.Limits.DeviceClasses = []string{"a=1", "a=2"} }, "limits.device-classes: \"a=2\": the class is there twice"},
		"class policy":         {func(c *Config) { c.Limits.ClassPolicy = "first" }, "limits.class-policy: must be one of newest, oldest"},
		"ttl":                  {func(c *Config) { c.Heartbeat.PresenceTTL = c.Heartbeat.Interval }, "heartbeat.presence-ttl: must be longer"},
		"silence":              {func(c *Config) { c.Heartbeat.Silence = time.Second }, "heartbeat.silence: must be longer"},
		"age":                  {func(c *Config) { c.Heartbeat.MaxAge = time.Second }, "heartbeat.max-age: must be longer"},
		"lease":                {func(c *Config) { c.Cluster.Lease = 2 * c.Cluster.PulseInterval }, "cluster.lease: must be longer"},
		"quiet":                {func(c *Config) { c.Cluster.Quiet = time.Second }, "cluster.quiet: must be at least"},
		"redis timeout":        {func(c *Config) { c.Redis.Timeout = time.Minute }, "redis.timeout: with"},
		"replicas":             {func(c *Config) { c.Redis.WaitReplicas = -1 }, "redis.wait-replicas: must be >= 0"},
		"replicas of nobody":   {func(c *Config) { c.Redis.WaitReplicas = 1 }, "redis.wait-replicas: the embedded Redis has none"},
		"replica wait":         {func(c *Config) { c.Redis.WaitReplicas, c.Redis.WaitTimeout = 1, 501*time.Millisecond }, "redis.wait-timeout: must be 1ms to half"},
		"no replica wait":      {func(c *Config) { c.Redis.WaitReplicas, c.Redis.WaitTimeout = 1, time.Microsecond }, "redis.wait-timeout: must be 1ms to half"},
		"drain":                {func(c *Config) { c.Drain.Window = time.Hour }, "drain.deadline: must be more than"},
		"proxy protocol":       {func(c *Config) { c.ProxyProtocol = true }, "proxy-protocol: needs trusted-proxies"},
		"drain, nothing left":  {func(c *Config) { c.Drain.Window = c.Drain.Deadline - c.Drain.Delay }, "drain.deadline: must be more than"},
		"frame":                {func(c *Config) { c.Limits.FrameBytes = 100 }, "limits.frame-bytes: must be 1024"},
		"outbox":               {func(c *Config) { c.Limits.OutboxBytes = c.Limits.FrameBytes }, "limits.outbox-bytes: must be at least"},
		"issuers alone":        {func(c *Config) { c.Auth.Issuers = []string{"x"} }, "auth.issuers: without keys"},
		"keys of nobody":       {func(c *Config) { withTokens(c); c.Auth.Issuers = nil }, "auth.issuers: must be set"},
		"key set by http":      {func(c *Config) { withTokens(c); c.Auth.KeySets = []string{"http://x/"} }, "auth.key-sets: \"http://x/\" must be https"},
		"no lifetime":          {func(c *Config) { c.Auth.MaxLifetime = 0 }, "auth.max-lifetime: must be > 0"},
		"commands":             {func(c *Config) { c.API.Commands = []string{"send", "sned"} }, "api.commands: no scope is called \"sned\""},
		"takeover":             {func(c *Config) { c.API.Takeover = 14 * time.Second }, "api.takeover: must be at least three times"},
		"hook at home":         {func(c *Config) { withHook(c, "http://127.0.0.1/") }, "hooks.join: "},
		"hook in disguise":     {func(c *Config) { withHook(c, "http://2130706433/") }, "hooks.join: "},
		"hook of another kind": {func(c *Config) { withHook(c, "ftp://example.com/") }, "hooks.join: "},
		"hook unsigned":        {func(c *Config) { withHook(c, "https://example.com/"); c.Hooks.Secret = "" }, "hooks.join: hooks.secret"},
		"hook allows nonsense": {func(c *Config) { withHook(c, "https://example.com/"); c.Hooks.Allow = []string{"all"} }, "hooks.join: hooks.allow"},
		"hook slow":            {func(c *Config) { c.Hooks.Timeout = time.Minute }, "hooks.timeout: must be 10ms"},
		"hook failure":         {func(c *Config) { c.Hooks.JoinOnFailure = "maybe" }, "hooks.join-on-failure: must be one of"},
		"hook header":          {func(c *Config) { c.Hooks.Headers = []string{"a b"} }, "hooks.headers: "},
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
	withHook(&cfg, "https://example.com/")
	cfg.Hooks.Message, cfg.Hooks.Secret = cfg.Hooks.Join, "hush"
	if err := cfg.Validate(); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("want one mistake of two hooks, got %v", err)
	}
	cfg = DefaultConfig()
	cfg.Limits = LimitsConfig{ClassPolicy: "newest", FrameBytes: 65536, OutboxBytes: 262144, OutboxFrames: 1, InFlight: 1}
	cfg.Heartbeat.Silence, cfg.Heartbeat.PingAfter, cfg.Heartbeat.RegisterTimeout, cfg.Cluster.Grace, cfg.Cluster.Heal, cfg.Drain.Delay = 0, 0, 0, 0, 0, 0
	cfg.InternalListen = ""
	if err := cfg.Validate(); err != nil {
		t.Errorf("0 where it has a meaning: %v", err)
	}
}

func withHook(c *Config, url string) {
	c.Hooks.Join, c.Hooks.Secret = url, "a secret of enough characters"
}

func TestShownSettingsHideSecretsAndCanBeReadBack(t *testing.T) {
	c := mustParse(t, []string{"GATEWAY_CONFIG=testdata/config/full.yaml"})
	var out bytes.Buffer
	if err := c.WriteYAML(&out, nil); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "%2Fecret") || strings.Contains(out.String(), "s/ecret") || !strings.Contains(out.String(), "chat:"+mask+"@r1") {
		t.Errorf("the password is shown, or more is hidden:\n%s", &out)
	}
	back := mustParse(t, []string{"GATEWAY_CONFIG=" + configFile(t, out.String())})
	c.Redis.URL, back.Redis.URL = "", ""
	if diff := cmp.Diff(c, back, cmpopts.EquateEmpty()); diff != "" {
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

func TestTheDefaultsAreNotWarnedAbout(t *testing.T) {
	if list := DefaultConfig().Warnings(); len(list) != 0 {
		t.Errorf("warnings %q", list)
	}
}

// withTokens is a configuration whose files nobody opens.
func withTokens(c *Config) {
	c.Auth.Issuers, c.Auth.Audiences, c.Auth.Secrets = []string{"https://id.example.com"}, []string{"chat"}, []string{"/run/secret"}
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
		// A proxy on the same machine can bring in the whole world, which loopback does not show.
		"behind a proxy": {"127.0.0.1:8080", func(c *Config) { c.TrustedProxies = []string{"127.0.0.1"} }, false, true},
		"proxy protocol": {"127.0.0.1:8080", func(c *Config) { c.TrustedProxies, c.ProxyProtocol = []string{"127.0.0.1"}, true }, false, true},
		"and insecure":   {"127.0.0.1:8080", func(c *Config) { c.TrustedProxies, c.Insecure = []string{"127.0.0.1"}, true }, true, true},
		"beside tokens":  {"127.0.0.1:8080", withTokens, false, true},
		"insecure":       {":8080", func(c *Config) { c.Insecure = true }, true, false},
		"page asked for": {":8080", func(c *Config) { c.Page = "on" }, false, true},
		"page off":       {"127.0.0.1:8080", func(c *Config) { c.Page = "off" }, true, false},
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
			nobody := !c.anonymous && !cfg.Auth.Enabled()
			if warned := strings.Contains(strings.Join(cfg.Warnings(), " "), "nobody can register"); warned != nobody {
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
		if s.Reloads() {
			meaning += " Reloaded by SIGHUP."
		}
		env := "`" + s.Env() + "`"
		if s.Secret() {
			env += " `" + s.Env() + "_FILE`"
		}
		fmt.Fprintf(&out, "| `--%s` | %s | %s | %s |\n", s.Name, env, value, strings.ReplaceAll(meaning, "|", `\|`))
	}
	return out.String() + "\n"
}
