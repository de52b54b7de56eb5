//go:build !race

package gatewaytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"
)

// linearRecord collects what clients did to some logs, and when.
type linearRecord struct {
	t        *testing.T
	gateways []*Gateway
	began    time.Time
	stopped  chan struct{} // closed when no more is asked

	mu      sync.Mutex
	history []porcupine.Operation // guarded by mu
	unknown int                   // guarded by mu; answers that the fate is unknown, by a gateway that lives
}

func (r *linearRecord) now() int64 { return int64(time.Since(r.began)) }

func (r *linearRecord) add(worker int, in linearInput, out linearOutput, call int64) {
	back := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, porcupine.Operation{ClientId: worker, Input: in, Output: out, Call: call, Return: back})
}

// linearWorker is one client that asks one thing after the other, and comes back at any gateway when its connection is lost.
type linearWorker struct {
	*linearRecord
	number int
	user   string
	random *rand.Rand
	client *Client
}

// run asks, at a pace that leaves time for faults, until the record stops.
func (w *linearWorker) run(ask func() error) {
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	defer func() { w.lose() }()
	for {
		select {
		case <-w.stopped:
			return
		case <-pace.C:
		}
		if w.client == nil {
			w.come()
			continue
		}
		if err := ask(); err != nil {
			w.lose()
		}
	}
}

// come connects to some gateway; not to one that is down.
func (w *linearWorker) come() {
	g := w.gateways[w.random.IntN(len(w.gateways))]
	c, err := Dial(g.WS(), nil)
	if err != nil {
		return
	}
	c.Name = fmt.Sprintf("%s/%d", w.user, w.number)
	if _, err := c.Register(w.user); err != nil {
		c.Cut()
		return
	}
	w.client = c
}

func (w *linearWorker) lose() {
	if w.client != nil {
		w.client.Cut()
		w.client = nil
	}
}

// send sends a message and records what it is told; an error: the connection is of no more use.
func (w *linearWorker) send(in linearInput) error {
	call := w.now()
	out := linearOutput{fate: fateUnknown}
	_, err := w.client.Send(in.address, json.RawMessage(in.content), in.id)
	if err == nil && w.random.IntN(20) == 0 {
		err = errors.New("the client lost its network")
	}
	if err == nil {
		var f Frame
		if f, err = w.client.Ack(in.id, Deadline); err == nil {
			out = w.answered(f)
		}
	}
	w.add(w.number, in, out, call)
	return err
}

// answered reads an answer to a message as the protocol has it. What it can't be is no fate, and no log explains it.
func (r *linearRecord) answered(f Frame) linearOutput {
	if f.Type == "ack" {
		return linearOutput{fate: fateStored, epoch: f.Epoch, offset: f.Offset}
	}
	switch fate := linearFate(f.CodeText()); fate {
	case "overloaded":
		return linearOutput{fate: fateUnavailable}
	case fateUnknown:
		r.mu.Lock()
		r.unknown++
		r.mu.Unlock()
		fallthrough
	default:
		return linearOutput{fate: fate}
	}
}

// read reads a page of the own log.
func (w *linearWorker) read(in linearInput) error {
	call := w.now()
	w.client.mu.Lock()
	w.client.nextID++
	id := "h" + strconv.FormatUint(w.client.nextID, 10)
	w.client.mu.Unlock()
	if err := w.client.Write(object("history", []any{"id", id, "after", in.after, "limit", in.limit})); err != nil {
		return err
	}
	var f Frame
	err := w.client.wait(Deadline, "history", func() bool {
		for _, kind := range []string{"history", "error"} {
			for _, i := range w.client.queues[kind] {
				if w.client.all[i].ID == id {
					f = w.client.all[i]
					return true
				}
			}
		}
		return false
	})
	if err != nil || f.Type == "error" { // nothing was seen
		return err
	}
	var page struct{ Messages []Frame }
	if err := json.Unmarshal(f.Raw, &page); err != nil {
		return err
	}
	out := linearOutput{epoch: f.Epoch, top: f.Top}
	for _, m := range page.Messages {
		out.messages = append(out.messages, linearEntry{m.Sender(), m.ID, string(m.Content)})
	}
	w.add(w.number, in, out, call)
	return nil
}

