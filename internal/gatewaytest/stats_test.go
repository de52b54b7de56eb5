//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// clusterStats is what /stats?scope=cluster answers, as an operator's script would read it.
type clusterStats struct {
	Complete          bool     `json:"complete"`
	Error             string   `json:"error"`
	ActiveConnections int      `json:"active_connections"`
	Dead              []string `json:"dead"`
	Gateways          []struct {
		Name   string `json:"name"`
		Active int    `json:"active_connections"`
		Uptime int    `json:"uptime_seconds"`
	} `json:"gateways"`
}

func readClusterStats(g *Gateway) (s clusterStats, err error) {
	began := time.Now()
	status, body, err := g.Get("/stats?scope=cluster")
	if err == nil && status != 200 {
		err = fmt.Errorf("status %d: %s", status, body)
	}
	if took := time.Since(began); err == nil && took > 1500*time.Millisecond {
		err = fmt.Errorf("it took %v", took)
	}
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s, err
}

func wantClusterStats(t *testing.T, g *Gateway, within time.Duration, what string, holds func(clusterStats) bool) {
	t.Helper()
	err := Poll(within, func() error {
		s, err := readClusterStats(g)
		if err == nil && !holds(s) {
			err = fmt.Errorf("want %s, got %+v", what, s)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The figures of the whole cluster come from snapshots: a dead gateway is named, then forgotten, and delays nobody.
func TestClusterStatsDoNotWaitForADeadGateway(t *testing.T) {
	t.Parallel()
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // most of it is waiting for the reaper
			r := Shared(t, kind)
			a := StartGateway(t, r, Options{Name: "a"})
			b := StartGateway(t, r, Options{Name: "b"})
			c := StartGateway(t, r, Options{Name: "c"})
			for i, g := range []*Gateway{a, b, b, c, c, c} {
				Connect(t, g.WS(), "user"+itoa(i))
			}
			wantClusterStats(t, a, Deadline, "6 connections on 3 gateways", func(s clusterStats) bool {
				return s.Complete && s.ActiveConnections == 6 && len(s.Gateways) == 3 && len(s.Dead) == 0
			})

			c.Kill()
			wantClusterStats(t, a, 2*Deadline, "3 connections, and one dead gateway", func(s clusterStats) bool {
				return !s.Complete && s.ActiveConnections == 3 && len(s.Dead) == 1
			})
			wantClusterStats(t, b, 6*Deadline, "two gateways, after the third was reaped", func(s clusterStats) bool {
				return s.Complete && s.ActiveConnections == 3 && len(s.Gateways) == 2 && len(s.Dead) == 0
			})
		})
	}
}

// Without Redis a gateway still tells what it knows, in time, and that it is not all.
func TestClusterStatsSayWhatIsMissingWithoutRedis(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	a := StartGateway(t, r, Options{Name: "a"})
	Connect(t, a.WS(), "alice")
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	wantClusterStats(t, a, Deadline, "its own connection and an error", func(s clusterStats) bool {
		return !s.Complete && s.Error != "" && s.ActiveConnections == 1
	})
	if stats, err := a.Stats(); err != nil || fmt.Sprint(stats["active_connections"]) != "1" {
		t.Errorf("/stats: %v, %v", stats, err)
	}
}
