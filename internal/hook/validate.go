package hook

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// sinkName is a consumer group and the label of a metric.
var sinkName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// What a filter may list. Other types and causes may come with newer gateways, but a
// misspelt one would be a filter that lets nothing through.
var (
	knownTypes = []string{"connect", "disconnect", "online", "offline", "joined", "left", typeMessage}
	knownKinds = []string{"goodbye", "drop", "moved"}
	// Package gateway, which knows what ends a connection, holds that none is missing.
	knownCauses = []string{
		"client_close", "network", "slow_consumer", "heartbeat_timeout", "ping_timeout", "message_timeout", "register_timeout", "max_age", "superseded",
		"rebalance", "token_expired", "replaced", "kicked", "revoked", "draining", "unauthorized", "too_many_errors", "too_large", "bad_data", "protocol",
		"internal", "gateway_lost", "abandoned",
	}
)

// Validate says what is wrong with a sink; secrets are read by then.
func (s *SinkConfig) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !sinkName.MatchString(s.Name) {
		wrong("name: must be 1 to 32 small letters, digits, dashes or underscores")
	}
	errs = append(errs, s.Filter.validate())
	if s.Batch < 1 || s.Batch > 1000 {
		wrong("batch: must be 1 to 1000")
	}
	if s.Parallel < 1 || s.Parallel > 64 {
		wrong("parallel: must be 1 to 64")
	}
	if s.Timeout < 10*time.Millisecond {
		wrong("timeout: must be at least 10ms")
	}
	if s.RetryAfter <= 0 || s.RetryMost < s.RetryAfter {
		wrong("retry-after: must be above 0, and retry-most at least as long")
	}
	kinds := 0
	if s.Webhook != nil {
		kinds++
		errs = append(errs, s.Webhook.validate())
	}
	if s.MySQL != nil {
		kinds++
		errs = append(errs, s.MySQL.validate(s.Timeout))
	}
	if s.Redis != nil {
		kinds++
		switch {
		case s.Redis.Stream == "":
			wrong("redis.stream: is needed")
		case strings.HasPrefix(s.Redis.Stream, "cg:"): // events of events, or commands
			wrong("redis.stream: keys that begin with cg: are Chatgate's own")
		}
		if s.Redis.Kept < 0 {
			wrong("redis.kept: must be >= 0")
		}
	}
	if s.File != nil {
		kinds++
		if s.File.Path == "" {
			wrong("file.path: is needed")
		}
	}
	if kinds != 1 {
		wrong("needs exactly one of webhook, mysql, redis and file")
	}
	return errors.Join(errs...)
}

func (f *Filter) validate() error {
	for _, t := range f.Types {
		if !slices.Contains(knownTypes, t) {
			return fmt.Errorf("types: no event is called %q", t)
		}
	}
	for _, k := range f.Kinds {
		if !slices.Contains(knownKinds, k) {
			return fmt.Errorf("kinds: no end is called %q", k)
		}
	}
	for _, c := range f.Causes {
		if !slices.Contains(knownCauses, c) {
			return fmt.Errorf("causes: no end is called %q", c)
		}
	}
	return nil
}

func (c *WebhookConfig) validate() error {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" {
		return errors.New("webhook.url: must be an http:// or https:// URL")
	}
	if u.User != nil {
		return errors.New("webhook.url: must hold no user and password; the signature says who is calling")
	}
	allowed, err := parseAllowed(c.Allow)
	if err != nil {
		return fmt.Errorf("webhook.%w", err)
	}
	if err := checkHost(u.Hostname(), allowed); err != nil {
		return fmt.Errorf("webhook.url: %w", err)
	}
	if _, err := c.key(); err != nil {
		return fmt.Errorf("webhook.%w", err)
	}
	return nil
}

func (c *MySQLConfig) validate(timeout time.Duration) error {
	if _, err := c.driver(timeout); err != nil {
		return err
	}
	statements, err := c.parse()
	if err != nil {
		return err
	}
	for i, s := range statements {
		if err := s.filter.validate(); err != nil {
			return fmt.Errorf("mysql: statement %d: %w", i+1, err)
		}
	}
	return nil
}

// PlainText reports whether events leave this machine unencrypted, by http.
func (s *SinkConfig) PlainText() bool { return s.Webhook != nil && plainText(s.Webhook.URL) }

// PlainText reports whether a question leaves this machine unencrypted, by http.
func (a Asked) PlainText() bool { return plainText(a.URL) }

func plainText(to string) bool {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "http" {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() != "localhost" && (err != nil || !addr.IsLoopback())
}
