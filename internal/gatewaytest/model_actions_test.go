//go:build !secondpass

package gatewaytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"pgregory.net/rapid"
)

// running draws a gateway that is up.
func (w *model) running() *modelGateway {
	g := w.gateways[rapid.IntRange(0, len(w.gateways)-1).Draw(w.t, "gateway")]
	if !g.Running() {
		g = w.gateways[0]
	}
	if !g.Running() {
		g = w.gateways[1]
	}
	return g
}

func (w *model) user(what string) *modelUser {
	return w.users[rapid.IntRange(0, len(w.users)-1).Draw(w.t, what)]
}

// someone draws a client; there is one nearly always.
func (w *model) someone(t *rapid.T) *modelClient {
	if len(w.clients) == 0 {
		t.Skip("nobody is connected")
	}
	return w.clients[rapid.IntRange(0, len(w.clients)-1).Draw(t, "client")]
}

// connect brings a user in: a plain client, a device, or one with some position. At times somebody writes to him at that very moment.
func (w *model) connect(t *rapid.T) {
	u := w.user("user")
	if len(w.of(u)) >= 2 {
		t.Skip("two are enough")
	}
	device := rapid.SampledFrom([]string{"", "", "phone", "tablet"}).Draw(t, "device")
	g, resume := w.running(), w.somePosition(u)
	if len(w.clients) == 0 || rapid.Bool().Draw(t, "in peace") {
		w.must(w.register(u, g, device, resume, nil))
		return
	}
	from := w.someone(t)
	if from.user == u && from.device == device && device != "" {
		t.Skip("who is replaced can't send")
	}
	w.must(w.greeted(u, from, rapid.IntRange(1, 9).Draw(t, "messages"), func(send func()) error {
		return w.register(u, g, device, resume, send)
	}))
}

// greeted has somebody send messages to a user while he comes. Their order is known, so they are in the model before they are acknowledged.
func (w *model) greeted(u *modelUser, from *modelClient, messages int, come func(send func()) error) error {
	var all []*modelMessage
	for range messages {
		all = append(all, &modelMessage{modelID: modelID{from.user.name, w.id()}, content: w.content()})
	}
	w.did("%s sends %d messages to %s as he comes, the first is %s", from.Name, messages, u.name, all[0].id)
	least, most := w.held(u)
	var sending sync.WaitGroup
	var lost error
	err := come(func() {
		for _, m := range all {
			u.log.now().append(m)
			from.user.sent = append(from.user.sent, &modelSent{m, u})
		}
		sending.Go(func() {
			for _, m := range all {
				lost = errors.Join(lost, from.write(m.id, u, m.content))
			}
		})
	})
	sending.Wait()
	if err := errors.Join(err, lost); err != nil {
		return err
	}
	_, now := w.held(u)
	for _, m := range all {
		f, err := from.Ack(m.id, Deadline)
		if err != nil {
			return failure{"a message is not answered", err.Error()}
		}
		if err := u.log.learn(f.Epoch); err != nil {
			return failure{"an ack of a wrong epoch", fmt.Sprintf("%v: %v", err, f)}
		}
		w.acknowledged(m, f, from.gateway, least, max(most, now))
	}
	return nil
}

// somePosition draws what a client says it has; nil: nothing.
func (w *model) somePosition(u *modelUser) *modelPosition {
	life := u.log.now()
	draw := func(least, most uint64) uint64 { return rapid.Uint64Range(least, most).Draw(w.t, "offset") }
	switch how := rapid.SampledFrom([]string{"no", "told", "told", "everything", "ahead", "ahead of an epoch", "foreign"}).Draw(w.t, "resume"); how {
	case "told":
		if len(u.places) > 0 {
			p := u.places[rapid.IntRange(0, len(u.places)-1).Draw(w.t, "place")]
			return &modelPosition{p.Epoch, draw(0, p.Offset)}
		}
	case "everything":
		return &modelPosition{}
	case "ahead":
		if life.epoch() != "" {
			return &modelPosition{life.epoch(), draw(life.top()+1, life.top()+3)}
		}
	case "ahead of an epoch":
		if n := len(life.eras); n > 1 {
			e := life.eras[rapid.IntRange(0, n-2).Draw(w.t, "era")]
			return &modelPosition{e.epoch, draw(e.end, e.end+3)}
		}
	case "foreign":
		return &modelPosition{"foreign", draw(0, 9)}
	}
	return nil
}

