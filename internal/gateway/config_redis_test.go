package gateway

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
