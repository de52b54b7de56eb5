package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Ports used where redis.url names none.
const (
	redisPort    = "6379"
	sentinelPort = "26379"
)

// Embedded reports whether Redis runs inside this process.
func (c RedisConfig) Embedded() bool { return c.URL == "" }

// Universal turns the settings into what go-redis connects by. The forms of redis.url are
//
//	redis://[user:password@]host[:port][,host[:port]...][/db][?option=value&...]
//	rediss://...                                             with TLS
//	unix://[user:password@]/path/to/redis.sock[?db=N]        a socket of this machine
//
// Several hosts are nodes of a Cluster, or the Sentinels when there is a master name. User and password are those of Redis
// itself; the options are master (instead of redis.master-name), sentinel_username and sentinel_password for the Sentinels,
// and skip_verify=true, which accepts any certificate. A / ? # or @ in a password is percent-encoded. No error quotes the
// URL, since it may hold the password.
func (c RedisConfig) Universal() (*redis.UniversalOptions, error) {
	if c.Embedded() {
		return nil, errors.New("redis.url: is empty, so Redis is embedded")
	}
	o, err := c.parseURL()
	if err != nil {
		return nil, fmt.Errorf("redis.url: %w", err)
	}
	o.IsClusterMode = c.Mode == "cluster" || c.Mode == "auto" && o.MasterName == "" && len(o.Addrs) > 1
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = c.DialTimeout, c.Timeout, c.Timeout
	o.ContextTimeoutEnabled = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return o, nil
}

// sentinel reports whether the hosts are known to be Sentinels: by the mode or by a master name. In auto mode they can still
// turn out to be when asked.
func (c RedisConfig) sentinel() bool {
	if c.Mode != "auto" {
		return c.Mode == "sentinel"
	}
	o, err := c.parseURL()
	return err == nil && o.MasterName != ""
}

// validate checks the URL, and that mode and master name fit it.
func (c RedisConfig) validate() error {
	if c.Embedded() {
		if c.Mode == "sentinel" || c.Mode == "cluster" || c.MasterName != "" {
			return errors.New("redis.url: is needed for Sentinel or Cluster")
		}
		if c.WaitReplicas > 0 {
			return errors.New("redis.wait-replicas: the embedded Redis has none; redis.url says where one is that has")
		}
		return nil
	}
	o, err := c.Universal()
	if err != nil {
		return err
	}
	sentinel := c.sentinel()
	switch {
	case c.MasterName != "" && o.MasterName != c.MasterName:
		return errors.New("redis.master-name: differs from the master in redis.url")
	case !sentinel && o.MasterName != "":
		return fmt.Errorf("redis.master-name: belongs to Sentinel, redis.mode is %s", c.Mode)
	case c.Mode == "standalone" && len(o.Addrs) > 1:
		return errors.New("redis.url: standalone is one host")
	case o.IsClusterMode && o.DB != 0:
		return errors.New("redis.url: Cluster has database 0 only")
	case (o.IsClusterMode || sentinel) && strings.HasPrefix(o.Addrs[0], "/"):
		return errors.New("redis.url: Sentinel and Cluster can't be reached by a unix socket")
	case !sentinel && (o.SentinelUsername != "" || o.SentinelPassword != ""):
		return errors.New("redis.url: sentinel_username and sentinel_password belong to Sentinel")
	}
	return nil
}

// parseURL splits the list of hosts off itself, since net/url knows only one host, and leaves the rest to net/url.
func (c RedisConfig) parseURL() (*redis.UniversalOptions, error) {
	scheme, rest, ok := strings.Cut(c.URL, "://")
	if !ok || scheme != "redis" && scheme != "rediss" && scheme != "unix" {
		return nil, errors.New("must begin with redis://, rediss:// or unix://")
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	user, hosts, ok := cutLast(rest[:end], "@")
	if !ok {
		user, hosts = "", rest[:end]
	}
	u, err := url.Parse("redis://" + user + "@host" + rest[end:])
	if err != nil || u.Fragment != "" {
		return nil, errors.New("is not a URL; a / ? # or @ in user or password must be percent-encoded")
	}

	o := &redis.UniversalOptions{Username: u.User.Username(), MasterName: c.MasterName}
	o.Password, _ = u.User.Password()
	query := u.Query()
	port := redisPort
	if c.Mode == "sentinel" || query.Get("master") != "" || c.MasterName != "" {
		port = sentinelPort
	}
	database := strings.Trim(u.Path, "/")
	if scheme == "unix" {
		if hosts != "" || database == "" {
			return nil, errors.New("needs an absolute path: unix:///run/redis.sock")
		}
		o.Addrs, database = []string{u.Path}, query.Get("db")
		query.Del("db")
	} else if o.Addrs, err = redisHosts(hosts, port); err != nil {
		return nil, err
	}
	if database != "" {
		if o.DB, err = strconv.Atoi(database); err != nil || o.DB < 0 {
			return nil, errors.New("the database must be a number")
		}
	}
	if scheme == "rediss" {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return o, redisOptions(o, query)
}

// redisOptions applies what stands behind the ? of the URL.
func redisOptions(o *redis.UniversalOptions, query url.Values) error {
	for key, values := range query {
		value := values[len(values)-1]
		switch key {
		case "master":
			o.MasterName = value
		case "sentinel_username":
			o.SentinelUsername = value
		case "sentinel_password":
			o.SentinelPassword = value
		case "skip_verify":
			skip, err := strconv.ParseBool(value)
			if err != nil {
				return errors.New("skip_verify must be true or false")
			}
			if o.TLSConfig != nil {
				o.TLSConfig.InsecureSkipVerify = skip //nolint:gosec // asked for by name
			}
		default:
			return fmt.Errorf("has no option %q", key)
		}
	}
	return nil
}

// redisHosts reads host[:port],... into host:port each.
func redisHosts(list, defaultPort string) ([]string, error) {
	var addrs []string
	for host := range strings.SplitSeq(list, ",") {
		port := defaultPort
		if h, p, err := net.SplitHostPort(host); err == nil {
			host, port = h, p
		} else {
			host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
		}
		if n, err := strconv.Atoi(port); host == "" || err != nil || n < 1 || n > 65535 {
			return nil, errors.New("a host is missing or has no valid port")
		}
		addrs = append(addrs, net.JoinHostPort(host, port))
	}
	return addrs, nil
}

// maskURL hides what may be secret in raw: the password, or all of it when it can't be told where the password is.
func maskURL(raw string) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return mask
	}
	if u, h, found := cutLast(rest, "@"); found {
		name, _, _ := strings.Cut(u, ":")
		rest = name + ":" + mask + "@" + h
	}
	if before, query, found := strings.Cut(rest, "?"); found && strings.Contains(query, "password") {
		rest = before + "?" + mask
	}
	return scheme + "://" + rest
}

// mask stands for a secret where settings are shown.
const mask = "*****"

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
