//go:build !race

package router

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// An ack that waits for replicas says that they have the message too.

// waits has acks wait for so many replicas. Where an ack is expected the message is repeated until it comes: replicas confirm late on a busy
// machine, and just after they joined.
func waits(replicas int) func(*settings) {
	return func(s *settings) { s.router.WaitReplicas = replicas }
}

// doubtedWithin bounds the answer to a message that too few replicas confirm. It waits 150 ms; the rest is for a busy machine.
const doubtedWithin = 3 * time.Second

// wantDoubted checks that a message was answered unknown for its replicas' sake, and soon.
func (s *sent) wantDoubted() {
	s.t.Helper()
	if err := s.wantCode(protocol.CodeUnknown); err.Message != doubtText || s.took > doubtedWithin {
		s.t.Errorf("message %s: %s after %v", s.ID, s.result.text(), s.took)
	}
}

// All replicas stand still. Nothing is acknowledged, also nothing that was stored before and is repeated, through another gateway or over
// another connection; when they go on, the repeat gets the offset at which the message was stored.
func TestNothingIsAcknowledgedThatReplicasDoNotHave(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartSentinel(t)
	net := newCluster(t, r)
	a, b := net.gateway("a", prompt, waits(1)), net.gateway("b", prompt, waits(1))
	bob := b.connect("bob")
	before := a.sendUntilTaken("alice", "bob", "m1", `1`).result
	for _, n := range r.Nodes[1:] {
		n.Pause()
	}
	a.send("alice", "bob", "m2", `2`).wantDoubted()
	a.send("alice", "bob", "m2", `2`).wantDoubted()
	b.send("alice", "bob", "m2", `2`).wantDoubted()
	net.cut()
	eventually(t, "the repeat comes over another connection", func() bool {
		return a.send("alice", "bob", "m2", `2`).wantNoAck() == doubtText
	})
	a.send("alice", "bob", "m2", `another`).wantCode(protocol.CodeConflict)
	if s := a.router.Stats(); s.Unconfirmed < 3 || s.Conflicts != 1 || s.Routed+s.Stored != 1 {
		t.Errorf("%d unconfirmed, %d conflicts, %d acknowledged", s.Unconfirmed, s.Conflicts, s.Routed+s.Stored)
	}
	// From Redis 7.2 on WAIT is about the connection's last write, and a repeat writes nothing by itself.
	if waits, writes := a.lane.count("wait"), a.lane.count("hincrby"); waits == 0 || writes != waits {
		t.Errorf("%d waits behind %d writes of their own", waits, writes)
	}
	for _, n := range r.Nodes[1:] {
		n.Resume()
	}
	after := a.sendUntilTaken("alice", "bob", "m2", `2`).result
	if after.Offset != 2 || after.Epoch != before.Epoch || after.Status != protocol.StatusRouted {
		t.Errorf("the repeat got %s, want what was answered first", after.text())
	}
	a.sendUntilTaken("alice", "bob", "m1", `1`).wantAnswer(before)
	net.wantStream("bob", "m1", "m2")
	bob.wantMessages(b, "m1@1", "m2@2")
}

// wantNoAck returns what a message was refused for.
func (s *sent) wantNoAck() string {
	s.t.Helper()
	if s.answer().Err == nil {
		s.t.Fatalf("message %s: %s, want no ack", s.ID, s.result.text())
	}
	return s.result.Err.Message
}

// cut ends all clients' connections to the masters; replicas keep theirs.
func (c *cluster) cut() {
	c.t.Helper()
	masters, err := c.redis.Masters()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range masters {
		if _, err := n.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"); err != nil {
			c.t.Fatal(err)
		}
	}
}

// One of two replicas stands still: enough for a gateway that waits for one, too few for one that waits for both. An acknowledged
// message is where the setting says.
func TestAnAckCountsReplicas(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartSentinel(t)
	net := newCluster(t, r)
	one, both := net.gateway("one", prompt, waits(1)), net.gateway("both", prompt, waits(2))
	both.sendUntilTaken("alice", "bob", "m1", `1`).wantStored(1)
	for _, n := range r.Nodes[1:] {
		if got := n.Client().XLen(context.Background(), keyspace.Stream("u:bob")).Val(); got != 1 {
			t.Errorf("%s has %d messages at the time of the ack", n.Addr, got)
		}
	}
	r.Nodes[1].Pause()
	both.send("alice", "bob", "m2", `2`).wantDoubted()
	one.sendUntilTaken("alice", "bob", "m3", `3`).wantStored(3)
	one.sendUntilTaken("alice", "bob", "m2", `2`).wantStored(2)
	if got := r.Nodes[2].Client().XLen(context.Background(), keyspace.Stream("u:bob")).Val(); got != 3 {
		t.Errorf("the replica that goes on has %d messages at the time of the ack", got)
	}
}

// Where there are no replicas nothing is acknowledged: a setting that can't be met must not pass for one that is. The messages are
// stored and delivered all the same.
func TestWaitingForReplicasThatDoNotExist(t *testing.T) {
	for _, kind := range []gatewaytest.Kind{gatewaytest.Standalone, gatewaytest.Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			net := newCluster(t, gatewaytest.Shared(t, kind))
			a, b := net.gateway("a", prompt, waits(1)), net.gateway("b", prompt)
			bob := b.connect("bob")
			a.send("alice", "bob", "m1", `1`).wantDoubted()
			a.send("alice", "bob", "m1", `1`).wantDoubted()
			b.send("alice", "bob", "m1", `1`).wantRouted(1, 1)
			bob.wantMessages(b, "m1@1")
		})
	}
}

