package gatewaytest

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

const clusterSlots = 16384

// clusterNodeTimeout is how long a node may be silent, in milliseconds, before the others call it failing.
const clusterNodeTimeout = "2000"

// startCluster makes three masters know each other by hand: redis-cli --cluster create takes several seconds more.
func startCluster(o owner, program string, args []string) (*Redis, error) {
	const masters = 3
	r := &Redis{Kind: Cluster, Mode: "cluster"}
	var addrs []string
	var buses []int
	for i := range masters {
		bus, err := freePort(o)
		if err != nil {
			return nil, err
		}
		// A new node waits for the node timeout before it serves, so that is short at first.
		node, err := startNode(o, program, "redis cluster", append([]string{
			"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(bus), "--cluster-node-timeout", "300",
		}, args...)...)
		if err != nil {
			return nil, err
		}
		r.Nodes, addrs, buses = append(r.Nodes, node), append(addrs, node.Addr), append(buses, bus)
		first, last := i*clusterSlots/masters, (i+1)*clusterSlots/masters-1
		// Different epochs from the start: else the nodes resolve the collision one by one.
		_, err1 := node.Do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
		_, err2 := node.Do("CLUSTER", "ADDSLOTSRANGE", first, last)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		// Each meets each, which is faster than waiting for the gossip.
		for j, other := range r.Nodes[:i] {
			host, port, err := net.SplitHostPort(other.Addr)
			if err != nil {
				return nil, err
			}
			if _, err := node.Do("CLUSTER", "MEET", host, port, buses[j]); err != nil {
				return nil, err
			}
		}
	}
	if err := r.WaitReady(startDeadline); err != nil {
		return nil, err
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
