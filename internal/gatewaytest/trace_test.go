//go:build !secondpass

package gatewaytest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// traceLine is one line of a trace.
type traceLine struct {
	At                                                 int64
	Gateway, Event, Outcome, ID, From, To, Room, Epoch string
	Offset                                             uint64
	Connections                                        int
	User, Connection                                   string
	Missing                                            []string
	Reasons                                            map[string]string
	raw                                                string
}

// follow begins a trace, and returns its lines as they come; they end with it.
func (g *Gateway) follow(t testing.TB, query string) <-chan traceLine {
	t.Helper()
	lines, leave := g.followed(t, query)
	t.Cleanup(leave)
	return lines
}

// followed is follow for whoever leaves before its end.
func (g *Gateway) followed(t testing.TB, query string) (lines chan traceLine, leave func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Internal+"/api/v1/trace?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil || response.StatusCode != 200 || response.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("trace: %+v, %v", response, err)
	}
	lines = make(chan traceLine, 4096)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(lines)
		for s := bufio.NewScanner(response.Body); s.Scan(); {
			x := traceLine{raw: s.Text()}
			if err := json.Unmarshal(s.Bytes(), &x); err != nil {
				t.Errorf("%s: %v", s.Text(), err)
			}
			lines <- x
		}
	}()
	return lines, func() { cancel(); response.Body.Close(); <-done }
}

// begun takes the lines until so many gateways trace.
func begun(t testing.TB, lines <-chan traceLine, gateways int) {
	t.Helper()
	for n := 0; n < gateways; {
		select {
		case x := <-lines:
			if x.Event != "tracing" {
				t.Fatalf("before it began: %s", x.raw)
			}
			n++
		case <-time.After(4 * Deadline):
			t.Fatalf("%d gateways trace, want %d", n, gateways)
		}
	}
}

// rest takes the lines to the end, without the times.
func rest(t testing.TB, lines <-chan traceLine) (all []traceLine, end traceLine) {
	t.Helper()
	for {
		select {
		case x, ok := <-lines:
			switch {
			case !ok:
				t.Fatalf("it ended without an end: %+v", all)
			case x.At == 0:
				t.Errorf("no time: %s", x.raw)
			case x.Event == "end":
				return all, x
			}
			all = append(all, x)
		case <-time.After(10 * Deadline):
			t.Fatalf("no end; so far %+v", all)
		}
	}
}

// wantLine wants exactly one line with these words, of this gateway.
func wantLine(t testing.TB, all []traceLine, gateway string, want string) {
	t.Helper()
	n := 0
	for _, x := range all {
		got := fmt.Sprintf("%s %s id=%s from=%s to=%s room=%s offset=%d connections=%d user=%s", x.Event, x.Outcome, x.ID, x.From, x.To, x.Room, x.Offset, x.Connections, x.User)
		if x.Gateway == gateway && got == want {
			n++
		}
	}
	if n != 1 {
		var story []string
		for _, x := range all {
			story = append(story, x.raw)
		}
		t.Errorf("%d times on %s: %s\n%s", n, gateway, want, strings.Join(story, "\n"))
	}
}

// Bob is traced from a gateway that has nothing to do with him. Each gateway tells what it does with his messages and connections, and nobody tells what
// is in them, nor what is not his.
func TestATraceTellsWhatBecomesOfAUsersMessages(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Embedded, Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := Shared(t, kind)
			a, b, c := StartGateway(t, r, Options{Name: "a"}), StartGateway(t, r, Options{Name: "b"}), StartGateway(t, r, Options{Name: "c"})
			idB, idC := b.id(t), c.id(t)
			alice, carol := Connect(t, b.WS(), "alice"), Connect(t, b.WS(), "carol")
			bob := Connect(t, c.WS(), "bo\"b")
			lines := a.follow(t, "user=bo%22b&seconds=4")
			begun(t, lines, 3)
			send := func(from *Client, to, id string, fields ...any) {
				t.Helper()
				if _, err := from.Send(to, "a secret", id, fields...); err != nil {
					t.Fatal(err)
				}
				if _, err := from.Ack(id, 2*Deadline); err != nil {
					t.Fatal(err)
				}
			}
			send(alice, "bo\"b", "m1")
			send(bob, "alice", "m2")
			send(alice, "carol", "m3")
			send(alice, "bo\"b", "m4", "ephemeral", true)
			for _, x := range []*Client{bob, carol} {
				if err := x.Write(map[string]any{"type": "join", "room": "lobby"}); err != nil {
					t.Fatal(err)
				}
				if _, err := x.Next("joined", 2*Deadline); err != nil {
					t.Fatal(err)
				}
			}
			send(carol, "room:lobby", "m5")
			if _, err := bob.NextOf("message", 2*Deadline, func(f Frame) bool { return f.ID == "m5" }); err != nil {
				t.Fatal(err)
			}
			if err := bob.Close(); err != nil {
				t.Fatal(err)
			}
			all, end := rest(t, lines)
			wantLine(t, all, idB, `taken  id=m1 from=alice to=bo"b room= offset=0 connections=0 user=`)
			wantLine(t, all, idB, `answered routed id=m1 from=alice to=bo"b room= offset=1 connections=1 user=`)
			wantLine(t, all, idC, `delivered  id=m1 from=alice to=bo"b room= offset=1 connections=1 user=`)
			wantLine(t, all, idC, `answered routed id=m2 from=bo"b to=alice room= offset=1 connections=1 user=`)
			wantLine(t, all, idB, `delivered  id=m2 from=bo"b to=alice room= offset=1 connections=1 user=`)
			wantLine(t, all, idB, `answered routed id=m4 from=alice to=bo"b room= offset=0 connections=1 user=`)
			wantLine(t, all, idC, `delivered  id=m4 from=alice to=bo"b room= offset=0 connections=1 user=`)
			wantLine(t, all, idC, `delivered  id=m5 from=carol to= room=lobby offset=1 connections=1 user=`)
			wantLine(t, all, idC, `joined  id= from= to= room=lobby offset=0 connections=0 user=bo"b`)
			wantLine(t, all, idC, `closed client_close id= from= to= room= offset=0 connections=0 user=bo"b`)
			for _, x := range all {
				if x.ID == "m3" || strings.Contains(x.raw, "secret") || x.User == "carol" {
					t.Errorf("told too much: %s", x.raw)
				}
			}
			if len(end.Missing) != 0 {
				t.Errorf("missing: %s", end.raw)
			}
		})
	}
}

