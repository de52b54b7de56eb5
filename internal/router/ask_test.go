//go:build !secondpass

package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
	"chatgate/internal/protocol"
)

// answering has a gateway answer with its name and what it was asked.
func answering(s *settings) {
	id := s.router.Gateway
	s.router.OnQuestion = func(ctx context.Context, a *Asked) bool {
		if a.Verb == "unheard-of" {
			return false
		}
		_ = a.Answer(ctx, protocol.AnswerDone, []byte(string(id)+" "+string(a.Verb)+" "+a.Body))
		return true
	}
}

// patient waits for answers as long as a busy machine may take.
func patient(q Question) Question {
	q.Within = patience
	return q
}

func gatewayIDs(gs ...*gateway) (ids []protocol.GatewayID) {
	for _, g := range gs {
		ids = append(ids, g.id)
	}
	slices.Sort(ids)
	return ids
}

func whoAnswered(r Replies) (ids []protocol.GatewayID) {
	for _, a := range r.Answers {
		ids = append(ids, a.Gateway)
	}
	return ids
}

// Every gateway is asked, the asker among them, and each answers for itself. One that is named is asked alone.
func TestEveryGatewayAnswers(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		gs := []*gateway{net.gateway("a", answering), net.gateway("b", answering), net.gateway("c", answering)}
		for _, asker := range gs {
			got, err := asker.router.Ask(context.Background(), patient(Question{Verb: "load", Body: []byte("x\ny")}))
			if err != nil || len(got.Missing) != 0 || !slices.Equal(whoAnswered(got), gatewayIDs(gs...)) {
				t.Fatalf("%s got %+v, %v", asker.id, got, err)
			}
			for _, a := range got.Answers {
				if a.Status != protocol.AnswerDone || a.Body != string(a.Gateway)+" load x\ny" || a.More {
					t.Errorf("%s got %+v", asker.id, a)
				}
			}
		}
		got, err := gs[0].router.Ask(context.Background(), patient(Question{Verb: "load", To: gatewayIDs(gs[2])}))
		if err != nil || !slices.Equal(whoAnswered(got), gatewayIDs(gs[2])) || gs[1].router.Stats().Asked != 3 {
			t.Errorf("got %+v, %v; another one was asked %d times", got, err, gs[1].router.Stats().Asked)
		}
	})
}

// A gateway of another version doesn't know what is asked. It says so, and the asker goes on with the others.
func TestAnUnknownVerbIsNotUnderstood(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := net.gateway("a", answering)
	net.gateway("b") // answers nothing at all
	for _, verb := range []protocol.Verb{"unheard-of", "load"} {
		got, err := a.router.Ask(context.Background(), patient(Question{Verb: verb}))
		if err != nil || len(got.Missing) != 0 || len(got.Answers) != 2 {
			t.Fatalf("%s: %+v, %v", verb, got, err)
		}
		for _, x := range got.Answers {
			want := protocol.AnswerNotUnderstood
			if x.Gateway == a.id && verb == "load" {
				want = protocol.AnswerDone
			}
			if x.Status != want {
				t.Errorf("%s to %s: %+v", verb, x.Gateway, x)
			}
		}
	}
}

