package auth

import (
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Config says whose tokens are good here. With no key of any kind nobody's are.
type Config struct {
	// Issuers are the accepted iss, compared byte by byte.
	Issuers []string
	// Audiences are the accepted aud: a token must name one of them.
	Audiences []string

	// Keys are files with public keys: PEM, or a JSON Web Key Set. Each may begin with
	// the issuer it belongs to and "=", and must where there are several issuers. So
	// may the two below.
	Keys []string
	// Secrets are files with the shared secret of HS256, at least 32 bytes.
	Secrets []string
	// KeySets are URLs of JSON Web Key Sets: https, or http on this machine.
	KeySets []string

	// Leeway is by how much the clock of an issuer may be ahead: for nbf and iat. There
	// is none for exp.
	Leeway time.Duration
	// MaxLifetime bounds exp - iat. It is also how long a revocation has to be kept.
	MaxLifetime time.Duration

	// KeySetRefresh is how often a key set is fetched again.
	KeySetRefresh time.Duration
	// KeySetMinInterval is the least time between two fetches of one key set, however
	// many tokens name a key that it lacks.
	KeySetMinInterval time.Duration
	// KeySetTimeout bounds one fetch.
	KeySetTimeout time.Duration

	Log *slog.Logger
	// Now is the clock tokens are held against. nil: time.Now.
	Now func() time.Time
}

// Enabled reports whether any token can be verified.
func (c *Config) Enabled() bool { return len(c.Keys)+len(c.Secrets)+len(c.KeySets) > 0 }

// Validate calls wrong for each field that makes no sense, by the name of its setting. It opens no file.
func (c *Config) Validate(wrong func(name, format string, args ...any)) {
	for name, list := range map[string][]string{"issuers": c.Issuers, "audiences": c.Audiences} {
		switch {
		case slices.Contains(list, ""):
			wrong(name, "one of them is empty")
		case c.Enabled() && len(list) == 0:
			wrong(name, "must be set, since there are keys: a token of another service would do as well")
		case !c.Enabled() && len(list) > 0:
			wrong(name, "without keys, secrets or key-sets nobody's token is good")
		}
	}
	for name, list := range map[string][]string{"keys": c.Keys, "secrets": c.Secrets, "key-sets": c.KeySets} {
		for _, entry := range list {
			_, place, err := c.issuerOf(entry)
			if err == nil && name == "key-sets" {
				err = checkKeySetURL(place)
			}
			if err != nil {
				wrong(name, "%v", err)
			}
		}
	}
	if c.Leeway > 5*time.Minute {
		wrong("leeway", "must be at most 5m: clocks are not that wrong")
	}
	if c.KeySetMinInterval > c.KeySetRefresh {
		wrong("key-set-min-interval", "must not exceed key-set-refresh")
	}
}

// issuerOf takes an entry apart: the issuer it belongs to, and the file or URL.
func (c *Config) issuerOf(entry string) (issuer, place string, err error) {
	found := false
	for _, i := range c.Issuers { // the longest, where one begins with another and "="
		if rest, ok := strings.CutPrefix(entry, i+"="); ok && len(i) >= len(issuer) {
			issuer, place, found = i, rest, true
		}
	}
	switch {
	case !found && len(c.Issuers) == 1:
		issuer, place = c.Issuers[0], entry
	case !found && len(c.Issuers) > 1:
		return "", "", fmt.Errorf("%q must begin with its issuer and =, as there are several", entry)
	}
	if place == "" && len(c.Issuers) > 0 {
		return "", "", fmt.Errorf("%q names no place", entry)
	}
	return issuer, place, nil
}

// checkKeySetURL wants what nobody on the way can change: whoever answers decides who may come in.
func checkKeySetURL(place string) error {
	u, err := url.Parse(place)
	switch {
	case place == "":
		return nil // there is no issuer, which is the mistake that is told
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is no URL such as https://id.example.com/jwks.json", place)
	case u.User != nil || u.Fragment != "":
		return fmt.Errorf("%q: a key set is public, so no user and no fragment", u.Redacted())
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return fmt.Errorf("%q must be https: whoever is on the way could let anyone in", place)
	}
	return nil
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

func (c *Config) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}