// One message is traced by its id; of two gateways that can't answer, each is named, and the trace ends in its time.
func TestATraceNamesTheGatewaysThatTellNothing(t *testing.T) {
	t.Parallel()
	r := Shared(t, Standalone)
	flags := []string{"--cluster.reap-after=60s", "--cluster.lease=3s"}
	a, b := StartGateway(t, r, Options{Name: "a", Flags: flags}), StartGateway(t, r, Options{Name: "b", Flags: flags})
	c, d := StartGateway(t, r, Options{Name: "c", Flags: flags}), StartGateway(t, r, Options{Name: "d", Flags: flags})
	idA, idB, idC, idD := a.id(t), b.id(t), c.id(t), d.id(t)
	alice := Connect(t, a.WS(), "alice")
	Connect(t, b.WS(), "bob")
	c.Kill()
	if err := Poll(6*Deadline, func() error {
		s, err := a.ClusterStats()
		if err == nil && !slices.Contains(s["dead"].([]any), any(idC)) {
			err = fmt.Errorf("dead are %v", s["dead"])
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	lines := a.follow(t, "id=m1&seconds=2")
	begun(t, lines, 3)
	d.Pause() // in the middle
	for _, id := range []string{"m1", "m2"} {
		if _, err := alice.Send("bob", "a secret", id); err != nil {
			t.Fatal(err)
		}
		if _, err := alice.Ack(id, 2*Deadline); err != nil {
			t.Fatal(err)
		}
	}
	all, end := rest(t, lines)
	took := time.Since(began)
	d.Resume()
	wantLine(t, all, idA, `taken  id=m1 from=alice to=bob room= offset=0 connections=0 user=`)
	wantLine(t, all, idA, `answered routed id=m1 from=alice to=bob room= offset=1 connections=1 user=`)
	wantLine(t, all, idB, `delivered  id=m1 from=alice to=bob room= offset=1 connections=1 user=`)
	if len(all) != 3 {
		t.Errorf("told %d lines: %+v", len(all), all)
	}
	missing := []string{idC, idD}
	if !slices.Equal(end.Missing, missing) || end.Reasons[idC] != "dead" || end.Reasons[idD] != "silent" && end.Reasons[idD] != "dead" {
		t.Errorf("want %v: %s", missing, end.raw)
	}
	if took > 2*Deadline {
		t.Errorf("two seconds took %v", took)
	}
	for _, query := range []string{"", "?user=a&id=b", "?user=a&seconds=61", "?user=a&seconds=0", "?user="} {
		a.ordered(t, 400, "GET", "/trace"+query, "", nil)
	}
}

// Whoever traces a user for a minute and leaves after a second is traced for no longer, on no gateway: else a few who look once more would find that too many
// traces go on.
func TestATraceEndsWhenItsCallerLeaves(t *testing.T) {
	for _, kind := range []Kind{Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			r := Shared(t, kind)
			a := StartGateway(t, r, Options{Name: "a"})
			StartGateway(t, r, Options{Name: "b"})
			for i := range 12 { // more than a gateway carries out at a time
				// The last one may have left a moment ago only.
				if err := Poll(4*Deadline, func() error {
					lines, leave := a.followed(t, "user=bob&seconds=60")
					defer leave()
					for n := 0; n < 2; n++ {
						select {
						case x, ok := <-lines:
							if !ok || x.Event != "tracing" {
								return fmt.Errorf("trace %d: %s", i, x.raw)
							}
						case <-time.After(2 * Deadline):
							return fmt.Errorf("trace %d: %d gateways trace", i, n)
						}
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