// One gateway is killed. As long as its lease runs it is found to hear nothing; then it is known to be dead, also when it was asked by name. Nothing of
// that is waited for.
func TestADeadGatewayIsNamedAtOnce(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		late := func(s *settings) {
			answering(s)
			s.registry.ReapAfter *= 100
		}
		a, b, c := net.gateway("a", late), net.gateway("b", late), net.gateway("c", late)
		c.stop()
		ask := func(to ...protocol.GatewayID) Replies {
			t.Helper()
			began := time.Now()
			got, err := a.router.Ask(context.Background(), Question{Verb: "load", To: to, Within: time.Minute})
			if err != nil || time.Since(began) > patience {
				t.Fatalf("%+v, %v after %v", got, err, time.Since(began))
			}
			return got
		}
		if err := gatewaytest.Poll(patience, func() error {
			all, named := ask(), ask(c.id)
			if !slices.Equal(whoAnswered(all), gatewayIDs(a, b)) || len(named.Answers) != 0 {
				t.Fatalf("got %+v, and by name %+v", all, named)
			}
			for _, got := range []Replies{all, named} {
				if len(got.Missing) != 1 || got.Missing[0].Gateway != c.id || got.Missing[0].Reason != MissingUnreached && got.Missing[0].Reason != MissingDead {
					t.Fatalf("got %+v, and by name %+v", all, named)
				}
			}
			if all.Missing[0].Reason != MissingDead || named.Missing[0].Reason != MissingDead {
				return fmt.Errorf("it is missing as %s", all.Missing[0].Reason)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// A gateway that takes its time is silent to whoever asked, and the others' answers are there. Its answer comes too late for this question and is
// nobody else's.
func TestASilentGatewayIsNamedInTime(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	release := make(chan struct{})
	defer close(release)
	slow := func(s *settings) {
		s.router.OnQuestion = func(ctx context.Context, a *Asked) bool {
			<-release
			_ = a.Answer(ctx, protocol.AnswerDone, []byte("late"))
			return true
		}
	}
	a, b := net.gateway("a", answering), net.gateway("b", slow)
	began := time.Now()
	got, err := a.router.Ask(context.Background(), Question{Verb: "load", Within: time.Second})
	if d := time.Since(began); err != nil || d < time.Second || d > patience || !slices.Equal(got.Missing, []Missing{{b.id, MissingSilent}}) || !slices.Equal(whoAnswered(got), gatewayIDs(a)) {
		t.Errorf("got %+v, %v after %v", got, err, d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := a.router.Ask(ctx, patient(Question{Verb: "load"})); err == nil {
		t.Errorf("whoever waits no more got %+v", got)
	}
}

// All workers are busy, and more is asked than may wait. What is delivered is delivered all the same: whoever is asked does nothing where he hears.
func TestQuestionsHoldUpNothing(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Standalone))
	release := make(chan struct{})
	a, b := net.gateway("a"), net.gateway("b", func(s *settings) {
		s.router.OnQuestion = func(ctx context.Context, a *Asked) bool {
			<-release
			_ = a.Answer(ctx, protocol.AnswerDone, nil)
			return true
		}
	})
	bob := b.connect("bob")
	ask := protocol.AppendQuestion(nil, &protocol.Question{ID: 7, Asker: "nobody-1", Within: patience.Milliseconds(), Verb: "load"})
	const over = 10
	for range questionWorkers + questionsWait + over {
		if err := a.router.RouteToGateway(context.Background(), b.id, ask); err != nil {
			t.Fatal(err)
		}
	}
	a.send("alice", "bob", "m1", `"hi"`).want(protocol.StatusRouted)
	bob.messages(1)
	if n := b.router.Stats().Dropped; n < 1 || n > over {
		t.Errorf("%d questions were dropped, want at most the %d too many", n, over)
	}
	close(release)
	eventually(t, "the workers have gone", func() bool {
		b.router.questions.mu.Lock()
		defer b.router.questions.mu.Unlock()
		return b.router.questions.working == 0 && len(b.router.questions.pending) == 0
	})
}

// An answer may have many parts. They come in order, and what was lost or left out between them is told.
func TestPartsComeInOrderAndLostOnesAreCounted(t *testing.T) {
	gatewaytest.EachRedis(t, func(t *testing.T, r *gatewaytest.Redis) {
		net := newCluster(t, r)
		const parts = 200
		telling := func(s *settings) {
			s.router.OnQuestion = func(ctx context.Context, a *Asked) bool {
				for i := range parts {
					if i%10 == 3 || i >= parts-2 {
						a.number++ // as if it were lost on the way
					} else if err := a.Part(ctx, fmt.Append(nil, i)); err != nil {
						t.Error(err)
					}
				}
				_ = a.Answer(ctx, protocol.AnswerDone, []byte("end"))
				return true
			}
		}
		a, b := net.gateway("a", telling), net.gateway("b", telling)
		heard := make(map[protocol.GatewayID][]string)
		got, err := a.router.Ask(context.Background(), patient(Question{Verb: "parts", Part: func(x protocol.Answer, lost uint64) {
			for range lost {
				heard[x.Gateway] = append(heard[x.Gateway], "-")
			}
			if x.Number > 0 {
				heard[x.Gateway] = append(heard[x.Gateway], x.Body)
			}
		}}))
		if err != nil || len(got.Answers) != 2 || got.Answers[0].Body != "end" {
			t.Fatalf("%+v, %v", got, err)
		}
		var want []string
		for i := range parts {
			if i%10 == 3 || i >= parts-2 {
				want = append(want, "-")
			} else {
				want = append(want, fmt.Sprint(i))
			}
		}
		for _, g := range []*gateway{a, b} {
			if !slices.Equal(heard[g.id], want) {
				t.Errorf("%s told %s", g.id, strings.Join(heard[g.id], " "))
			}
		}
	})
}

// Redis is away: whoever asks is told so, in time.
func TestAskingWithoutRedis(t *testing.T) {
	r := gatewaytest.Shared(t, gatewaytest.Standalone)
	net := newCluster(t, r)
	a := net.gateway("a", answering, prompt, func(s *settings) { s.registry.Timeout = 500 * time.Millisecond })
	net.gateway("b", answering)
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Resume(); err != nil {
			t.Error(err)
		}
	}()
	began := time.Now()
	_, err := a.router.Ask(context.Background(), Question{Verb: "load"})
	if d := time.Since(began); err == nil || d > patience/2 {
		t.Errorf("%v after %v", err, d)
	}
	// Itself it can ask all the same.
	if got, err := a.router.Ask(context.Background(), patient(Question{Verb: "load", To: gatewayIDs(a)})); err != nil || len(got.Answers) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Whoever is asked waits for something as long as he may, and so do forty others at once. His time is over a moment before that of the asker, who gets to hear
// that it was too late; and nobody has to wait until the others have waited.
func TestWhoWaitsForAnAnswerHoldsUpNobody(t *testing.T) {
	const many = 40
	var waiting atomic.Int64
	early := make(chan time.Duration, many)
	leave := make(chan struct{})
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := net.gateway("a")
	b := net.gateway("b", func(s *settings) {
		s.router.OnQuestion = func(ctx context.Context, x *Asked) bool {
			deadline, _ := ctx.Deadline()
			early <- patience - time.Until(deadline) // of the time that the asker waits, what is not for the work
			waiting.Add(1)
			<-leave
			_ = x.Answer(ctx, protocol.AnswerDone, nil)
			return true
		}
	})
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			got, err := a.router.Ask(context.Background(), patient(Question{Verb: "load", To: gatewayIDs(b)}))
			if err != nil || len(got.Answers) != 1 {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	err := gatewaytest.Poll(patience, func() error {
		if n := waiting.Load(); n < many {
			return fmt.Errorf("%d wait at a time", n)
		}
		return nil
	})
	close(leave)
	all.Wait()
	if err != nil {
		t.Fatal(err)
	}
	for range many {
		if d := <-early; d < answerMargin {
			t.Errorf("an answer had a way of %v", d)
		}
	}
}

// What b finds in a question makes it panic. It is named as silent, and goes on: the next question is answered.
func TestAQuestionThatPanicsEndsNothingElse(t *testing.T) {
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := net.gateway("a")
	b := net.gateway("b", answering, func(s *settings) {
		answer := s.router.OnQuestion
		s.router.OnQuestion = func(ctx context.Context, x *Asked) bool {
			if x.Body == "poison" {
				panic(x.Body)
			}
			return answer(ctx, x)
		}
	})
	got, err := a.router.Ask(context.Background(), Question{Verb: "load", Body: []byte("poison"), To: gatewayIDs(b)})
	if want := (Missing{b.id, MissingSilent}); err != nil || len(got.Missing) != 1 || got.Missing[0] != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := a.router.Ask(context.Background(), patient(Question{Verb: "load", To: gatewayIDs(b)})); err != nil || len(got.Answers) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// All who work on questions are busy when a trace is asked for, and its caller leaves before one of them has come to it. Nobody would listen: it does not begin.
func TestATraceThatIsCalledOffBeforeItBeginsDoesNotBegin(t *testing.T) {
	busy := make(chan struct{}, questionWorkers)
	leave := make(chan struct{})
	net := newCluster(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	a := net.gateway("a")
	b := net.gateway("b", func(s *settings) {
		s.router.OnQuestion = func(ctx context.Context, x *Asked) bool {
			busy <- struct{}{}
			<-leave
			_ = x.Answer(ctx, protocol.AnswerDone, nil)
			return true
		}
	})
	var all sync.WaitGroup
	for range questionWorkers {
		all.Go(func() { _, _ = a.router.Ask(context.Background(), patient(Question{Verb: "load", To: gatewayIDs(b)})) })
	}
	for range questionWorkers {
		<-busy
	}
	wait := func(pending, workers int) {
		t.Helper()
		x := b.router.questions
		if err := gatewaytest.Poll(patience, func() error {
			x.mu.Lock()
			defer x.mu.Unlock()
			if len(x.pending) != pending || x.working != workers {
				return fmt.Errorf("%d questions wait for %d workers, want %d for %d", len(x.pending), x.working, pending, workers)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	trace, err := json.Marshal(protocol.TraceQuestion{User: "bob", Ms: patience.Milliseconds()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, gone := context.WithCancel(context.Background())
	all.Go(func() {
		wait(1, questionWorkers)
		gone()
	})
	if _, err := a.router.Ask(ctx, patient(Question{Verb: protocol.VerbTrace, Body: trace, To: gatewayIDs(b)})); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// What is asked on the same channel comes after the word that nobody waits.
	all.Go(func() { _, _ = a.router.Ask(context.Background(), patient(Question{Verb: "load", To: gatewayIDs(b)})) })
	wait(2, questionWorkers)
	close(leave)
	all.Wait()
	wait(0, 0)
	if traced := b.router.traces.active.Load(); traced != nil {
		t.Errorf("%d traces go on", len(*traced))
	}
}
