package gatewaytest

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"
)

// visit is one connection of a person, owned by its run.
type visit struct {
	person     *Person
	client     *Client
	conn       int
	silence    *time.Timer // cuts it off
	lastHeard  time.Time
	registered bool
	again      time.Time     // when to register again; zero: not at all
	beat       time.Duration // how often to send a heartbeat
	beats      time.Time     // when the next is due
	retries    []retry
}

type retry struct {
	at     time.Time
	letter *Letter
}

func (v *visit) register() error {
	p := v.person
	fields := append([]any{"userId", p.Name}, p.fields...)
	p.mu.Lock()
	if p.inbox.known {
		fields = append(fields, "resume", p.inbox.at)
	}
	p.mu.Unlock()
	v.again = time.Time{}
	return v.client.Write(object("register", fields))
}

// run reads and writes until the connection ends or the person is called away.
func (v *visit) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		frames, ended, changed := v.client.drain()
		if len(frames) > 0 {
			v.silence.Reset(v.person.ledger.Patience)
		}
		for i := range frames {
			v.hear(&frames[i])
		}
		if ended {
			return
		}
		timer.Reset(v.speak())
		select {
		case <-changed:
		case <-timer.C:
		case <-v.person.poke:
		case <-v.person.stop:
			return
		}
	}
}

// hear takes one frame.
func (v *visit) hear(f *Frame) {
	p := v.person
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.stays); p.client == v.client && p.here && f.At.Sub(v.lastHeard) > 2*v.beat {
		// Who heard nothing for so long, although it asked, can't say that it was there.
		p.stays[n-1].To = v.lastHeard
		p.stays = append(p.stays, Stay{From: f.At, Gateway: p.stays[n-1].Gateway, Resumed: true})
	}
	v.lastHeard = f.At
	if h, ok := hear(f, v.conn); ok {
		p.heard = append(p.heard, h)
		if became, _ := p.inbox.take(&h); became == shown {
			p.shown++
		}
	}
	switch f.Type {
	case "registered":
		v.registered, v.beat = true, p.ledger.Heartbeat
		if v.beat == 0 {
			v.beat = time.Duration(f.HeartbeatIntervalMs) * time.Millisecond
		}
		v.beats = f.At.Add(v.beat)
		if p.client == v.client {
			p.here = true
			p.stays = append(p.stays, Stay{From: f.At, Gateway: f.GatewayID})
		}
		// Nobody knows what became of what the last connection carried: again, in order.
		for _, m := range p.waiting {
			v.retries = append(v.retries, retry{at: f.At, letter: m})
		}
	case "ack":
		if m := p.letter(f.ID); m != nil {
			m.Acks = append(m.Acks, Ack{At: f.At, Conn: v.conn, Status: f.Status, Pos: Position{f.Epoch, f.Offset}})
			p.answered(m)
		}
	case "error":
		v.refused(f)
	}
}

// refused takes an error. mu is held.
func (v *visit) refused(f *Frame) {
	wait := time.Duration(max(f.Retry, 10)) * time.Millisecond
	m := v.person.letter(f.ID)
	if m == nil {
		if !v.registered {
			v.again = f.At.Add(wait)
		}
		return
	}
	code := f.CodeText()
	m.Refusals = append(m.Refusals, Refusal{code, f.At.Sub(m.Tries[len(m.Tries)-1].At)})
	if slices.Contains([]string{"overloaded", "unavailable", "unknown", "limited", "internal"}, code) {
		v.retries = append(v.retries, retry{at: f.At.Add(wait), letter: m})
	} else {
		v.person.answered(m)
	}
}

// letter finds a message of this person by its id. mu is held.
func (p *Person) letter(id string) *Letter {
	n, err := strconv.Atoi(id[strings.LastIndexByte(id, '-')+1:])
	if err != nil || n < 1 || n > len(p.sent) || p.sent[n-1].ID != id {
		return nil
	}
	return p.sent[n-1]
}

// answered takes a message off those that wait. mu is held.
func (p *Person) answered(m *Letter) {
	if i := slices.Index(p.waiting, m); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
}

// speak sends what is due, and returns when something will be.
func (v *visit) speak() time.Duration {
	p := v.person
	now := time.Now()
	due := now.Add(time.Hour)
	if !v.registered {
		if v.again.IsZero() {
			return time.Until(due)
		}
		if !v.again.After(now) {
			_ = v.register() // a failure is the end of the connection, which run sees
			return time.Until(due)
		}
		return time.Until(v.again)
	}
	if v.beat > 0 {
		if !v.beats.After(now) {
			_ = v.client.Write(object("heartbeat", nil))
			v.beats = now.Add(v.beat)
		}
		due = v.beats
	}
	rest := v.retries[:0]
	for _, r := range v.retries {
		if r.at.After(now) {
			rest = append(rest, r)
			due = earlier(due, r.at)
			continue
		}
		v.send(r.letter)
	}
	v.retries = rest
	for {
		m, at := p.compose(now)
		if m == nil {
			return max(0, time.Until(earlier(due, at)))
		}
		v.send(m)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}

// compose writes the next message if one is due and the window allows it; otherwise it says when one will be, or zero
// when that depends on an answer.
func (p *Person) compose(now time.Time) (*Letter, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.talk.To) == 0 || len(p.waiting) >= p.talk.Window {
		return nil, time.Time{}
	}
	if p.talk.Rate > 0 {
		if p.next.After(now) {
			return nil, p.next
		}
		// Who was held up speaks on at the rate, and doesn't make up for it in a burst.
		p.next = p.next.Add(time.Duration(float64(time.Second) / p.talk.Rate))
		if p.next.Before(now) {
			p.next = now
		}
	}
	n := len(p.sent) + 1
	number := strconv.Itoa(n)
	m := &Letter{ID: p.Name + "-" + number, From: p.Name, To: p.talk.To[n%len(p.talk.To)], Content: number, N: n}
	if p.talk.Pad > 0 {
		m.Content = `"` + number + strings.Repeat(".", p.talk.Pad) + `"`
	}
	p.sent, p.waiting = append(p.sent, m), append(p.waiting, m)
	if p.talk.Count--; p.talk.Count == 0 {
		p.talk = Talk{}
	}
	return m, time.Time{}
}

// send sends a letter, for the first time or again.
func (v *visit) send(m *Letter) {
	p := v.person
	p.mu.Lock()
	answered := !slices.Contains(p.waiting, m)
	if !answered {
		m.Tries = append(m.Tries, Try{At: time.Now(), Conn: v.conn})
	}
	p.mu.Unlock()
	if !answered {
		// A failure is the end of the connection, which run sees.
		_ = v.client.Write(object("message", []any{"id", m.ID, "to", m.To, "content", json.RawMessage(m.Content)}))
	}
}
