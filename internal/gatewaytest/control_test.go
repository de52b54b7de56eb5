//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A backend ends all of alice's connections, on whichever gateways, with a code and a reason of its own, and is told how many were told and how many are
// gone. Each client is told why, in words, and whether to come back.
func TestABackendDisconnectsAUser(t *testing.T) {
	t.Parallel()
	EachRedis(t, func(t *testing.T, r *Redis) {
		a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
		phone, desktop, bob := Connect(t, a.WS(), "alice"), Connect(t, b.WS(), "alice"), Connect(t, b.WS(), "bob")
		var got disconnected
		a.ordered(t, 200, "POST", "/users/alice/disconnect", `{"code":4901,"reason":"exam over: grüße"}`, &got)
		if got.User != "alice" || got.Marked != 2 || got.Gone != 2 || len(got.Connections) != 2 || len(got.Missing) != 0 {
			t.Errorf("got %+v", got)
		}
		for _, c := range []*Client{phone, desktop} {
			ended, err := c.WaitEnd(4 * Deadline)
			if err != nil || ended.Code != 4901 || ended.Text != "exam over: grüße" || ended.Closing == nil || ended.Closing.Reason != ended.Text || ended.Closing.Reconnect || ended.Closing.By == "" {
				t.Errorf("%v, %v", ended, err)
			}
		}
		a.ordered(t, 200, "POST", "/users/alice/disconnect", `{}`, &got)
		if got.Marked != 0 || got.Gone != 0 {
			t.Errorf("again: %+v", got)
		}
		if _, err := bob.Heartbeat(Deadline); err != nil {
			t.Error(err)
		}
		// One of two connections, by its id; and with a code to come back with.
		other := Connect(t, a.WS(), "bob")
		a.ordered(t, 200, "POST", "/connections/"+bob.ConnID()+"/disconnect", `{"code":4400}`, &got)
		if got.User != "bob" || got.Marked != 1 || got.Gone != 1 {
			t.Errorf("got %+v", got)
		}
		if ended, err := bob.WaitEnd(4 * Deadline); err != nil || ended.Code != 4400 || !ended.Closing.Reconnect {
			t.Errorf("%v, %v", ended, err)
		}
		if _, err := other.Heartbeat(Deadline); err != nil {
			t.Error(err)
		}
		b.ordered(t, 404, "POST", "/connections/"+bob.ConnID()+"/disconnect", `{}`, nil)
		for _, body := range []string{`{"code":4000}`, `{"code":1000}`, `{"code":4504}`, `{"code":4500}`, `{"code":5000}`, `{"code":-1}`} {
			b.ordered(t, 400, "POST", "/users/bob/disconnect", body, nil)
		}
		if status, err := b.order("POST", "/users/bob/disconnect", `{"reason":"`+strings.Repeat("x", 124)+`"}`, nil); err != nil || status < 400 || status >= 500 {
			t.Errorf("a reason too long: %d, %v", status, err)
		}
		if _, err := other.Heartbeat(Deadline); err != nil {
			t.Error(err)
		}
	})
}

