//go:build !secondpass

package gatewaytest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgregory.net/rapid"
)

// faultsOf says what can be done to each kind of Redis without a new one for the next run. The embedded one has no permissions and no history
// line; sentinels must not wonder about their replicas.
var faultsOf = map[Kind][]string{
	Embedded:   {"kill", "flush", "trim"},
	Standalone: {"kill", "flush", "trim", "mute", "roll", "lose"},
	Cluster:    {"kill", "flush", "trim", "mute", "roll", "lose"},
	Sentinel:   {"kill", "flush", "trim", "mute"},
}

// fault breaks something, or mends what is broken.
func (w *model) fault(t *rapid.T) {
	if w.muted && rapid.Bool().Draw(t, "unmute") {
		w.did("redis unmute")
		w.must(w.unmute())
		if len(w.clients) > 0 && rapid.Bool().Draw(t, "at once") {
			w.send(t) // what was missed is read while this arrives
		}
		return
	}
	if !w.muted && !w.mayKill() && rapid.Bool().Draw(t, "restart") { // one that hears nothing would not be ready
		w.repairGateways()
		return
	}
	what := rapid.SampledFrom(faultsOf[w.redis.Kind]).Draw(t, "fault")
	w.prepare()
	switch what {
	case "kill":
		if !w.mayKill() {
			t.Skip("one has to be left")
		}
		w.kill(w.running())
	case "flush":
		w.did("FLUSHALL")
		w.must(w.flush())
		if len(w.clients) > 0 && rapid.Bool().Draw(t, "at once") {
			w.send(t) // before the gateways know
		}
		if rapid.Bool().Draw(t, "counted") {
			w.settledForSure()
			w.must(w.counted(w.users...))
		}
	case "trim":
		w.must(w.trim(w.user("whose")))
	case "mute":
		w.did("redis mute")
		w.muted = true
		w.must(w.redis.Mute())
	case "roll":
		w.did("another history line")
		w.must(w.anotherLine(false))
	case "lose":
		w.did("another history line, and nothing of the one before")
		w.must(w.anotherLine(true))
	}
}

// prepare has everything arrive that was sent: what a fault may do to what is still under way is not for this model.
func (w *model) prepare() {
	w.settledForSure()
	for _, u := range w.users {
		w.must(w.kept(u))
	}
	w.must(w.counted(w.broken...)) // a gateway that has removed a connection has read it to its end
	w.broken = nil
}

func (w *model) mayKill() bool {
	return !slices.ContainsFunc(w.gateways, func(g *modelGateway) bool { return !g.Running() })
}

// kill ends a gateway (SIGKILL), and returns when Redis has seen the end of its subscriptions: from then on nobody may say that it was reached.
func (w *model) kill(g *modelGateway) {
	w.did("kill -9 %s", g.Name)
	g.Kill()
	for _, c := range slices.Clone(w.clients) {
		if c.gateway != g {
			continue
		}
		_, err := c.WaitEnd(Deadline)
		w.must(err)
		w.must(c.take())
		c.user.killed++
		c.user.until = time.Now().Add(modelGhosts)
		w.remove(c)
	}
	for _, u := range w.users {
		for _, cursor := range u.cursors {
			cursor.lastWordLost()
		}
	}
	if g.id != "" {
		w.must(Poll(Deadline, func() error { return w.unheard(g.id) }))
	}
}

// unheard says whether Redis knows of no subscription of a gateway.
func (w *model) unheard(id string) error {
	command := "CHANNELS"
	if w.redis.Kind == Cluster {
		command = "SHARDCHANNELS"
	}
	nodes, err := w.redis.Masters()
	if err != nil {
		return err
	}
	answers := []any{}
	if len(nodes) == 0 {
		answer, err := w.redis.Do("PUBSUB", command, "*"+id)
		if err != nil {
			return err
		}
		answers = append(answers, answer)
	}
	for _, n := range nodes {
		answer, err := n.Do("PUBSUB", command, "*"+id)
		if err != nil {
			return err
		}
		answers = append(answers, answer)
	}
	if s := fmt.Sprint(answers...); strings.Contains(s, id) {
		return fmt.Errorf("still subscribed: %s", s)
	}
	return nil
}

