package auth

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestValidateNamesTheSetting(t *testing.T) {
	two := []string{"https://a", "https://b"}
	cases := map[string]struct {
		change func(*Config)
		want   string // "": nothing is wrong
	}{
		"as it is":              {func(*Config) {}, ""},
		"no keys at all":        {func(c *Config) { *c = Config{} }, ""},
		"no issuer":             {func(c *Config) { c.Issuers = nil }, "issuers: must be set"},
		"empty issuer":          {func(c *Config) { c.Issuers = []string{""} }, "issuers: one of them is empty"},
		"no audience":           {func(c *Config) { c.Audiences = nil }, "audiences: must be set"},
		"issuer without keys":   {func(c *Config) { *c = Config{Issuers: two} }, "issuers: without keys"},
		"audience without keys": {func(c *Config) { *c = Config{Audiences: two} }, "audiences: without keys"},
		"whose key":             {func(c *Config) { c.Issuers = two }, "must begin with its issuer"},
		"keys of two": {func(c *Config) {
			c.Issuers, c.Keys, c.Secrets = two, []string{"https://a=/k"}, []string{"https://b=/k"}
		}, ""},
		"nowhere":                {func(c *Config) { c.Keys = []string{issuer + "="} }, "keys: "},
		"key set":                {func(c *Config) { c.KeySets = []string{"https://id.example.com/jwks?x=1"} }, ""},
		"key set here":           {func(c *Config) { c.KeySets = []string{"http://127.0.0.1:8000/", "http://[::1]/", "http://localhost/"} }, ""},
		"key set by http":        {func(c *Config) { c.KeySets = []string{"http://id.example.com/"} }, "key-sets: \"http://id.example.com/\" must be https"},
		"key set by almost here": {func(c *Config) { c.KeySets = []string{"http://127.0.0.1.example.com/"} }, "key-sets: "},
		"key set in a file":      {func(c *Config) { c.KeySets = []string{"file:///etc/passwd"} }, "key-sets: "},
		"key set with password":  {func(c *Config) { c.KeySets = []string{"https://u:p@id.example.com/"} }, "key-sets: \"https://u:xxxxx@id"},
		"key set nowhere":        {func(c *Config) { c.KeySets = []string{"https:///jwks"} }, "key-sets: "},
		"leeway":                 {func(c *Config) { c.Leeway = time.Hour }, "leeway: must be at most"},
		"interval":               {func(c *Config) { c.KeySetMinInterval = 2 * time.Hour }, "key-set-min-interval: must not exceed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := Config{
				Issuers: []string{issuer}, Audiences: []string{audience}, Keys: []string{"/k"}, Secrets: []string{"/s"},
				KeySetRefresh: time.Hour, KeySetMinInterval: time.Second,
			}
			c.change(&cfg)
			var found []string
			cfg.Validate(func(name, format string, args ...any) {
				found = append(found, name+": "+fmt.Sprintf(format, args...))
			})
			if all := strings.Join(found, "\n"); (all == "") != (c.want == "") || !strings.Contains(all, c.want) {
				t.Errorf("found %q, want %q", all, c.want)
			}
		})
	}
}

// A gateway that can't read its keys does not start: it would refuse everybody, or be thought safe.
func TestNewWantsEveryFile(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"missing":      func(c *Config) { c.Keys = []string{"/nowhere/at.all"} },
		"a directory":  func(c *Config) { c.Keys = []string{t.TempDir()} },
		"endless":      func(c *Config) { c.Keys = []string{"/dev/zero"} },
		"empty secret": func(c *Config) { c.Secrets = []string{file(t, nil)} },
	} {
		cfg := settings(t)
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), "auth.") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