// register connects a client and holds the answer, and the gaps behind it, against what the position is worth. What is sent meanwhile, by
// send, it finds in the log or gets as it arrives.
func (w *model) register(u *modelUser, g *modelGateway, device string, resume *modelPosition, send func()) error {
	w.made++
	w.did("%s %q connects to %s, resume %v", u.name, device, g.Name, resume)
	if device != "" {
		if err := w.kept(u); err != nil {
			return err
		}
	}
	client, err := Dial(g.WS(), nil)
	if err != nil {
		return err
	}
	client.Name = u.name + "/" + strconv.Itoa(w.made)
	c := &modelClient{Client: client, user: u, gateway: g, device: device, signals: make(map[string]bool)}
	before := w.of(u)
	w.clients = append(w.clients, c)
	w.changed(u)
	var fields []any
	if device != "" {
		fields = append(fields, "deviceId", device)
	}
	if resume != nil {
		fields = append(fields, "resume", *resume)
	}
	least := u.log.now().top()
	if send != nil {
		send()
	}
	f, err := c.Register(u.name, fields...)
	if err != nil {
		return failure{"a register is not answered", err.Error()}
	}
	g.id = f.GatewayID
	if err := u.log.learn(f.Epoch); err != nil {
		return failure{"registered with a wrong epoch", fmt.Sprintf("%v: %v", err, f)}
	}
	life := *u.log.now() // as it was when the gateway looked
	life.messages = life.messages[:min(max(least, f.Top), life.top())]
	var start uint64
	var right bool
	for _, at := range starts(u, &life, device, resume) {
		if start, c.opening = life.resume(at); at == nowhere && device != "" && resume == nil {
			start = max(life.first-1, life.top()-min(life.top(), 200))
		}
		if right = f.Offset == start && f.Recovered == (len(c.opening) == 0); right {
			break
		}
	}
	if !right || f.First != life.first || f.Top != life.top() || f.UserID != u.name {
		return failure{"registered at a wrong position", fmt.Sprintf("want offset %d, first %d, top %d, gaps %v: %v", start, life.first, life.top(), c.opening, f)}
	}
	c.life, c.era, c.offset = len(u.log.lives)-1, len(life.eras)-1, start
	for _, old := range before {
		if old.device == device && device != "" {
			if err := w.replaced(old); err != nil {
				return err
			}
		}
	}
	return nil
}

// starts are the positions that a client may be taken to have.
func starts(u *modelUser, life *modelLife, device string, resume *modelPosition) []modelPosition {
	switch cursor := u.cursors[device]; {
	case resume != nil:
		return []modelPosition{*resume}
	case cursor != nil:
		return cursor.last
	case device != "":
		return []modelPosition{nowhere}
	}
	return []modelPosition{life.at(life.top())}
}

// replaced waits for the end of a connection whose device has come again. Its gateway is told, or finds out when it refreshes.
func (w *model) replaced(c *modelClient) error {
	if w.muted || time.Now().Before(w.shaky) {
		_ = c.Write(object("heartbeat", nil)) // it may be closed already
	}
	ended, err := c.WaitEnd(modelRepair)
	if err != nil {
		return failure{"a device that came again is not closed", err.Error()}
	}
	if ended.Code != 4502 || ended.Closing == nil {
		return failure{"a device that came again is closed for another reason", ended.String()}
	}
	c.user.leaving++
	err = c.take()
	w.remove(c)
	return err
}

// leave ends a connection, with a word or without.
func (w *model) leave(t *rapid.T) {
	c := w.someone(t)
	c.user.leaving++
	if rapid.Bool().Draw(t, "politely") {
		w.did("%s closes", c.Name)
		w.must(c.Close())
		w.want("a goodbye is answered by something else", c.Ended().Code == 1000, "%v", c.Ended())
	} else {
		w.did("%s is cut", c.Name)
		c.Cut()
	}
	w.must(c.take())
	w.remove(c)
	if rapid.Bool().Draw(t, "counted") {
		w.must(w.counted(c.user))
	}
}

// received says what a device has kept, as it should or not: lower than before, beyond the top, of an epoch that never was. Several may
// be said in one breath.
func (w *model) received(t *rapid.T) {
	c := w.someone(t)
	u := c.user
	life := u.log.now()
	for range rapid.IntRange(1, 3).Draw(t, "words") {
		at := modelPosition{c.epoch(), c.offset}
		switch rapid.SampledFrom([]string{"all", "some", "ahead", "foreign"}).Draw(t, "kept") {
		case "some":
			at.Offset = rapid.Uint64Range(0, c.offset).Draw(t, "offset")
		case "ahead":
			at.Offset += 1000 // which it never reaches: when it is judged is not told
		case "foreign":
			at.Epoch = "foreign"
		}
		w.did("%s %q received %v", c.Name, c.device, at)
		w.must(c.Write(object("received", []any{"epoch", at.Epoch, "offset", at.Offset})))
		if c.device == "" {
			continue
		}
		if u.cursors[c.device] == nil {
			u.cursors[c.device] = newModelCursor()
		}
		u.cursors[c.device].hear(life, at)
	}
	cursor := u.cursors[c.device]
	if cursor == nil || rapid.IntRange(0, 3).Draw(t, "and less") > 0 {
		return
	}
	w.must(w.kept(u))
	if at := cursor.last[0]; len(cursor.last) == 1 && at.Offset > 0 {
		at.Offset = rapid.Uint64Range(0, at.Offset-1).Draw(t, "offset")
		w.did("%s %q received %v, which is less than it had", c.Name, c.device, at)
		w.must(c.Write(object("received", []any{"epoch", at.Epoch, "offset", at.Offset})))
		cursor.hear(life, at)
	}
}

