package gatewaytest

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const clusterSlots = 16384

// clusterNodeTimeout is how long a node may be silent, in milliseconds, before the others call it failing.
const clusterNodeTimeout = "2000"

// startCluster makes three masters know each other by hand: redis-cli --cluster create takes several seconds more. With
// replicas each has one.
func startCluster(o owner, program string, replicas bool, args []string) (*Redis, error) {
	const masters = 3
	r := &Redis{Kind: Cluster, Mode: "cluster"}
	var addrs []string
	var buses []int
	for i := range masters {
		node, err := r.joinCluster(o, program, &buses, args)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, node.Addr)
		first, last := i*clusterSlots/masters, (i+1)*clusterSlots/masters-1
		if _, err := node.Do("CLUSTER", "ADDSLOTSRANGE", first, last); err != nil {
			return nil, err
		}
	}
	if err := r.WaitReady(startDeadline); err != nil {
		return nil, err
	}
	if replicas {
		if err := r.addReplicas(o, program, &buses, args); err != nil {
			return nil, err
		}
	}
	for _, n := range r.Nodes {
		if _, err := n.Do("CONFIG", "SET", "cluster-node-timeout", clusterNodeTimeout); err != nil {
			return nil, err
		}
		n.command.Args = append(n.command.Args, "--cluster-node-timeout", clusterNodeTimeout) // for Restart
	}
	r.URL = "redis://" + strings.Join(addrs, ",")
	r.connect(o, &redis.UniversalOptions{Addrs: addrs, IsClusterMode: true})
	return r, nil
}

// joinCluster starts one more node and lets it meet the others.
func (r *Redis) joinCluster(o owner, program string, buses *[]int, args []string) (*RedisNode, error) {
	bus, err := freePort(o)
	if err != nil {
		return nil, err
	}
	// A new node waits for the node timeout before it serves, so that is short at first.
	node, err := startNode(o, program, "redis cluster", append([]string{
		"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", "300",
		"--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0", "--cluster-allow-replica-migration", "no",
	}, args...)...)
	if err != nil {
		return nil, err
	}
	// Different epochs from the start: else the nodes resolve the collision one by one.
	if _, err := node.Do("CLUSTER", "SET-CONFIG-EPOCH", len(r.Nodes)+1); err != nil {
		return nil, err
	}
	// Each meets each, which is faster than waiting for the gossip.
	for j, other := range r.Nodes {
		host, port, err := net.SplitHostPort(other.Addr)
		if err != nil {
			return nil, err
		}
		if _, err := node.Do("CLUSTER", "MEET", host, port, (*buses)[j]); err != nil {
			return nil, err
		}
	}
	r.Nodes, *buses = append(r.Nodes, node), append(*buses, bus)
	return node, nil
}

// addReplicas gives each master a replica; they follow the masters in Nodes in the same order.
func (r *Redis) addReplicas(o owner, program string, buses *[]int, args []string) error {
	masters := slices.Clone(r.Nodes)
	for range masters {
		if _, err := r.joinCluster(o, program, buses, args); err != nil {
			return err
		}
	}
	if err := r.WaitReady(startDeadline); err != nil {
		return err
	}
	for i, master := range masters {
		id, err := master.Do("CLUSTER", "MYID")
		if err != nil {
			return err
		}
		replica := r.Nodes[len(masters)+i]
		if _, err := replica.Do("CLUSTER", "REPLICATE", id); err != nil {
			return err
		}
		err = Poll(startDeadline, func() error {
			info, err := replica.info("replication")
			if err == nil && info["master_link_status"] != "up" {
				err = fmt.Errorf("%s has no link to its master", replica.Addr)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// WaitPromoted returns when a replica has taken the place of its master, and every running node knows.
func (r *Redis) WaitPromoted(replica *RedisNode, within time.Duration) error {
	return Poll(within, func() error {
		info, err := replica.info("replication")
		if err != nil {
			return err
		}
		if info["role"] != "master" {
			return fmt.Errorf("%s is still a %s", replica.Addr, info["role"])
		}
		for _, n := range r.Nodes {
			if !n.Running() {
				continue
			}
			text, err := n.Do("CLUSTER", "INFO")
			if err != nil {
				return err
			}
			if state := infoFields(text.(string))["cluster_state"]; state != "ok" {
				return fmt.Errorf("%s: cluster_state %s", n.Addr, state)
			}
		}
		return nil
	})
}

// MoveSlot moves the slot of a key from its master to another one, as redis-cli --cluster reshard does.
func (r *Redis) MoveSlot(key string) error {
	slot, err := r.Nodes[0].Do("CLUSTER", "KEYSLOT", key)
	if err != nil {
		return err
	}
	masters, err := r.Masters()
	if err != nil {
		return err
	}
	var from, to *RedisNode
	for _, n := range masters {
		if _, err := n.Do("EXISTS", key); err == nil {
			from = n
		} else {
			to = n
		}
	}
	fromID, err1 := from.Do("CLUSTER", "MYID")
	toID, err2 := to.Do("CLUSTER", "MYID")
	_, err3 := to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
	_, err4 := from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	host, port, err5 := net.SplitHostPort(to.Addr)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	for {
		answer, err := from.Do("CLUSTER", "GETKEYSINSLOT", slot, 10)
		if err != nil {
			return err
		}
		keys, _ := answer.([]any)
		if len(keys) == 0 {
			break
		}
		for _, k := range keys {
			if _, err := from.Do("MIGRATE", host, port, k, 0, 2000); err != nil && !strings.Contains(err.Error(), "BUSYKEY") {
				return fmt.Errorf("migrate %v: %w", k, err)
			}
		}
	}
	for _, n := range slices.Concat([]*RedisNode{to, from}, masters) {
		if _, err := n.Do("CLUSTER", "SETSLOT", slot, "NODE", toID); err != nil {
			return err
		}
	}
	return nil
}

// clusterReady says whether every node sees every slot served.
func (r *Redis) clusterReady() error {
	for _, n := range r.Nodes {
		text, err := n.Do("CLUSTER", "INFO")
		if err != nil {
			return err
		}
		info := infoFields(text.(string))
		if info["cluster_state"] != "ok" || info["cluster_known_nodes"] != strconv.Itoa(len(r.Nodes)) {
			return fmt.Errorf("%s: cluster_state %s, cluster_known_nodes %s", n.Addr, info["cluster_state"], info["cluster_known_nodes"])
		}
	}
	return nil
}
