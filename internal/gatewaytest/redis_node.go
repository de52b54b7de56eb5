package gatewaytest

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// RedisNode is one redis-server process, restartable on its port and directory.
type RedisNode struct {
	// Immutable after start.
	Addr    string
	owner   owner
	command Command
	client  *redis.Client

	// Owned by the test.
	*Process
}

// startNode starts a redis-server that keeps nothing on disk, unless the args say otherwise, and waits for its answer.
func startNode(o owner, program, name string, args ...string) (*RedisNode, error) {
	port, err := freePort(o)
	if err != nil {
		return nil, err
	}
	dir := o.TempDir()
	n := &RedisNode{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), owner: o}
	n.command = Command{
		Name: name + " " + n.Addr, Path: program, Dir: dir,
		Args: append([]string{
			"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no",
			"--maxmemory-policy", "noeviction", "--enable-debug-command", "local",
		}, args...),
	}
	n.client = redis.NewClient(&redis.Options{
		Addr: n.Addr, DialTimeout: callDeadline, ReadTimeout: callDeadline, WriteTimeout: callDeadline,
		ContextTimeoutEnabled: true, MaxRetries: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	o.Cleanup(func() { n.client.Close() })
	return n, n.Restart()
}

// Restart starts the server again on its port and directory, after Kill, and waits for its answer. Where somebody else has
// the port, who knows nothing of the tests, it is tried again.
func (n *RedisNode) Restart() error {
	if n.Process != nil && n.Running() {
		n.Kill()
	}
	return Poll(startDeadline, func() error {
		if n.Process == nil || !n.Running() {
			p, err := start(n.owner, n.command)
			if err != nil {
				return stop{err}
			}
			n.Process = p
		}
		err := n.ping()
		switch {
		case n.Running():
			return err
		case strings.Contains(n.Log(), "Address already in use"):
			return fmt.Errorf("%s: the port is taken", n.Name)
		default:
			return stop{fmt.Errorf("%s ended: %s", n.Name, n.LogTail(20))}
		}
	})
}

// Client talks to this one server.
func (n *RedisNode) Client() *redis.Client { return n.client }

// Do runs one command on this one server.
func (n *RedisNode) Do(args ...any) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	return n.client.Do(ctx, args...).Result()
}

// ping says whether the server serves: while it still loads its data it answers PING with an error.
func (n *RedisNode) ping() error {
	_, err := n.Do("PING")
	return err
}

// info returns one section of INFO as a map.
func (n *RedisNode) info(section string) (map[string]string, error) {
	text, err := n.Do("INFO", section)
	if err != nil {
		return nil, err
	}
	return infoFields(text.(string)), nil
}

func infoFields(text string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[key] = value
		}
	}
	return fields
}