// history reads the own log: any page, forwards or backwards.
func (w *model) history(t *rapid.T) {
	c := w.someone(t)
	life := c.user.log.now()
	w.made++
	id := "h" + strconv.Itoa(w.made)
	fields := []any{"id", id}
	limit := uint64(50)
	if n := rapid.Uint64Range(0, 4).Draw(t, "limit"); n > 0 {
		limit = n
		fields = append(fields, "limit", n)
	}
	var epoch string
	var after, before *uint64
	offset := rapid.Uint64Range(0, life.top()+2).Draw(t, "offset")
	switch rapid.SampledFrom([]string{"newest", "after", "after", "before"}).Draw(t, "direction") {
	case "after":
		after = &offset
		if p := w.somePosition(c.user); p != nil && p.Epoch != "" {
			epoch, *after = p.Epoch, p.Offset
			fields = append(fields, "epoch", epoch)
		}
		fields = append(fields, "after", offset)
	case "before":
		before = &offset
		fields = append(fields, "before", offset)
	}
	w.did("%s asks for history %v", c.Name, fields)
	w.must(c.Write(object("history", fields)))
	f, err := c.Next("history", Deadline)
	w.must(err)
	if err := c.user.log.learn(f.Epoch); err != nil {
		w.must(failure{"history of a wrong epoch", fmt.Sprintf("%v: %v", err, f)})
	}
	want, more := life.page(epoch, after, before, limit)
	var got struct {
		More     bool
		Messages []json.RawMessage
	}
	w.must(json.Unmarshal(f.Raw, &got))
	w.want("history of another size", f.ID == id && f.First == life.first && f.Top == life.top() && got.More == more && len(got.Messages) == len(want),
		"want %d messages, more %v, first %d, top %d: %v", len(want), more, life.first, life.top(), f)
	for i, raw := range got.Messages {
		m, err := parseFrame(raw)
		w.must(err)
		w.want("history at another position", m.Type == "message" && m.Epoch == life.epoch() && m.Offset == want[i].offset, "%v, want offset %d", m, want[i].offset)
		if err := sameMessage(m, c.user, want[i]); err != nil {
			w.must(failure{"history: " + err.Error(), m.String()})
		}
	}
}

// heartbeat is answered, and Redis is there.
func (w *model) heartbeat(t *rapid.T) {
	c := w.someone(t)
	w.did("%s sends a heartbeat", c.Name)
	w.must(Poll(modelRepair, func() error {
		f, err := c.Heartbeat(Deadline)
		if err != nil {
			return stop{failure{"a heartbeat is not answered", err.Error()}}
		}
		if f.Degraded {
			return failure{"degraded although Redis is there", f.String()}
		}
		return nil
	}))
}

// presence tells of each user how many connections it has, and no version stands for two states. Of who isn't found it may say for a while
// that it doesn't know.
func (w *model) presence(t *rapid.T) {
	c := w.someone(t)
	w.did("%s asks who is there", c.Name)
	var names []string
	for _, u := range w.users {
		names = append(names, u.name)
	}
	w.must(Poll(modelRepair, func() error {
		states, err := c.Presence(names...)
		if err != nil {
			return stop{err}
		}
		for _, u := range w.users {
			if err := w.judge(u, states[u.name]); err != nil {
				return err
			}
		}
		return nil
	}))
}

// judge holds a state of presence against what the model knows.
func (w *model) judge(u *modelUser, s UserState) error {
	least, most := len(w.of(u)), len(w.of(u))+u.leaving
	if u.unsure {
		least = 0
	}
	if time.Now().Before(u.until) {
		most += u.killed
	}
	said := fmt.Sprintf("%s: %+v, want %d to %d devices", u.name, s, least, most)
	if s.State == "unknown" && s.Devices == 0 && s.Version == "" && least == 0 {
		if time.Now().Before(w.quiet) {
			return nil
		}
		return failure{"presence stays unknown", said} // a gateway that was slow says so too, and looks again
	}
	if online := s.State == "online" && s.Devices > 0; !online && (s.State != "offline" || s.Devices != 0) || s.Devices < least || s.Devices > most {
		return stop{failure{"presence is wrong", said}}
	}
	if s.Version == "" {
		return nil
	}
	if before, ok := w.versions[u.name+" "+s.Version]; ok && before != s.State {
		return stop{failure{"a version of presence stands for two states", fmt.Sprintf("%s: %+v, it was %s", u.name, s, before)}}
	}
	w.versions[u.name+" "+s.Version] = s.State
	return nil
}
