//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"pgregory.net/rapid"
)

// content makes a content that nobody sent before; its number must arrive as it is written.
func (w *model) content() string {
	w.made++
	return fmt.Sprintf(`{"n":%d.50}`, w.made)
}

func (w *model) id() string {
	w.made++
	return "m" + strconv.Itoa(w.made)
}

// write sends a message as it stands.
func (c *modelClient) write(id string, to *modelUser, content string, fields ...any) error {
	all := append([]any{"to", to.name, "content", json.RawMessage(content)}, fields...)
	if id != "" {
		all = append(all, "id", id)
	}
	return c.Write(object("message", all))
}

// send sends some messages in a row to some users: to others, to oneself, to who is away; with an id, or once without.
func (w *model) send(t *rapid.T) {
	c := w.someone(t)
	type one struct {
		id, content string
		to          *modelUser
	}
	var all []one
	if rapid.IntRange(0, 4).Draw(t, "nameless") == 0 {
		all = append(all, one{"", w.content(), w.user("to")})
	} else {
		for range rapid.IntRange(1, 4).Draw(t, "messages") {
			all = append(all, one{w.id(), w.content(), w.user("to")})
		}
	}
	for _, m := range all {
		w.did("%s sends %q to %s", c.Name, m.id, m.to.name)
		w.must(c.write(m.id, m.to, m.content))
	}
	for _, m := range all {
		var f Frame
		var err error
		if m.id == "" {
			f, err = c.Next("ack", Deadline)
		} else {
			f, err = c.Ack(m.id, Deadline)
		}
		if err != nil {
			w.must(failure{"a message is not answered", err.Error()})
		}
		w.stored(c.user, m.to, f, m.content, c.gateway)
	}
}

// stored holds an ack of a new message against the model, and enters the message.
func (w *model) stored(from, to *modelUser, f Frame, content string, by *modelGateway) {
	life := to.log.now()
	w.want("a message is refused", f.Type == "ack", "%v", f)
	if err := to.log.learn(f.Epoch); err != nil {
		w.must(failure{"an ack of a wrong epoch", fmt.Sprintf("%v: %v", err, f)})
	}
	m := &modelMessage{modelID: modelID{from.name, f.ID}, content: content}
	w.want("an id twice", f.ID != "" && life.known[m.modelID] == nil, "%v", f)
	life.append(m)
	from.sent = append(from.sent, &modelSent{m, to})
	least, most := w.held(to)
	w.acknowledged(m, f, by, least, most)
}

// acknowledged holds the first answer that is known of a message against the model.
func (w *model) acknowledged(m *modelMessage, f Frame, by *modelGateway, least, most int) {
	w.want("a message is refused", f.Type == "ack", "%v", f)
	w.want("an ack of a wrong offset", f.Offset == m.offset, "want %d: %v", m.offset, f)
	routed := f.Status == "routed" && f.DeviceCount() > 0
	w.want("an ack of a wrong status", routed || f.Status == "stored" && f.Devices == nil, "%v", f)
	w.want("an ack of a wrong number of devices", f.DeviceCount() >= least && f.DeviceCount() <= most, "want %d to %d: %v", least, most, f)
	m.ack = f
	m.acked = append(m.acked, modelAck{by.Process, time.Now()})
}

// mine draws a message that a client's user sent, and that the log still knows.
func (w *model) mine(t *rapid.T, c *modelClient) *modelSent {
	var known []*modelSent
	for _, s := range c.user.sent {
		if s.to.log.now().known[s.modelID] == s.modelMessage {
			known = append(known, s)
		}
	}
	if len(known) == 0 {
		t.Skip("nothing was sent")
	}
	return known[rapid.IntRange(0, len(known)-1).Draw(t, "message")]
}

// repeat sends a message again, by whichever connection: the first answer again, and nobody gets it.
func (w *model) repeat(t *rapid.T) {
	c := w.someone(t)
	s := w.mine(t, c)
	w.did("%s repeats %s to %s", c.Name, s.id, s.to.name)
	s.twice = true
	w.must(c.write(s.id, s.to, s.content))
	f, err := c.Ack(s.id, Deadline)
	w.must(err)
	if s.ack.Raw == nil { // it was stored again by a gateway, and nobody was told
		w.want("a repeat is answered otherwise", f.Epoch == s.ack.Epoch && f.Ts == s.ack.Ts, "%v", f)
		w.acknowledged(s.modelMessage, f, c.gateway, 0, 99)
		return
	}
	w.want("a repeat is answered otherwise", string(f.Raw) == string(s.ack.Raw), "%v, the first answer was %v", f, s.ack)
	s.acked = append(s.acked, modelAck{c.gateway.Process, time.Now()})
}

