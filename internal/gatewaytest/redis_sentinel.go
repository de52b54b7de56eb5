package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// downAfter is how long a server may be silent, while it may fail over, before a sentinel calls it down; patient, at other times, is long
// enough for any test: on a busy machine a server is silent for a while now and then, and a test that means no failover should see none.
const (
	downAfter = 1500 * time.Millisecond
	patient   = 10 * time.Minute
)

// startSentinel starts a master, two replicas, and three sentinels.
func startSentinel(o owner, program string, args []string) (*Redis, error) {
	r := &Redis{Kind: Sentinel, Mode: "sentinel"}
	// Replicas that wait for their turn to be sent the data, and masters that wait for more replicas, only cost time here.
	args = append([]string{"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}, args...)
	for i := range 3 {
		own := args
		if i > 0 {
			host, port, err := net.SplitHostPort(r.Nodes[0].Addr)
			if err != nil {
				return nil, err
			}
			own = append([]string{"--replicaof", host + " " + port}, args...)
		}
		node, err := startNode(o, program, "redis", own...)
		if err != nil {
			return nil, err
		}
		r.Nodes = append(r.Nodes, node)
	}
	// A sentinel asks a master for its replicas when it first meets it, and then rarely: they should be there by then.
	if err := Poll(startDeadline, func() error { return r.replicasOnline(2) }); err != nil {
		return nil, err
	}
	var addrs []string
	for range 3 {
		sentinel, err := startOneSentinel(o, program, r.Nodes[0].Addr)
		if err != nil {
			return nil, err
		}
		r.Sentinels = append(r.Sentinels, sentinel)
		addrs = append(addrs, sentinel.Addr)
	}
	r.URL = "redis://" + strings.Join(addrs, ",") + "/0?master=" + masterName
	r.connect(o, &redis.UniversalOptions{Addrs: addrs, MasterName: masterName})
	if err := Poll(startDeadline, r.sentinelsComplete); err != nil {
		return nil, err
	}
	return r, r.WaitReady(startDeadline)
}

// startOneSentinel starts a sentinel. It rewrites its config file as it learns, so that a restarted one goes on.
func startOneSentinel(o owner, program, master string) (*RedisNode, error) {
	port, err := freePort(o)
	if err != nil {
		return nil, err
	}
	host, masterPort, err := net.SplitHostPort(master)
	if err != nil {
		return nil, err
	}
	dir := o.TempDir()
	config := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf(`port %d
bind 127.0.0.1
dir %s
sentinel monitor %s %s %s 2
sentinel down-after-milliseconds %[3]s %[6]d
sentinel failover-timeout %[3]s 5000
sentinel parallel-syncs %[3]s 1
`, port, dir, masterName, host, masterPort, patient.Milliseconds())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	n := &RedisNode{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), owner: o}
	n.command = Command{Name: "sentinel " + n.Addr, Path: program, Dir: dir, Args: []string{config, "--sentinel"}}
	n.client = redis.NewClient(&redis.Options{
		Addr: n.Addr, DialTimeout: callDeadline, ReadTimeout: callDeadline, MaxRetries: -1, Protocol: 2,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	o.Cleanup(func() { n.client.Close() })
	if err := n.Restart(); err != nil {
		return nil, err
	}
	// Sentinels look every 10 s and speak every 2 s; in a test they may do so more often.
	_, err = n.Do("SENTINEL", "DEBUG", "info-period", 500, "publish-period", 200)
	return n, err
}

// replicasOnline says whether so many replicas of the first master have all of its data.
func (r *Redis) replicasOnline(want int) error {
	info, err := r.Nodes[0].info("replication")
	if err != nil {
		return err
	}
	online := 0
	for i := range want {
		if strings.Contains(info[fmt.Sprintf("slave%d", i)], "state=online") {
			online++
		}
	}
	if online < want {
		return fmt.Errorf("%d of %d replicas are online", online, want)
	}
	return nil
}

// replicasHave returns a check whether all replicas of a master have what it has now.
func replicasHave(master *RedisNode) (func() error, error) {
	info, err := master.info("replication")
	if err != nil {
		return nil, err
	}
	want, err := strconv.ParseInt(info["master_repl_offset"], 10, 64)
	if err != nil {
		return nil, err
	}
	return func() error {
		info, err := master.info("replication")
		if err != nil {
			return err
		}
		n := 0
		for key, replica := range info {
			m := replicaOffset.FindStringSubmatch(replica)
			if !strings.HasPrefix(key, "slave") || m == nil {
				continue
			}
			n++
			if has, err := strconv.ParseInt(m[1], 10, 64); err != nil || has < want {
				return fmt.Errorf("%s of %d: %s", key, want, replica)
			}
		}
		if n == 0 {
			return fmt.Errorf("%s has no replicas", master.Addr)
		}
		return nil
	}, nil
}

var replicaOffset = regexp.MustCompile(`\boffset=(\d+)`)

// sentinelsComplete says whether each sentinel knows both replicas and both other sentinels: only then can they agree.
func (r *Redis) sentinelsComplete() error {
	for _, n := range r.Sentinels {
		info, err := n.info("sentinel")
		if err != nil {
			return err
		}
		if got := info["master0"]; !strings.HasSuffix(got, ",slaves=2,sentinels=3") {
			return fmt.Errorf("sentinel %s knows %s", n.Addr, got)
		}
	}
	return nil
}

// masterBySentinels returns the master that most sentinels name.
func (r *Redis) masterBySentinels() (string, error) {
	votes := make(map[string]int)
	for _, n := range r.Sentinels {
		if !n.Running() {
			continue
		}
		answer, err := n.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", masterName)
		if err != nil {
			continue
		}
		if pair, ok := answer.([]any); ok && len(pair) == 2 {
			addr := net.JoinHostPort(fmt.Sprint(pair[0]), fmt.Sprint(pair[1]))
			if votes[addr]++; 2*votes[addr] > len(r.Sentinels) {
				return addr, nil
			}
		}
	}
	return "", fmt.Errorf("the sentinels agree on no master: %v", votes)
}

// LetFailOver has the sentinels call a server down that is silent for 1.5 s, until WaitFailover returns. Before and after they wait for
// longer than any test takes.
func (r *Redis) LetFailOver() error { return r.downAfter(downAfter) }

func (r *Redis) downAfter(d time.Duration) error {
	for _, n := range r.Sentinels {
		if _, err := n.Do("SENTINEL", "SET", masterName, "down-after-milliseconds", d.Milliseconds()); err != nil {
			return err
		}
	}
	return nil
}

// sentinelsHearAll says whether every server has answered every sentinel's ping within the last second.
func (r *Redis) sentinelsHearAll() error {
	for _, n := range r.Sentinels {
		master, err := n.client.Do(context.Background(), "SENTINEL", "MASTER", masterName).StringSlice()
		if err != nil {
			return err
		}
		replicas, err := n.client.Do(context.Background(), "SENTINEL", "REPLICAS", masterName).Slice()
		if err != nil {
			return err
		}
		servers := []string{fmt.Sprint(master)}
		for _, replica := range replicas {
			servers = append(servers, fmt.Sprint(replica))
		}
		for _, server := range servers {
			if m := lastReply.FindStringSubmatch(server); m == nil || len(m[1]) > 3 {
				return fmt.Errorf("sentinel %s has not heard of %s", n.Addr, server)
			}
		}
	}
	return nil
}

// lastReply finds the milliseconds since a server's last good answer: three digits are less than a second.
var lastReply = regexp.MustCompile(`\blast-ok-ping-reply (\d+)`)

// WaitFailover lets the sentinels fail over, and returns the new master once most of them name another than the one before and it takes
// writes.
func (r *Redis) WaitFailover(before string, within time.Duration) (string, error) {
	if err := r.LetFailOver(); err != nil {
		return "", err
	}
	var master string
	err := Poll(within, func() error {
		addr, err := r.masterBySentinels()
		if err != nil {
			return err
		}
		if addr == before {
			return fmt.Errorf("%s is still the master", before)
		}
		master = addr
		return nil
	})
	if err != nil {
		return "", err
	}
	return master, errors.Join(r.WaitReady(within), r.downAfter(patient))
}

// Name makes sentinels name any server as the master, by hand: they forget what they watched, and watch that server. No server
// is told anything, so a master that was there stays one, and keeps its clients. An empty addr: they only forget.
func (r *Redis) Name(addr string, sentinels ...*RedisNode) error {
	for _, n := range sentinels {
		// Unknown already: it was told to forget before.
		if _, err := n.Do("SENTINEL", "REMOVE", masterName); err != nil && !strings.Contains(err.Error(), "No such master") {
			return err
		}
	}
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	for _, n := range sentinels {
		if _, err := n.Do("SENTINEL", "MONITOR", masterName, host, port, 2); err != nil {
			return err
		}
	}
	return nil
}
