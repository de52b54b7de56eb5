//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

// Alice watches six people who come and go at three gateways, of which two are killed again and again. She is told no version twice and
// none backwards, and in the end she knows who is there. (Many more kills, of less than processes: TestWatchersKnowTheTruthInTheEnd.)
func TestAWatcherOverGatewaysThatAreKilled(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	flags := []string{
		"--cluster.pulse-interval=300ms", "--cluster.lease=1s", "--cluster.quiet=1s", "--cluster.reap-after=500ms", "--cluster.grace=100ms",
		"--redis.timeout=500ms",
	}
	var gateways []*Gateway
	for _, name := range []string{"a", "b", "c"} {
		gateways = append(gateways, StartGateway(t, r, Options{Name: name, Flags: flags}))
	}
	var users []string
	for i := range 6 {
		users = append(users, "user"+strconv.Itoa(i))
	}
	alice := Connect(t, gateways[0].WS(), "alice")
	first, err := alice.Watch("watch", users...)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	dice := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	here := make(map[string]*Client)
	for round := range 5 {
		for range 12 {
			user := users[dice.IntN(len(users))]
			if c := here[user]; c != nil && c.Ended() == nil {
				c.Cut()
				delete(here, user)
			} else {
				here[user] = Connect(t, gateways[dice.IntN(len(gateways))].WS(), user)
			}
			<-time.After(time.Duration(dice.IntN(60)) * time.Millisecond)
		}
		if round < 4 {
			g := gateways[1+dice.IntN(2)]
			g.Kill()
			if err := g.Restart(); err != nil {
				t.Fatal(err)
			}
		}
	}
	truth := make(map[string]string)
	for _, user := range users {
		truth[user] = "offline"
		if c := here[user]; c != nil && c.Ended() == nil {
			truth[user] = "online"
		}
	}
	changes := 0
	if err := Poll(4*Deadline, func() error {
		changes = 0
		for _, user := range users {
			told := append([]UserState{first[user]}, alice.Told(user)...)
			changes += len(told) - 1
			if err := CheckTold(told); err != nil {
				return stop{fmt.Errorf("%s: %w", user, err)}
			}
			if last := told[len(told)-1]; last.State != truth[user] {
				return fmt.Errorf("alice knows %s as %+v, who is %s", user, last, truth[user])
			}
		}
		return nil
	}); err != nil {
		t.Errorf("%v\n%s", err, alice.Story(12))
	}
	t.Logf("alice was told %d changes", changes)
	if changes < 6 {
		t.Errorf("alice was told %d changes only", changes)
	}
}