// On Cluster it is about the replicas of the master that has the slot: bob's has one, and he is written to; carol's has none.
func TestWaitIsForTheReplicasOfTheSlotsMaster(t *testing.T) {
	t.Parallel()
	net := newCluster(t, gatewaytest.StartCluster(t))
	home := net.master("bob")
	net.addReplica(home)
	carol := protocol.UserID("carol")
	for n := 0; net.master(carol) == home; n++ {
		carol = protocol.UserID("carol" + strconv.Itoa(n))
	}
	a := net.gateway("a", prompt, waits(1))
	a.sendUntilTaken("alice", "bob", "m1", `1`).wantStored(1)
	a.send("alice", carol, "m2", `2`).wantDoubted()
}

// master is the server of a Cluster that has a user's log.
func (c *cluster) master(user protocol.UserID) *gatewaytest.RedisNode {
	c.t.Helper()
	for _, n := range c.redis.Nodes {
		if _, err := n.Do("HLEN", keyspace.Log(protocol.UserAddress(user))); err == nil {
			return n
		}
	}
	c.t.Fatalf("no master has the log of %s", user)
	return nil
}

// addReplica starts a replica of a master of the Cluster, and waits until it has all of its data.
func (c *cluster) addReplica(master *gatewaytest.RedisNode) {
	c.t.Helper()
	port, bus := strconv.Itoa(gatewaytest.FreePort(c.t)), strconv.Itoa(gatewaytest.FreePort(c.t))
	gatewaytest.Start(c.t, gatewaytest.Command{Name: "redis replica", Path: gatewaytest.Need(c.t, "cluster"), Args: []string{
		"--port", port, "--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes", "--cluster-port", bus,
	}})
	replica := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + port})
	c.t.Cleanup(func() { replica.Close() })
	ctx := context.Background()
	// Else the master waits 5 s for more replicas to come.
	if err := master.Client().ConfigSet(ctx, "repl-diskless-sync-delay", "0").Err(); err != nil {
		c.t.Fatal(err)
	}
	id, err := master.Client().Do(ctx, "CLUSTER", "MYID").Text()
	if err != nil {
		c.t.Fatal(err)
	}
	host, masterPort, _ := strings.Cut(master.Addr, ":")
	info := master.Client().ConfigGet(ctx, "cluster-port").Val()
	eventually(c.t, "the replica meets the master", func() bool {
		return replica.Do(ctx, "CLUSTER", "MEET", host, masterPort, info["cluster-port"]).Err() == nil
	})
	eventually(c.t, "the replica follows the master", func() bool { return replica.ClusterReplicate(ctx, id).Err() == nil })
	eventually(c.t, "the replica is online", func() bool {
		return strings.Contains(master.Client().Info(ctx, "replication").Val(), "state=online")
	})
}

// An operator moves bob's slot. The call and its wait follow it, and Redis answers them again within the lane's own repeats.
func TestWaitFollowsASlotThatMoves(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartCluster(t)
	net := newCluster(t, r)
	a := net.gateway("a", prompt, waits(1))
	a.send("alice", "bob", "m1", `1`).wantDoubted()
	if err := r.MoveSlot(keyspace.Log(protocol.UserAddress("bob"))); err != nil {
		t.Fatal(err)
	}
	if got := a.send("alice", "bob", "m2", `2`).wantCode(protocol.CodeUnknown); got.Message != doubtText {
		t.Errorf("the first message after the move: %s", got.Message)
	}
	a.send("alice", "bob", "m3", `3`).wantDoubted()
	net.wantStream("bob", "m1", "m2", "m3")
}

// Scripts are forgotten. The wait covers the script that is sent in whole.
func TestWaitCoversAScriptThatIsLoadedAgain(t *testing.T) {
	t.Parallel()
	r := gatewaytest.StartSentinel(t)
	net := newCluster(t, r)
	a := net.gateway("a", prompt, waits(2))
	a.sendUntilTaken("alice", "bob", "m1", `1`).wantStored(1)
	flush := func() {
		t.Helper()
		if _, err := r.Nodes[0].Do("SCRIPT", "FLUSH"); err != nil {
			t.Fatal(err)
		}
	}
	flush()
	a.sendUntilTaken("alice", "bob", "m2", `2`).wantStored(2)
	r.Nodes[1].Pause()
	flush()
	a.send("alice", "bob", "m3", `3`).wantDoubted()
	net.wantStream("bob", "m1", "m2", "m3")
}

// A gateway that doesn't wait asks for nothing: no WAIT, and no write but the script's.
func TestNotWaitingCostsNothing(t *testing.T) {
	t.Parallel()
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	a := net.gateway("a", prompt)
	for range 3 {
		a.send("alice", "bob", newID("m"), `1`).want(protocol.StatusStored)
	}
	if n := a.lane.count("evalsha"); n != 3 {
		t.Errorf("%d calls for 3 messages", n)
	}
	for _, name := range []string{"wait", "hincrby"} {
		if n := a.lane.count(name); n != 0 {
			t.Errorf("%s was called %d times", name, n)
		}
	}
}
