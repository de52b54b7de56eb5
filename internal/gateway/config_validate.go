package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"chatgate/internal/handler"
	"chatgate/internal/hook"
	"chatgate/internal/presence"
)

// Validate returns nil, or everything that is wrong, one line each, beginning with the setting's name:
//
//	limits.message-rate: must be >= 0
func (c Config) Validate() error {
	var errs []error
	wrong := func(name, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
	}
	for _, s := range settingsOf(&c) {
		if err := s.validate(); err != nil {
			wrong(s.Name, "%v", err)
		}
	}
	c.validateEdge(wrong)
	c.validateRelations(wrong)
	verification := c.Auth.Verification(nil)
	verification.Validate(func(name, format string, args ...any) { wrong("auth."+name, format, args...) })
	c.validateSinks(wrong)
	c.validateHooks(wrong)
	c.validateAPI(wrong)
	if err := c.Redis.validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c Config) validateEdge(wrong func(name, format string, args ...any)) {
	if !validName.MatchString(c.Name) {
		wrong("name", "must be 1 to 64 letters, digits, dots, dashes or underscores")
	}
	if err := checkAddress(c.Listen); err != nil {
		wrong("listen", "%v", err)
	}
	if c.InternalListen != "" {
		if err := checkAddress(c.InternalListen); err != nil {
			wrong("internal-listen", "%v", err)
		} else if c.InternalListen == c.Listen && !strings.HasSuffix(c.Listen, ":0") {
			wrong("internal-listen", "must differ from listen")
		}
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		wrong("tls.key", "must be set together with tls.cert")
	}
	if _, err := handler.ParseProxies(c.TrustedProxies); err != nil {
		wrong("trusted-proxies", "%v", err)
	}
	if c.ProxyProtocol && len(c.TrustedProxies) == 0 {
		wrong("proxy-protocol", "needs trusted-proxies: from nobody else it is believed")
	}
	if _, err := handler.ParseOrigins(c.Origins); err != nil {
		wrong("origins", "%v", err)
	}
	if _, err := presence.ParseClasses(c.Limits.DeviceClasses); err != nil {
		wrong("limits.device-classes", "%v", err)
	}
}

// validateRelations checks what must hold between settings for the protocols built on them to work.
func (c Config) validateRelations(wrong func(name, format string, args ...any)) {
	l, h, cl, d := c.Limits, c.Heartbeat, c.Cluster, c.Drain
	const least, most = 1 << 10, 1 << 20
	if l.FrameBytes < least || l.FrameBytes > most {
		wrong("limits.frame-bytes", "must be %d to %d", least, most)
	}
	if l.OutboxBytes < 2*l.FrameBytes {
		wrong("limits.outbox-bytes", "must be at least twice limits.frame-bytes, or one message could make a slow consumer")
	}
	if h.PresenceTTL <= h.Interval {
		wrong("heartbeat.presence-ttl", "must be longer than heartbeat.interval")
	}
	if h.Silence != 0 && h.Silence <= h.Interval {
		wrong("heartbeat.silence", "must be longer than heartbeat.interval")
	}
	if h.MaxAge != 0 && h.MaxAge <= h.Interval {
		wrong("heartbeat.max-age", "must be longer than heartbeat.interval")
	}
	if cl.Lease <= 2*cl.PulseInterval {
		wrong("cluster.lease", "must be longer than twice cluster.pulse-interval, or one late pulse ends it")
	}
	if cl.Quiet < cl.Lease {
		wrong("cluster.quiet", "must be at least cluster.lease, or gateways are judged before they could renew")
	}
	if r := c.Redis; r.WaitReplicas > 0 && (r.WaitTimeout < time.Millisecond || r.WaitTimeout > r.Timeout/2) {
		wrong("redis.wait-timeout", "must be 1ms to half of redis.timeout")
	}
	if cl.PulseInterval+c.Redis.Timeout > cl.Lease {
		wrong("redis.timeout", "with cluster.pulse-interval must not exceed cluster.lease")
	}
	if c.History.Positions < c.History.Age {
		wrong("history.positions", "must be at least history.age, or a log would be kept without its position")
	}
	if d.Delay+d.Window >= d.Deadline {
		wrong("drain.deadline", "must be more than drain.delay and drain.window together, or those closed last have no time to leave")
	}
}

func (c Config) validateSinks(wrong func(name, format string, args ...any)) {
	names := make(map[string]bool)
	for i := range c.Events.Sinks {
		s := &c.Events.Sinks[i]
		for _, err := range linesOf(s.Validate()) {
			wrong(sinksName, "%s: %s", s.Name, err)
		}
		if names[s.Name] {
			wrong(sinksName, "%s: name: is that of two sinks", s.Name)
		}
		names[s.Name] = true
		if !c.Events.Rooms && len(s.Types) > 0 && (s.Takes("joined") || s.Takes("left")) {
			wrong(sinksName, "%s: types: joined and left need events.rooms", s.Name)
		}
		if c.Events.Messages == "off" && slices.Contains(s.Types, "message") {
			wrong(sinksName, "%s: types: message needs events.messages", s.Name)
		}
		if err := checkRedisOf(s); err != nil {
			wrong(sinksName, "%s: %v", s.Name, err)
		}
	}
}

func (c Config) validateHooks(wrong func(name, format string, args ...any)) {
	d := c.Hooks.Decider(nil)
	for _, q := range hook.Questions {
		if _, asked := d.Asked[q]; !asked {
			continue
		}
		if err := d.Validate(q); err != nil {
			text := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "webhook.url: "), "webhook.", "hooks.")
			wrong("hooks."+string(q), "%s", text)
			if strings.HasPrefix(text, "hooks.") {
				break // what all questions share is said once
			}
		}
	}
	if c.Hooks.Timeout < 10*time.Millisecond || c.Hooks.Timeout > c.Heartbeat.RegisterTimeout && c.Heartbeat.RegisterTimeout > 0 {
		wrong("hooks.timeout", "must be 10ms to heartbeat.register-timeout")
	}
	for _, name := range c.Hooks.Headers {
		if !validHeader.MatchString(name) {
			wrong("hooks.headers", "%q is no name of a header", name)
		}
	}
}

var validHeader = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// checkAddress wants host:port, where the host may be empty (all interfaces) and port 0 means any free one.
func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("must be host:port, such as 127.0.0.1:8080 or :8080")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("port %q must be 0 to 65535", port)
	}
	return nil
}

// onLoopback reports whether only programs on this machine can reach address. A name other than localhost is taken to
// lead elsewhere.
func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
