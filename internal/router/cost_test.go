//go:build !secondpass

package router

import (
	"context"
	"os"
	"regexp"
	"strconv"
	"testing"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// What a stored message leaves in Redis besides itself: the record by which its repeat is known. docs/delivery.md says what it costs while
// Redis keeps the log's hash compact, and when it doesn't any more.
func TestADedupeRecordCostsWhatTheDocumentSays(t *testing.T) {
	document, err := os.ReadFile("../../docs/delivery.md")
	if err != nil {
		t.Fatal(err)
	}
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	a := net.gateway("a")
	usage := func() int64 {
		n, err := net.redis.Client().MemoryUsage(context.Background(), keyspace.Log(protocol.UserAddress("bob")), 0).Result()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a.fill("first", 1)
	before, sent := usage(), 1
	for _, tc := range []struct {
		records int
		row     string
	}{{127, "in a log with at most 127 of them"}, {10_000, "in a busier log"}} {
		a.fill(strconv.Itoa(tc.records)+".", tc.records-sent)
		sent = tc.records
		got := float64(usage()-before) / float64(sent-1)
		t.Logf("%d records: %.0f bytes for each", sent, got)
		m := regexp.MustCompile(`(?m)^\| its dedupe record, ` + tc.row + ` \| (\d+) \|`).FindSubmatch(document)
		if m == nil {
			t.Fatalf("no row %q; it is %.0f bytes", tc.row, got)
		}
		if want, err := strconv.ParseFloat(string(m[1]), 64); err != nil || got < want*0.9 || got > want*1.1 {
			t.Errorf("%.0f bytes %s, the document says %s", got, tc.row, m[1])
		}
	}
}