// conflict uses an id for another content.
func (w *model) conflict(t *rapid.T) {
	c := w.someone(t)
	s := w.mine(t, c)
	w.did("%s says something else by the id %s", c.Name, s.id)
	w.must(c.write(s.id, s.to, w.content()))
	f, err := c.Ack(s.id, Deadline)
	w.must(err)
	w.want("an id is used for two contents", f.Type == "error" && f.CodeText() == "conflict", "%v", f)
}

// signal sends an ephemeral message: once at most, to whoever is there. Gateways know who is there from a moment ago; when nobody comes or
// goes it is exact soon, and then everybody gets it.
func (w *model) signal(t *rapid.T) {
	c, to := w.someone(t), w.user("to")
	exact := rapid.IntRange(0, 5).Draw(t, "exact") == 0 && !w.muted
	if exact {
		w.must(w.counted(to))
	}
	err := Poll(modelRepair, func() error {
		m := &modelMessage{modelID: modelID{c.user.name, w.id()}, content: w.content()}
		to.signals[m.id] = m
		w.did("%s signals %s to %s", c.Name, m.id, to.name)
		if err := c.write(m.id, to, m.content, "ephemeral", true); err != nil {
			return stop{err}
		}
		f, err := c.Ack(m.id, Deadline)
		if err != nil {
			return stop{failure{"a signal is not answered", err.Error()}}
		}
		if (w.muted || time.Now().Before(w.shaky)) && f.CodeText() == "unavailable" {
			if exact {
				return failure{"a signal doesn't find anybody", f.String()}
			}
			return nil
		}
		most := len(w.of(to)) + to.leaving
		for _, n := range to.counts {
			if time.Now().Before(n.until) {
				most = max(most, n.count)
			}
		}
		n := f.DeviceCount()
		if f.Type != "ack" || f.Epoch != "" || f.Offset != 0 || n > most || (f.Status != "routed" || n == 0) && (f.Status != "dropped" || f.Devices != nil) {
			return stop{failure{"a signal is answered otherwise", fmt.Sprintf("want at most %d devices: %v", most, f)}}
		}
		if !exact {
			return nil
		}
		if n != len(w.of(to)) {
			return failure{"a signal doesn't find everybody", f.String()}
		}
		for _, c := range w.of(to) {
			// One that only just came is not live yet, and doesn't get it: but the next one.
			const lost = "a signal doesn't arrive"
			var f failure
			if err := c.await(time.Second, lost, func() bool { return c.signals[m.id] }); errors.As(err, &f) && f.what == lost {
				return f
			} else if err != nil {
				return stop{err}
			}
		}
		return nil
	})
	w.must(err)
}

// breakOff sends a message and loses the connection, or the gateway, before the answer. Nobody knows whether it was stored; by the same id,
// through whichever gateway, it is stored once.
func (w *model) breakOff(t *rapid.T) {
	c, to := w.someone(t), w.user("to")
	kill := w.mayKill() && rapid.IntRange(0, 3).Draw(t, "kill") == 0
	if kill {
		w.prepare()
	}
	u := c.user
	m := &modelMessage{modelID: modelID{u.name, w.id()}, content: w.content(), twice: true}
	w.did("%s sends %s to %s and breaks off, killing %v", c.Name, m.id, to.name, kill)
	w.must(c.write(m.id, to, m.content))
	// It will be stored, in the end; before it is acknowledged its receivers may have it.
	_, most := w.held(to)
	to.log.now().append(m)
	u.sent = append(u.sent, &modelSent{m, to})
	if kill {
		w.kill(c.gateway)
	} else {
		u.leaving++
		w.broken = append(w.broken, u)
		c.Cut()
		w.must(c.take())
		w.remove(c)
	}
	w.must(w.insist(u, to, m, most))
}

// insist has a message stored whose fate is not known.
func (w *model) insist(u, to *modelUser, m *modelMessage, most int) error {
	g := w.running()
	c, err := Dial(g.WS(), nil)
	if err != nil {
		return err
	}
	defer c.Cut()
	c.Name = u.name + "/insists"
	w.changed(u)
	u.leaving++ // while it is here, and as it leaves
	f, err := c.Register(u.name)
	if err != nil {
		return failure{"a register is not answered", err.Error()}
	}
	g.id = f.GatewayID
	if err := u.log.learn(f.Epoch); err != nil {
		return failure{"registered with a wrong epoch", fmt.Sprintf("%v: %v", err, f)}
	}
	if _, err := c.Send(to.name, json.RawMessage(m.content), m.id); err != nil {
		return err
	}
	if f, err = c.Settle(m.id, modelRepair); err != nil {
		return failure{"a message is not answered", err.Error()}
	}
	if err := to.log.learn(f.Epoch); err != nil {
		return failure{"an ack of a wrong epoch", fmt.Sprintf("%v: %v", err, f)}
	}
	if to == u {
		most++
	}
	w.acknowledged(m, f, g, 0, most)
	return nil
}