func (w *model) repairGateways() {
	for _, g := range w.gateways {
		if !g.Running() {
			w.did("restart %s", g.Name)
			g.id = ""
			w.must(g.Restart())
		}
	}
}

func (w *model) repairAll() {
	if w.muted {
		w.did("redis unmute")
		w.must(w.unmute())
	}
	w.repairGateways()
}

func (w *model) unmute() error {
	w.muted = false
	// A subscription that brought nothing for four pulses is made anew, which takes up to another half second.
	w.shaky = time.Now().Add(3 * time.Second)
	if w.redis.Kind == Cluster {
		w.shaky = time.Now().Add(8 * time.Second)
	}
	return w.redis.Unmute()
}

// flush deletes everything in Redis.
func (w *model) flush() error {
	for _, u := range w.users {
		u.log.begin()
		clear(u.cursors)
		u.unsure = true
	}
	defer func() { w.quiet = time.Now().Add(modelQuiet) }()
	return w.redis.FlushAll()
}

// trim drops the oldest messages of a user, as retention does.
func (w *model) trim(u *modelUser) error {
	life := u.log.now()
	first := rapid.Uint64Range(life.first, life.top()+1).Draw(w.t, "first")
	w.did("trim %s to %d", u.name, first)
	keys, err := w.keys("s", u)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := w.redis.Client().XTrimMinID(context.Background(), k, strconv.FormatUint(first, 10)).Err(); err != nil {
			return err
		}
	}
	life.first = first
	return nil
}

// anotherLine has Redis tell another history, as after a restart or a failover; losing: one that remembers nothing. Every gateway stores
// again what it had acknowledged lately and is not there, before anything newer.
func (w *model) anotherLine(losing bool) error {
	began := time.Now()
	if losing {
		if err := w.flush(); err != nil {
			return err
		}
	} else {
		for _, u := range w.users {
			u.log.roll()
		}
	}
	nodes, err := w.redis.Masters()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if _, err := n.Do("DEBUG", "CHANGE-REPL-ID"); err != nil {
			return err
		}
	}
	w.quiet = time.Now().Add(modelQuiet)
	for _, u := range w.users {
		if err := w.healed(u, began); err != nil {
			return err
		}
	}
	return nil
}

const (
	// healsFor is the youngest age at which a gateway may have forgotten what it had acknowledged, less a second for a busy machine.
	healsFor = 9 * time.Second
)

// healed finds out what was stored again of what a user's log had lost, which may only be what was once acknowledged, each message once,
// the messages that one gateway had acknowledged in their order; and all of it that is young enough. A message through each gateway comes
// behind everything that this gateway stores again.
func (w *model) healed(u *modelUser, began time.Time) error {
	life := u.log.now()
	lost := make(map[modelID]*modelMessage)
	for _, from := range w.users {
		for _, s := range from.sent {
			if s.to == u && life.known[s.modelID] == nil {
				if before := lost[s.modelID]; before == nil || !before.lastAcked().After(s.lastAcked()) {
					lost[s.modelID] = s.modelMessage
				}
			}
		}
	}
	// Also when nothing is lost: an idle gateway that hears of the new line later would store again what is lost by then.
	probes := make(map[string]*Process) // by content
	var reader *Client
	for _, g := range w.gateways {
		if !g.Running() {
			continue
		}
		c, err := Dial(g.WS(), nil)
		if err != nil {
			return err
		}
		defer c.Cut()
		c.Name, reader = "probe", c
		u.leaving++
		w.changed(u)
		f, err := c.Register(u.name)
		if err != nil {
			return err
		}
		if err := u.log.learn(f.Epoch); err != nil {
			return failure{"registered with a wrong epoch", err.Error()}
		}
		g.id = f.GatewayID
		id, content := w.id(), w.content()
		if _, err := c.Send(u.name, json.RawMessage(content), id); err != nil {
			return err
		}
		if f, err = c.Settle(id, modelRepair); err != nil {
			return err
		}
		probes[id] = g.Process
		lost[modelID{u.name, id}] = &modelMessage{modelID: modelID{u.name, id}, content: content, ack: f}
	}
	found, err := w.above(u, reader)
	if err != nil {
		return err
	}
	return w.adopt(u, found, lost, probes, began)
}

