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
	outside    map[string]bool // rooms of the person that this connection has not joined as yet
	again      time.Time       // when to register again, or to join those rooms; zero: not at all
	beat       time.Duration   // how often to send a heartbeat
	beats      time.Time       // when the next is due
	retries    []retry
}

type retry struct {
	at     time.Time
	letter *Letter
}

func (v *visit) register() error {
	p := v.person
	fields := append([]any{"userId", p.Name}, p.fields...)
	if at := p.position(""); at != nil {
		fields = append(fields, "resume", at)
	}
	if len(p.rooms) > 0 {
		rooms := make(map[string]*Position, len(p.rooms))
		for _, room := range p.rooms {
			rooms[room] = p.position(room)
		}
		fields = append(fields, "rooms", rooms)
	}
	v.again = time.Time{}
	return v.client.Write(object("register", fields))
}

// join asks once more for the rooms that could not be joined.
func (v *visit) join() error {
	v.again = time.Time{}
	for room := range v.outside {
		fields := []any{"id", "join-" + room, "room", room}
		if at := v.person.position(room); at != nil {
			fields = append(fields, "resume", at)
		}
		if err := v.client.Write(object("join", fields)); err != nil {
			return err
		}
	}
	return nil
}

// position is where the person goes on in a log; nil: it doesn't say.
func (p *Person) position(room string) *Position {
	p.mu.Lock()
	defer p.mu.Unlock()
	if in := p.logs[room]; in.known && !p.byCursor {
		at := in.at
		return &at
	}
	return nil
}

// keep tells the gateway up to where this device has everything.
func (v *visit) keep() {
	p := v.person
	var kept []map[string]any
	p.mu.Lock()
	for room, in := range p.logs {
		if !in.known || v.outside[room] {
			continue
		}
		fields := []any{"epoch", in.at.Epoch, "offset", in.at.Offset}
		if room != "" {
			fields = append(fields, "room", room)
		}
		kept = append(kept, object("received", fields))
	}
	p.mu.Unlock()
	for _, frame := range kept {
		_ = v.client.Write(frame) // a failure is the end of the connection, which run sees
	}
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
		p.stays = append(p.stays, Stay{From: f.At, Gateway: p.stays[n-1].Gateway})
	}
	v.lastHeard = f.At
	if h, ok := hear(f, v.conn); ok && p.logs[h.Room] != nil {
		p.heard = append(p.heard, h)
		if became, _ := p.logs[h.Room].take(&h); became == shown {
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
	case "joined":
		delete(v.outside, f.Room)
	case "ack":
		if m := p.letter(f.ID); m != nil {
			m.Acks = append(m.Acks, Ack{At: f.At, Conn: v.conn, Status: f.Status, Pos: Position{f.Epoch, f.Offset}})
			p.answered(m)
		}
	case "error":
		v.refused(f)
	}
	if p.client == v.client {
		p.settled = v.registered && len(v.outside) == 0
	}
}

// refused takes an error. mu is held.
func (v *visit) refused(f *Frame) {
	wait := time.Duration(max(f.Retry, 10)) * time.Millisecond
	m := v.person.letter(f.ID)
	if m == nil {
		if !v.registered || len(v.outside) > 0 {
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
			if p.byCursor {
				v.keep()
			}
			v.beats = now.Add(v.beat)
		}
		due = v.beats
	}
	if len(v.outside) > 0 {
		// It speaks when it is in all its rooms: nothing it has to say is out of turn then.
		if !v.again.IsZero() && !v.again.After(now) {
			_ = v.join()
		}
		return max(0, time.Until(earlier(due, v.again)))
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
	m := &Letter{
		ID: label(p.Name, p.Device) + "-" + number, From: p.Name, Device: p.Device, To: p.talk.To[n%len(p.talk.To)], Content: number, N: n,
		Copy: p.talk.Copies > 0 && p.dice.IntN(p.talk.Copies) == 0,
	}
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
		_ = v.client.Write(object("message", m.fields()))
	}
}

// fields are those of the frame a letter is sent by.
func (m *Letter) fields() []any {
	fields := []any{"id", m.ID, "content", json.RawMessage(m.Content)}
	if room, ok := strings.CutPrefix(m.To, roomPrefix); ok {
		fields = append(fields, "room", room)
	} else {
		fields = append(fields, "to", m.To)
	}
	if m.Copy {
		fields = append(fields, "copy", true)
	}
	return fields
}
