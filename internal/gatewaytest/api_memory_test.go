//go:build !race

package gatewaytest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

// mostMemory is the most that a process had in memory so far, in MB.
func (p *Process) mostMemory(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	f := strings.Fields(rest)
	if len(f) < 2 || f[1] != "kB" {
		t.Fatalf("%q", rest)
	}
	n, err := strconv.Atoi(f[0])
	if err != nil {
		t.Fatal(err)
	}
	return n >> 10
}

// Sixteen calls at a time, each for a thousand users, each with 60 KB: what is still to be sent is kept once for each call, and not once for each user.
func TestCallsForManyDoNotFillTheMemory(t *testing.T) {
	r := Shared(t, Standalone)
	a := StartGateway(t, r, Options{Name: "a", Flags: []string{"--history.messages=1"}})
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprint("user", i)
	}
	list, err := json.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			call := fmt.Sprintf(`{"to":%s,"content":%q,"id":"m%d"}`, list, strings.Repeat("x", 60_000), i)
			// Some may not have come to an end in time.
			if x, err := a.callOnce("POST", "/messages", call); err != nil || x.field("results.999") == nil {
				t.Errorf("%d, %v", x.Status, err)
			}
		})
	}
	all.Wait()
	if n := a.mostMemory(t); n > 400 {
		t.Errorf("it took %d MB", n)
	}
}

// Commands that are far too large are refused, and cost neither the gateway their size nor the others their turn.
func TestHugeCommandsAreRefusedUnread(t *testing.T) {
	r := StartRedis(t)
	for i := range 4 {
		if err := r.client.XAdd(context.Background(), &redis.XAddArgs{Stream: commandStream, Values: []string{
			"op", "sendMessage", "reply", "r", "body", strings.Repeat("x", 16<<20), fmt.Sprint("f", i), strings.Repeat("y", 16<<20),
		}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	huge := r.command(t, "op", "sendMessage", "reply", "r", "body", `{"to":["alice"],"content":"`+strings.Repeat("x", 8<<20)+`"}`)
	twice := r.command(t, "op", "sendMessage", "reply", "r", "body", `{"to":["alice"],"content":1}`, "body", `{"to":["alice"],"content":2}`)
	good := r.command(t, "op", "sendMessage", "reply", "r", "body", `{"to":["alice"],"content":1}`)
	a := StartGateway(t, r, Options{Name: "a", Flags: takesCommands})
	wantNoCommands(t, r, a)
	replies, err := r.commandReplies("r")
	if err != nil || len(replies) != 7 || len(replies[huge]) != 1 || replies[huge][0].Status != 413 || replies[good][0].Status != 200 || replies[twice][0].Status != 400 {
		t.Errorf("%+v, %v", replies, err)
	}
	if n := a.mostMemory(t); n > 60 {
		t.Errorf("it took %d MB", n)
	}
}