// Senders on all gateways write to the same few logs at once, two of them under each name with the same ids, and others read these logs, while
// gateways are killed, their connections to Redis cut, and Redis stands still. What all of them were told is explained by logs that append
// each message once, in one order, and forget nothing.
func TestLogsAreLinearizableThroughFaults(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Embedded, Standalone, Cluster} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			r := Shared(t, kind)
			rec := &linearRecord{t: t, began: time.Now(), stopped: make(chan struct{})}
			for _, name := range []string{"a", "b"} {
				rec.gateways = append(rec.gateways, StartGateway(t, r, Options{Name: name, Flags: []string{
					"--limits.message-rate=0", "--limits.frame-rate=0", "--limits.byte-rate=0", "--limits.connect-rate=0", "--limits.connect-rate-per-ip=0", "--limits.connections-per-user=0",
				}}))
			}
			logs := []string{"bob", "carol"}
			var working sync.WaitGroup
			for i := range 6 {
				w := &linearWorker{linearRecord: rec, number: i, user: "sender" + itoa(i/2), random: rand.New(rand.NewPCG(uint64(i), 0))}
				working.Go(func() { w.run(w.sender(logs)) })
			}
			for i, address := range logs {
				w := &linearWorker{linearRecord: rec, number: 6 + i, user: address, random: rand.New(rand.NewPCG(uint64(i), 1))}
				working.Go(func() { w.run(w.reader(address)) })
			}
			err := rec.faults(r)
			close(rec.stopped)
			working.Wait()
			if err != nil {
				t.Fatal(err)
			}
			rec.last(logs)
			told := make(map[linearFate]int)
			for _, op := range rec.history {
				told[op.Output.(linearOutput).fate]++
			}
			t.Logf("%d operations, %v, of the unknown %d were answered so", len(rec.history), told, rec.unknown)
			if kind != Embedded && rec.unknown == 0 {
				t.Error("no gateway had to say that it doesn't know")
			}
			if told[fateStored] < 100 || told[fateConflict] == 0 || told[fateUnknown] == 0 || told[""] < 20 {
				t.Errorf("too little happened: %v", told)
			}
			if err := linearizable(rec.history); err != nil {
				t.Error(err)
			}
		})
	}
}

// sender makes a client that sends new messages, repeats what it sent lately, and now and then uses an id twice. Another client of the same
// name sends the same ones.
func (w *linearWorker) sender(logs []string) func() error {
	n := 0
	return func() error {
		i := n
		if w.random.IntN(3) == 0 {
			i = max(0, n-w.random.IntN(5))
		} else {
			n++
		}
		content := strconv.Itoa(i)
		if w.random.IntN(10) == 0 {
			content = `"another"`
		}
		return w.send(linearInput{address: logs[i%len(logs)], from: w.user, id: "m" + strconv.Itoa(i), content: content})
	}
}

// reader makes a client that reads its log from anywhere.
func (w *linearWorker) reader(address string) func() error {
	top := 0
	return func() error {
		_, offset := w.client.Position()
		top = max(top, int(offset))
		return w.read(linearInput{address: address, read: true, after: uint64(w.random.IntN(top + 2)), limit: 1 + w.random.IntN(20)})
	}
}

// last reads each log to its end when all is over: whatever is there was sent, and whatever was acknowledged is there.
func (r *linearRecord) last(logs []string) {
	for i, address := range logs {
		w := &linearWorker{linearRecord: r, number: 8 + i, user: address, random: rand.New(rand.NewPCG(0, 0))}
		wantWithin(r.t, 2*Deadline, func() bool { w.come(); return w.client != nil })
		defer w.lose()
		for after := uint64(0); ; {
			if err := w.read(linearInput{address: address, read: true, after: after, limit: 200}); err != nil {
				r.t.Fatal(err)
			}
			page := r.history[len(r.history)-1].Output.(linearOutput)
			if after += uint64(len(page.messages)); after >= page.top {
				break
			}
		}
	}
}

// faults breaks one thing after the other, with a moment of peace between.
func (r *linearRecord) faults(redis *Redis) error {
	kill := func(i int) func() error {
		return func() error { return r.gateways[i].Restart() }
	}
	cut := func() error { return redis.cutClients() }
	pause := func(d time.Duration) func() error {
		return func() error {
			if err := redis.Pause(); err != nil {
				return err
			}
			<-time.After(d)
			return redis.Resume()
		}
	}
	// A lane repeats for a second before it gives up: with less it never has to say that it doesn't know.
	all := []func() error{kill(0), cut, pause(1300 * time.Millisecond), kill(1), cut, pause(300 * time.Millisecond), pause(1300 * time.Millisecond), cut}
	if redis.Kind == Embedded {
		all = []func() error{kill(0), kill(1), kill(0)}
	}
	for _, fault := range all {
		if err := r.peace(); err != nil {
			return err
		}
		if err := fault(); err != nil {
			return err
		}
	}
	return r.peace()
}

// peace waits until some more messages are acknowledged.
func (r *linearRecord) peace() error {
	count := func() (n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, op := range r.history {
			if op.Output.(linearOutput).fate == fateStored {
				n++
			}
		}
		return n
	}
	before := count()
	return Poll(4*Deadline, func() error {
		if n := count() - before; n < 40 {
			return fmt.Errorf("only %d messages acknowledged", n)
		}
		return nil
	})
}

// cutClients ends all connections to the servers with data: what is on its way to or from them is lost.
func (r *Redis) cutClients() error {
	for _, n := range r.Nodes {
		ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
		err := n.client.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err()
		cancel()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
	}
	return nil
}