// above reads what the log has that the model doesn't know.
func (w *model) above(u *modelUser, c *Client) (found []Frame, err error) {
	life := u.log.now()
	for {
		after := life.top() + uint64(len(found))
		if err := c.Write(object("history", []any{"after", after})); err != nil {
			return nil, err
		}
		f, err := c.Next("history", Deadline)
		if err != nil {
			return nil, err
		}
		var page struct{ Messages []json.RawMessage }
		if err := json.Unmarshal(f.Raw, &page); err != nil {
			return nil, err
		}
		if len(page.Messages) == 0 {
			return found, nil
		}
		for _, raw := range page.Messages {
			m, err := parseFrame(raw)
			if err != nil {
				return nil, err
			}
			if after++; m.Offset != after || m.Epoch != life.epoch() {
				return nil, failure{"what was stored again is at a wrong position", m.String()}
			}
			found = append(found, m)
		}
	}
}

// adopt holds what was stored again against what was lost, and enters it in the model.
func (w *model) adopt(u *modelUser, found []Frame, lost map[modelID]*modelMessage, probes map[string]*Process, began time.Time) error {
	life := u.log.now()
	last := make(map[*Process]time.Time) // of what one gateway alone had acknowledged
	passed := make(map[*Process]bool)    // its probe was seen
	stored := make(map[modelID]bool)
	for _, f := range found {
		id := modelID{f.Sender(), f.ID}
		m := lost[id]
		switch {
		case stored[id]:
			return failure{"stored again twice", f.String()}
		case m == nil:
			return failure{"stored again, and nobody had sent it", f.String()}
		}
		stored[id] = true
		again := &modelMessage{modelID: id, content: m.content, ack: Frame{Epoch: f.Epoch, Ts: m.ack.Ts}, acked: m.acked, twice: m.twice}
		if m.twice {
			again.ack.Ts = f.Ts // each time it was sent had its own, and it may be stored by another one now
		}
		if g := probes[f.ID]; g != nil {
			passed[g] = true
			again.ack = m.ack
			again.acked = []modelAck{{g, time.Now()}}
		}
		if len(m.acked) == 1 && !m.twice {
			by := m.acked[0]
			if passed[by.gateway] {
				return failure{"stored again behind something newer", f.String()}
			}
			if by.at.Before(last[by.gateway]) {
				return failure{"stored again in another order", f.String()}
			}
			last[by.gateway] = by.at
		}
		life.append(again)
		if err := sameMessage(f, u, again); err != nil {
			return failure{"stored again: " + err.Error(), f.String()}
		}
		for _, from := range w.users {
			if from.name == id.from {
				from.sent = append(from.sent, &modelSent{again, u})
			}
		}
	}
	for id, m := range lost {
		if stored[id] {
			continue
		}
		if probes[id.id] != nil {
			return failure{"a message that was acknowledged is not in the log", fmt.Sprint(m.ack)}
		}
		for _, by := range m.acked {
			if by.gateway.Running() && began.Sub(by.at) < healsFor-time.Since(began) {
				return failure{"acknowledged lately, and not stored again", fmt.Sprintf("%v, %v before", m.ack, began.Sub(by.at))}
			}
		}
	}
	w.did("%d messages to %s were stored again", len(found)-len(probes), u.name)
	return nil
}