// One of alice's gateways doesn't run just now, another was killed. The answer says who was told and is not gone, and names both. When the paused
// one goes on, it closes its connection: the mark was there all the time.
func TestADisconnectThatIsNotHeardIsSaidAndHeals(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	flags := []string{"--cluster.reap-after=60s", "--heartbeat.interval=2s", "--cluster.lease=6s", "--cluster.quiet=6s"}
	a, b, c := StartGateway(t, r, Options{Name: "a", Flags: flags}), StartGateway(t, r, Options{Name: "b", Flags: flags}), StartGateway(t, r, Options{Name: "c", Flags: flags})
	here, paused, lost := Connect(t, a.WS(), "alice"), Connect(t, b.WS(), "alice"), Connect(t, c.WS(), "alice")
	idB, idC, onC := b.id(t), c.id(t), lost.ConnID()
	c.Kill()
	if err := Poll(4*Deadline, func() error {
		var s clusterStats
		status, body, err := a.Get("/stats?scope=cluster")
		if err == nil && status == 200 {
			err = json.Unmarshal(body, &s)
		}
		if err == nil && len(s.Dead) != 1 {
			err = fmt.Errorf("dead are %v", s.Dead)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	b.Pause()
	var got disconnected
	a.ordered(t, 207, "POST", "/users/alice/disconnect", `{}`, &got)
	b.Resume()
	gone := make(map[string]bool)
	for _, x := range got.Connections {
		gone[x.ID] = x.Gone
	}
	if got.Marked != 3 || got.Gone != 1 || len(gone) != 3 || !gone[here.ConnID()] || gone[paused.ConnID()] || gone[onC] || got.Reasons[idC] != "dead" || got.Reasons[idB] != "silent" || len(got.Missing) != 2 {
		t.Errorf("got %+v; b is %s", got, idB)
	}
	if ended, err := paused.WaitEnd(4 * Deadline); err != nil || ended.Code != 4503 {
		t.Errorf("%v, %v", ended, err)
	}
}

// A connection is looked at by its id: what the registry has, and what only its gateway knows.
func TestABackendLooksAtAConnection(t *testing.T) {
	t.Parallel()
	EachRedis(t, func(t *testing.T, r *Redis) {
		a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"})
		c := Connect(t, b.WS(), "alice", "deviceId", "phone")
		var joined struct {
			Connections []struct {
				ID    string
				Rooms map[string]string
			}
		}
		a.ordered(t, 200, "POST", "/users/alice/join", `{"rooms":["lobby","a/b"]}`, &joined)
		if len(joined.Connections) != 1 || joined.Connections[0].ID != c.ConnID() || joined.Connections[0].Rooms["lobby"] != "joined" || joined.Connections[0].Rooms["a/b"] != "joined" {
			t.Errorf("got %+v", joined)
		}
		for range 2 {
			if f, err := c.Next("joined", Deadline); err != nil || f.ID != "" {
				t.Errorf("%s, %v", f, err)
			}
		}
		var got struct {
			ID, User, Gateway, Device string
			Live                      *struct {
				Remote string
				Rooms  []string
			}
			Missing []string
		}
		a.ordered(t, 200, "GET", "/connections/"+c.ConnID(), "", &got)
		if got.ID != c.ConnID() || got.User != "alice" || got.Gateway != b.id(t) || got.Device != "phone" || got.Live == nil || len(got.Live.Rooms) != 2 || got.Live.Remote == "" || len(got.Missing) != 0 {
			t.Errorf("got %+v", got)
		}
		b.ordered(t, 200, "POST", "/users/alice/leave", `{"rooms":["lobby"]}`, &joined)
		if joined.Connections[0].Rooms["lobby"] != "left" {
			t.Errorf("got %+v", joined)
		}
		if f, err := c.Next("left", Deadline); err != nil || f.ID != "" || f.Room != "lobby" {
			t.Errorf("%s, %v", f, err)
		}
		a.ordered(t, 404, "GET", "/connections/nobody", "", nil)
		b.Pause()
		defer b.Resume()
		got.Live, got.Missing = nil, nil
		began := time.Now()
		a.ordered(t, 200, "GET", "/connections/"+c.ConnID(), "", &got)
		if got.Live != nil || len(got.Missing) != 1 || time.Since(began) > Deadline {
			t.Errorf("got %+v after %v", got, time.Since(began))
		}
	})
}

// Bob's laptop sends far above its rate, so its gateway is held up with it all the time. That says nothing of the gateway, nor of his phone: it answers in
// time, and says of the laptop that it was busy.
func TestABusyConnectionDoesNotMakeItsGatewaySilent(t *testing.T) {
	r := Shared(t, Standalone)
	a, b := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b", Flags: []string{"--limits.message-rate=1", "--limits.frame-bytes=4096"}})
	laptop, phone := Connect(t, b.WS(), "bob"), Connect(t, b.WS(), "bob")
	if err := laptop.Write(map[string]any{"type": "join", "room": "lobby"}); err != nil {
		t.Fatal(err)
	}
	if _, err := laptop.Next("joined", 2*Deadline); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*Gateway{a, b} {
		for i := range 3 {
			if err := laptop.Write(map[string]any{"type": "message", "to": "alice", "content": i}); err != nil {
				t.Fatal(err)
			}
		}
		// Each of them waits for its second, and then the next is there: a look may come in between.
		x := untilAPI(t, g, 4*Deadline, "GET", "/connections/"+laptop.ConnID(), "", func(x Answered) bool {
			if x.text("missing") != "[]" {
				t.Fatalf("%v", x)
			}
			return true
		})
		if x.text("live.busy") != "true" && x.text("live.rooms") != "[lobby]" {
			t.Errorf("%v", x)
		}
		x, err := g.tryAPI("POST", "/users/bob/leave", `{"rooms":["nowhere"]}`)
		if err != nil || x.text("missing") != "[]" || x.field("connections.1") == nil {
			t.Fatalf("%v, %v", x, err)
		}
		for _, i := range []string{"0", "1"} {
			outcome := x.text("connections." + i + ".rooms.nowhere")
			if outcome != "already" && (outcome != "busy" || x.text("connections."+i+".id") == phone.ConnID()) {
				t.Errorf("%v", x)
			}
		}
	}
}

// A gateway is drained by an order that another one is given: it turns unready, sends its clients away and takes nobody, and goes on running. Told to resume
// it takes clients again; and SIGTERM ends it in any state, in good order.
func TestAGatewayIsDrainedByOrderAndResumes(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	a := StartGateway(t, r, Options{Name: "a"})
	b := StartGateway(t, r, Options{Name: "b", Flags: []string{"--drain.delay=300ms", "--drain.window=500ms"}})
	id := b.id(t)
	var clients []*Client
	for i := range 10 {
		clients = append(clients, Connect(t, b.WS(), fmt.Sprint("user", i)))
	}
	stays := Connect(t, a.WS(), "carol")
	var got struct {
		ID, State   string
		Connections int
	}
	a.ordered(t, 200, "POST", "/gateways/"+id+"/drain", "", &got)
	if got.ID != id || got.State != "draining" || got.Connections != 10 {
		t.Errorf("got %+v", got)
	}
	if status, body, err := b.Get("/readyz"); err != nil || status != 503 || !strings.Contains(string(body), "draining") {
		t.Errorf("/readyz: %d %s %v", status, body, err)
	}
	for _, c := range clients {
		if ended, err := c.WaitEnd(4 * Deadline); err != nil || ended.Code != 4000 || !ended.Closing.Reconnect {
			t.Errorf("%v, %v", ended, err)
		}
	}
	a.waitLoad(t, id, "drained", 0)
	if c, err := Dial(b.WS(), nil); err == nil {
		c.Cut()
		t.Error("a drained gateway took a client")
	}
	if _, err := stays.Heartbeat(Deadline); err != nil {
		t.Error(err)
	}
	b.ordered(t, 200, "POST", "/gateways/"+id+"/resume", "", &got)
	if got.State != "serving" {
		t.Errorf("got %+v", got)
	}
	if err := b.WaitReady(4 * Deadline); err != nil {
		t.Error(err)
	}
	back := Connect(t, b.WS(), "user0")
	if _, err := stays.Send("user0", "hi", "m1"); err != nil {
		t.Error(err)
	}
	if _, err := back.Next("message", 2*Deadline); err != nil {
		t.Error(err)
	}
	a.ordered(t, 404, "POST", "/gateways/nobody-1/drain", "", nil)

	a.ordered(t, 200, "POST", "/gateways/"+id+"/drain", "", &got)
	b.Term()
	if code, err := b.ExitCode(6 * Deadline); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if _, err := back.WaitEnd(Deadline); err != nil {
		t.Error(err)
	}
}

// Three gateways hold 200, 60 and 40 connections. What the first has above the mean moves, the longest connected first, and no one else; each goes where the
// fewest are, as behind a balancer that counts. Then the cluster is balanced, and another round moves nobody. Who is written to meanwhile gets each
// message once, before he moves or after.
func TestARebalanceMovesWhatIsAboveTheMean(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	var gs []*Gateway
	for _, name := range []string{"a", "b", "c"} {
		gs = append(gs, StartGateway(t, r, Options{Name: name, Flags: []string{"--limits.connect-rate-per-ip=0"}}))
	}
	counts := []int{200, 60, 40}
	var clients []*Client
	for g, n := range counts {
		for i := range n {
			clients = append(clients, Connect(t, gs[g].WS(), fmt.Sprintf("user%d-%d", g, i)))
		}
	}
	var plan rebalanced
	gs[2].ordered(t, 200, "POST", "/rebalance", `{"dryRun":true}`, &plan)
	if plan.Mean != 100 || plan.Shed != 100 || len(plan.Gateways) != 3 || len(plan.Missing) != 0 {
		t.Fatalf("planned %+v", plan)
	}
	gs[1].ordered(t, 200, "POST", "/rebalance", `{"floor":150,"dryRun":true}`, &plan)
	if plan.Shed != 50 {
		t.Errorf("above a floor of 150: %+v", plan)
	}
	gs[1].ordered(t, 200, "POST", "/rebalance", `{"tolerance":100,"dryRun":true}`, &plan)
	if plan.Shed != 0 {
		t.Errorf("with a tolerance of a hundred percent: %+v", plan)
	}
	began := time.Now()
	gs[1].ordered(t, 200, "POST", "/rebalance", `{"rate":50}`, &plan)
	if plan.Shed != 100 || plan.Gateways[0].Shed+plan.Gateways[1].Shed+plan.Gateways[2].Shed != 100 {
		t.Errorf("did %+v", plan)
	}
	// The oldest hundred of the first gateway end, and each comes back where there are the fewest.
	sender := clients[len(clients)-1]
	write := func(to *Client, n int) {
		t.Helper()
		id, err := sender.Send(to.user, n, fmt.Sprintf("%s-%d", to.user, n))
		if err != nil {
			t.Fatal(err)
		}
		if ack, err := sender.Settle(id, 4*Deadline); err != nil || ack.Type != "ack" {
			t.Fatalf("%s, %v", ack, err)
		}
	}
	had := make([]int, len(clients))
	for i, c := range clients[:100] {
		write(c, 1)
		ended, err := c.WaitEnd(6 * Deadline)
		if err != nil || ended.Code != 4005 || !ended.Closing.Reconnect || ended.Closing.Reason != "rebalance" {
			t.Fatalf("client %d: %v, %v", i, ended, err)
		}
		if i == 0 && clients[99].Ended() != nil {
			t.Error("the last of a hundred ended with the first")
		}
		least := 1
		if counts[2] < counts[1] {
			least = 2
		}
		counts[0]--
		counts[least]++
		write(c, 2)
		had[i] = len(c.Left("message"))
		epoch, offset := c.Position()
		clients[i] = Connect(t, gs[least].WS(), c.user, "resume", map[string]any{"epoch": epoch, "offset": offset})
		write(c, 3)
		if err := clients[i].WaitCount(3-had[i], 4*Deadline, "message"); err != nil {
			t.Fatalf("client %d had %d messages before it moved: %v", i, had[i], err)
		}
	}
	if took := time.Since(began); took < 1900*time.Millisecond {
		t.Errorf("100 connections at 50 a second went in %v", took)
	}
	if err := Poll(4*Deadline, func() error {
		gs[0].ordered(t, 200, "POST", "/rebalance", `{"tolerance":0}`, &plan)
		if plan.Shed != 0 {
			t.Fatalf("a balanced cluster was rebalanced: %+v", plan)
		}
		for _, g := range plan.Gateways {
			if g.Connections != 100 || g.State != "serving" {
				return fmt.Errorf("%+v", plan)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		if c.Ended() != nil {
			t.Errorf("client %d ended: %v", i, c.Ended())
		}
		if n := had[i] + len(c.Left("message")); i < 100 && n != 3 {
			t.Errorf("client %d got %d messages, want 3", i, n)
		}
	}
	// Of a gateway that takes nobody the connections count for those that do, and it is not shed.
	id := gs[2].id(t)
	gs[2].ordered(t, 200, "POST", "/gateways/"+id+"/drain", "", nil)
	gs[0].ordered(t, 200, "POST", "/rebalance", `{"dryRun":true}`, &plan)
	if plan.Mean != 150 || plan.Shed != 0 {
		t.Errorf("with a gateway that drains: %+v", plan)
	}
}
