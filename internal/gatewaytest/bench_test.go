//go:build !race

package gatewaytest_test

import (
	"flag"
	"testing"
	"time"
)

// How much is measured. The defaults take about four minutes; docs/benchmarks.md says what the figures mean.
var (
	benchRounds      = flag.Int("rounds", 5, "rounds of each benchmark of messages and heartbeats; the figures are medians")
	benchRound       = flag.Duration("round", 2*time.Second, "length of what is measured in a round")
	benchPairs       = flag.Int("pairs", 50, "senders, each with a receiver of its own")
	benchConnections = flag.Int("connections", 15000, "connections of the idle benchmark")
	benchSettle      = flag.Duration("settle", 10*time.Second, "rest between connecting and reading the memory")
	benchProfiles    = flag.String("profiles", "", "directory for profiles of the gateways; taking them costs processor time")
)

const (
	// warmUp lets a load reach its pace before a round is measured.
	warmUp = 500 * time.Millisecond
	// heartbeaters are the connections of the benchmark of heartbeats. Each sends at most two a second, which are two refreshes: those
	// of a quarter of a second are collected.
	heartbeaters = 5000
	// slowConnects are made one after the other, for the cost of a connect that shares its script call with no other.
	slowConnects = 2000
	// connectors connect at a time in the idle benchmark.
	connectors = 64
)

// unlimited keeps the limits of a gateway out of what is measured.
var unlimited = []string{
	"--limits.connect-rate=0", "--limits.connect-rate-per-ip=0", "--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", "--limits.new-addresses=0", "--limits.connections-per-user=0",
	"--limits.frame-bytes=131072",
}

// BenchmarkCluster measures what a cluster of gateway processes and a Redis server cost: user and system time of these processes
// for each thing done, and memory for each connection. Whoever drives them is another process and doesn't count. Beside each
// stands a bare echo server, measured in turns with it: on a busy machine only the ratio of the two means something.
//
// Each benchmark is over after its rounds, whatever -benchtime says; -count repeats it. A message that is lost or arrives twice
// fails it.
func BenchmarkCluster(b *testing.B) {
	r := &report{all: make(map[string]*samples)}
	for _, w := range []messageWork{
		{"stored/inflight=16", startArgs{InFlight: 16}, nil},
		{"stored/inflight=1", startArgs{InFlight: 1}, nil},
		{"ephemeral/inflight=16", startArgs{InFlight: 16, Ephemeral: true}, nil},
		{"ephemeral/inflight=1", startArgs{InFlight: 1, Ephemeral: true}, nil},
		{"events=envelope/inflight=16", startArgs{InFlight: 16}, []string{"--events.write", "--events.messages=envelope"}},
		{"events=content/inflight=16", startArgs{InFlight: 16}, []string{"--events.write", "--events.messages=content"}},
	} {
		b.Run(w.name, func(b *testing.B) { benchMessages(startBed(b, r, 2, w.flags...), w) })
	}
	for _, w := range roomWorks {
		b.Run(w.name, func(b *testing.B) { benchRooms(startBed(b, r, 3), w) })
	}
	// At the default interval, 2,000 a second are what 60,000 connections send.
	for _, w := range []heartbeatWork{{"heartbeat/rate=2000", 2000}, {"heartbeat/rate=10000", 10000}} {
		b.Run(w.name, func(b *testing.B) { benchHeartbeats(startBed(b, r, 2), w) })
	}
	for _, w := range presenceWorks {
		b.Run(w.name, func(b *testing.B) { benchPresence(startBed(b, r, 2), w) })
	}
	for _, w := range callWorks {
		b.Run(w.name, func(b *testing.B) { benchCalls(startBed(b, r, 1), w) })
	}
	b.Run("connect/inflight=1", func(b *testing.B) { benchConnects(startBed(b, r, 1)) })
	b.Run("idle", func(b *testing.B) { benchIdle(startBed(b, r, 1)) })
	r.print()
}
