package gateway

import (
	"crypto/tls"
	"fmt"
	"reflect"
	"strings"

	"chatgate/internal/handler"
)

// Reload takes over what of cfg may change while the gateway runs, also for connections that are open: the settings marked reload, and the
// files that they name, which are read again in any case. It does all of it or, when something is wrong, nothing. changed are the settings
// it took over, restart those that differ and need a new process. One goroutine at a time calls it.
func (g *Gateway) Reload(cfg Config) (changed, restart []string, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, nil, err
	}
	next, changed, restart := g.running.takeOver(cfg)
	var apply []func()
	for _, part := range g.reloads() {
		take, err := part(&next)
		if err != nil {
			return nil, nil, err
		}
		apply = append(apply, take)
	}
	for _, take := range apply {
		take()
	}
	g.running = next
	return changed, restart, nil
}

// reloads are the parts of the gateway that take over settings. Each prepares what it needs, which may fail, and returns what makes it count,
// which may not.
func (g *Gateway) reloads() []func(*Config) (apply func(), err error) {
	return []func(*Config) (func(), error){g.reloadLimits, g.reloadKeys, g.reloadAPIKeys, g.reloadCertificate}
}

func (g *Gateway) reloadLimits(c *Config) (func(), error) {
	return func() {
		g.admission.Reload(c.admission(g.proxies))
		g.handler.Reload(c.Limits.connection())
		g.registry.LimitConnections(c.Limits.ConnectionsPerUser)
	}, nil
}

func (g *Gateway) reloadKeys(c *Config) (func(), error) {
	if g.tokens == nil {
		return func() {}, nil
	}
	return g.tokens.Reload(c.Auth.Keys, c.Auth.Secrets)
}

func (g *Gateway) reloadAPIKeys(c *Config) (func(), error) {
	keys := c.API.Keys
	return func() { _ = g.api.SetKeys(keys) }, nil // they are valid, as all of the configuration is
}

func (g *Gateway) reloadCertificate(c *Config) (func(), error) {
	if !c.TLS.On() {
		return func() {}, nil
	}
	cert, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
	if err != nil {
		return nil, fmt.Errorf("tls.cert, tls.key: %w", err)
	}
	return func() { g.certificate.Store(&cert) }, nil
}

// admission is what package handler lets in.
func (c *Config) admission(proxies handler.Proxies) handler.AdmissionConfig {
	return handler.AdmissionConfig{
		ConnectRate: c.Limits.ConnectRate, ConnectRatePerIP: c.Limits.ConnectRatePerIP,
		MaxConnections: c.Limits.MaxConnections.Number(OpenFileLimit(), 1), TrustedProxies: proxies,
	}
}

// takeOver returns c with what may be taken over from another configuration, and the names of the settings in which the two differ: those that
// were taken over, and those that need a restart.
func (c Config) takeOver(from Config) (next Config, changed, restart []string) {
	next = c
	into, with := settingsOf(&next), settingsOf(&from)
	for i, s := range into {
		value := with[i].value()
		switch {
		case same(s.value(), value):
		case s.Reloads() && c.reloads(s.Name, from):
			s.value().Set(value)
			changed = append(changed, s.Name)
		default:
			restart = append(restart, s.Name)
		}
	}
	switch before, now := c.API.Keys, from.API.Keys; {
	case same(reflect.ValueOf(before), reflect.ValueOf(now)):
	case len(now) > 0:
		next.API.Keys = now
		changed = append(changed, keysName)
	default:
		restart = append(restart, keysName) // without any the API might be open
	}
	if !same(reflect.ValueOf(c.Events.Sinks), reflect.ValueOf(from.Events.Sinks)) {
		restart = append(restart, sinksName)
	}
	return next, changed, restart
}

// same reports whether two settings mean the same: a list that is empty, and one that is not there, do.
func same(a, b reflect.Value) bool {
	if a.Kind() == reflect.Slice && a.Len()+b.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// reloads reports whether a setting can be taken over as things are: what is not there at all, TLS or tokens, isn't begun by a reload, and
// what is there isn't ended.
func (c Config) reloads(name string, from Config) bool {
	switch {
	case strings.HasPrefix(name, "tls."):
		return c.TLS.On() && from.TLS.On()
	case strings.HasPrefix(name, "auth."):
		return c.Auth.Enabled() && from.Auth.Enabled()
	}
	return true
}
