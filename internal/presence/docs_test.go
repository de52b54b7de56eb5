//go:build !secondpass

package presence

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// redisModel is docs/redis-model.md, whose figures and names are checked here.
func redisModel(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/redis-model.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func scriptFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../*/lua/*.lua")
	if err != nil || len(files) < 12 {
		t.Fatalf("found only %v, %v", files, err)
	}
	return files
}

// Every key and every script has its place in the document.
func TestTheDocumentNamesEveryKeyAndScript(t *testing.T) {
	model := redisModel(t)
	const u, gw = "NAME", "GATEWAY"
	g := keyspace.Group("G")
	for _, key := range []string{
		keyspace.Conns(u), keyspace.Holders(protocol.UserAddress(u)), keyspace.State(u), keyspace.Log(protocol.UserAddress(u)),
		keyspace.Stream(protocol.UserAddress(u)), keyspace.Cursors(protocol.UserAddress(u), u), keyspace.Holders(protocol.WatchAddress(u)),
		keyspace.Members(protocol.RoomAddress("ROOM")), keyspace.MemberCounts(protocol.RoomAddress("ROOM")), keyspace.Memberships(g),
		keyspace.Leases(g), keyspace.Line(g), keyspace.Numbers(g), keyspace.Own(g, gw), keyspace.Offlines(g),
		keyspace.Tombstones(g), keyspace.Snapshots(g), keyspace.Events(g), keyspace.Sinks(g), keyspace.Channel(g, gw),
		keyspace.Revocations(g), keyspace.RevocationOrder(g),
	} {
		_, name, _ := strings.Cut(key, "}:")
		name = strings.NewReplacer("NAME", "<user>", "GATEWAY", "<gateway>", "ROOM", "<room>").Replace(name)
		if !strings.Contains(model, ":"+name+"`") {
			t.Errorf("the document doesn't name `…:%s`", name)
		}
	}
	for _, file := range scriptFiles(t) {
		if name := filepath.Base(file); !strings.Contains(file, "keyspace") && !strings.Contains(model, "`"+name+"`") {
			t.Errorf("the document doesn't name %s", name)
		}
	}
}

// What a user who is connected and silent costs in Redis is what the document says, to a tenth.
func TestTheDocumentTellsWhatAnIdleUserCosts(t *testing.T) {
	model := redisModel(t)
	for column, args := range map[int][]string{1: nil, 2: {"--hash-max-listpack-value", "256"}} {
		r := gatewaytest.StartRedis(t, args...)
		if v := infoNumber(t, r, "server", "redis_version"); v != 7.0 {
			t.Skipf("the figures are those of Redis 7.0, this is %v", v)
		}
		f := newFleet(t, r)
		a := f.prepare("gateway-eu-abcdefgh")
		ctx, g := context.Background(), a.registry.groups[0]
		if err := a.registry.Join(ctx); err != nil {
			t.Fatal(err)
		}
		before := infoNumber(t, r, "memory", "used_memory")
		const n = 10_000
		for i := 0; i < n; i += 100 {
			var many []*registration
			for j := i; j < i+100; j++ {
				many = append(many, &registration{done: make(chan struct{}), entry: &Entry{
					Conn: protocol.ConnID(fmt.Sprintf("0192f0c1-7f3e-7a2b-9c4d-%012d", j)), User: protocol.UserID(fmt.Sprintf("user-%08d", j)), Since: 1795310105531,
				}})
			}
			a.registry.runRegisters(g, many)
		}
		used := (infoNumber(t, r, "memory", "used_memory") - before) / n
		usage := func(key string) float64 {
			b, err := f.client.MemoryUsage(ctx, key, 0).Result()
			if err != nil {
				t.Fatal(key, err)
			}
			return float64(b)
		}
		const u = protocol.UserID("user-00000017")
		for row, got := range map[string]float64{
			"conns":                 usage(keyspace.Conns(u)),
			"holders":               usage(keyspace.Holders(protocol.UserAddress(u))),
			"log, without messages": usage(keyspace.Log(protocol.UserAddress(u))),
			"state":                 usage(keyspace.State(u)),
			"one entry of own":      usage(keyspace.Own(g.name, a.id)) / n,
			"in all":                used,
		} {
			m := regexp.MustCompile(`(?m)^\| ` + row + ` \| ([\d,]+) \| ([\d,]+) \|`).FindStringSubmatch(model)
			if m == nil {
				t.Fatalf("no row %q; it is %.0f bytes", row, got)
			}
			t.Logf("%s: %.0f bytes with %v", row, got, args)
			want, err := strconv.ParseFloat(strings.ReplaceAll(m[column], ",", ""), 64)
			if err != nil || got < want*0.9 || got > want*1.1 {
				t.Errorf("%s: %.0f bytes with %v, the document says %s", row, got, args, m[column])
			}
		}
		f.gateways = nil // nobody holds these sockets
	}
}

// What a member of a large room costs is what the document says, to a tenth.
func TestTheDocumentTellsWhatAMemberCosts(t *testing.T) {
	f := newFleet(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	a := f.prepare("gateway-eu-abcdefgh")
	const n = 30_000
	for i := 0; i < n; i += 500 {
		var many []*holding
		for j := i; j < i+500; j++ {
			many = append(many, &holding{address: "r:hall", user: protocol.UserID(fmt.Sprintf("user-%08d", j))})
			a.registry.groups[0].holds.add("r:hall", many[len(many)-1].user)
		}
		a.registry.runHoldings(a.registry.groups[0], many)
	}
	bytes := 0.0
	for _, key := range []string{keyspace.Members("r:hall"), keyspace.MemberCounts("r:hall")} {
		used, err := f.client.MemoryUsage(context.Background(), key, 0).Result()
		if err != nil {
			t.Fatal(err)
		}
		bytes += float64(used) / n
	}
	m := regexp.MustCompile(`A member costs (\d+) bytes`).FindStringSubmatch(redisModel(t))
	if m == nil {
		t.Fatalf("it is %.0f bytes", bytes)
	}
	if want, _ := strconv.ParseFloat(m[1], 64); bytes < want*0.9 || bytes > want*1.1 {
		t.Errorf("a member costs %.0f bytes, the document says %s", bytes, m[1])
	}
	f.gateways = nil // nobody holds these sockets
}

func infoNumber(t *testing.T, r *gatewaytest.Redis, section, field string) float64 {
	t.Helper()
	text, err := r.Client().Info(context.Background(), section).Result()
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(field + `:(\d+(\.\d+)?)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in INFO %s", field, section)
	}
	n, _ := strconv.ParseFloat(m[1], 64)
	return n
}
