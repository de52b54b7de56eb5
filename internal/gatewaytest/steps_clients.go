package gatewaytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

func onClient(do func(*Client) error) func(*scene, *args) error {
	return func(s *scene, a *args) error {
		c, err := s.client(a)
		if err == nil {
			err = do(c)
		}
		return errors.Join(err, a.done())
	}
}

func (s *scene) client(a *args) (*Client, error) {
	name, err := a.next("the client")
	if err != nil {
		return nil, err
	}
	c := s.clients[name]
	if c == nil {
		return nil, fmt.Errorf("no client is called %q", name)
	}
	return c, nil
}

// connect a alice [as=tab] [device=phone] [class=phone] [meta={…}] [resume={…}] [rooms={…}] [error CODE]: a client registers. It is called like its user, or
// as said. When a client has that name already, the older one is called tab.1, tab.2 and so on from now on.
func (s *scene) connect(a *args) error {
	refused := a.after("error")
	var fields []any
	if device, ok := a.option("device"); ok {
		fields = append(fields, "deviceId", device)
	}
	if class, ok := a.option("class"); ok {
		fields = append(fields, "deviceClass", class)
	}
	if meta, ok := a.option("meta"); ok {
		fields = append(fields, "meta", json.RawMessage(meta))
	}
	for _, name := range []string{"resume", "rooms"} {
		if value, ok := a.option(name); ok {
			fields = append(fields, name, json.RawMessage(value))
		}
	}
	name, named := a.option("as")
	g, err1 := s.gateway(a)
	user, err2 := a.next("the user")
	if err := errors.Join(err1, err2, a.done()); err != nil {
		return err
	}
	if !named {
		name = user
	}
	c, err := s.open(g, name)
	if err != nil {
		return err
	}
	if refused == "" {
		_, err = c.Register(user, fields...)
		return err
	}
	if err := c.Write(object("register", append([]any{"userId", user}, fields...))); err != nil {
		return err
	}
	return wantError(c, refused, Deadline)
}

// join alice lobby [resume={…}] [offset 2] [recovered false] | [error CODE]: alice enters a room, and is told so.
func (s *scene) join(a *args) error {
	c, err1 := s.client(a)
	room, err2 := a.next("the room")
	resume, resumes := a.option("resume")
	offset, recovered, refused := a.after("offset"), a.after("recovered"), a.after("error")
	if err := errors.Join(err1, err2, a.done()); err != nil {
		return err
	}
	fields := []any{"room", room}
	if resumes {
		fields = append(fields, "resume", json.RawMessage(resume))
	}
	if err := c.Write(object("join", fields)); err != nil {
		return err
	}
	if refused != "" {
		return wantError(c, refused, Deadline)
	}
	f, err := c.Next("joined", Deadline)
	if err == nil && (f.Room != room || offset != "" && strconv.FormatUint(f.Offset, 10) != offset || recovered != "" && strconv.FormatBool(f.Recovered) != recovered) {
		err = fmt.Errorf("%s: got %v, want room %s, offset %s, recovered %s", c.Name, f, room, offset, recovered)
	}
	return err
}

// leave alice lobby: alice leaves a room, and is told so.
func (s *scene) leave(a *args) error {
	c, err1 := s.client(a)
	room, err2 := a.next("the room")
	if err := errors.Join(err1, err2, a.done()); err != nil {
		return err
	}
	if err := c.Write(object("leave", []any{"room", room})); err != nil {
		return err
	}
	f, err := c.Next("left", Deadline)
	if err == nil && f.Room != room {
		err = fmt.Errorf("%s: left %v, want room %s", c.Name, f, room)
	}
	return err
}

// members alice lobby bob carol [within 3s]: alice is told that exactly these are in a room, asked two at a time until it is so.
func (s *scene) members(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	room, err3 := a.next("the room")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	want := slices.Sorted(slices.Values(a.rest))
	return Poll(within, func() error {
		names, count, err := c.Members(room, 2)
		if err == nil && (!slices.Equal(names, want) || count != len(want)) {
			err = fmt.Errorf("%s is told that %d are in %s, %v; want %v", c.Name, count, room, names, want)
		}
		return err
	})
}

// pushed alice lobby 2 [+bob] [-carol] [within 3s]: the next push of who joined and left a room says so, with the number that are there.
func (s *scene) pushed(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	room, count, err3 := a.two("the room", "the number")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	f, err := c.NextOf("members", within, func(f Frame) bool { return f.Room == room && f.Users == nil })
	if err != nil {
		return err
	}
	var got []string
	for _, u := range f.Joined {
		got = append(got, "+"+u)
	}
	for _, u := range f.Left {
		got = append(got, "-"+u)
	}
	if strconv.Itoa(f.Count) != count || !slices.Equal(got, a.rest) {
		return fmt.Errorf("%s got %v, want %s in %s and %v", c.Name, f, count, room, a.rest)
	}
	return nil
}

// received bob: this device has kept everything up to the last position it knows.
func (s *scene) received(a *args) error {
	c, err := s.client(a)
	if err := errors.Join(err, a.done()); err != nil {
		return err
	}
	epoch, offset := c.Position()
	return c.Write(object("received", []any{"epoch", epoch, "offset", offset}))
}

// resume bob on a [device=phone] [recovered true | false]: bob's client comes back at that gateway and goes on behind the last position it knows. The connection it
// had before is called bob.1, bob.2 and so on from now on.
func (s *scene) resume(a *args) error {
	on, recovered := a.after("on"), a.after("recovered")
	device, hasDevice := a.option("device")
	c, err := s.client(a)
	if err := errors.Join(err, a.done()); err != nil {
		return err
	}
	g := s.gateways[on]
	if g == nil {
		return fmt.Errorf("no gateway is called %q", on)
	}
	epoch, offset := c.Position()
	fields := []any{"resume", map[string]any{"epoch": epoch, "offset": offset}}
	if hasDevice {
		fields = append(fields, "deviceId", device)
	}
	c.mu.Lock()
	user, name := c.user, c.Name
	c.mu.Unlock()
	again, err := s.open(g, name)
	if err != nil {
		return err
	}
	f, err := again.Register(user, fields...)
	if err == nil && recovered != "" && strconv.FormatBool(f.Recovered) != recovered {
		err = fmt.Errorf("%s: recovered is not %s: %v", name, recovered, f)
	}
	return err
}

// dial a alice: a client that says nothing yet.
func (s *scene) dial(a *args) error {
	g, err1 := s.gateway(a)
	name, err2 := a.next("the client")
	if err := errors.Join(err1, err2, a.done()); err != nil {
		return err
	}
	_, err := s.open(g, name)
	return err
}

func (s *scene) open(g *Gateway, name string) (*Client, error) {
	if old := s.clients[name]; old != nil {
		n := 1
		for s.clients[name+"."+strconv.Itoa(n)] != nil {
			n++
		}
		old.Name = name + "." + strconv.Itoa(n)
		s.clients[old.Name] = old
	}
	c, err := Dial(g.WS(), nil)
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(c.Cut)
	c.Name = name
	s.clients[name] = c
	return c, nil
}

// ignore alice: what this client gets and no step expects doesn't matter.
func (s *scene) ignore(a *args) error {
	c, err := s.client(a)
	if err == nil {
		s.ignored[c] = true
	}
	return errors.Join(err, a.done())
}

// closed alice 4502 replaced [by tab] [within 3s]: the gateway ended the connection with this code, and said why; and which of alice's
// connections has the place now, and since when.
func (s *scene) closed(a *args) error {
	within, err1 := a.duration("within", Deadline)
	by := a.after("by")
	c, err2 := s.client(a)
	code, err3 := a.next("the close code")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	ended, err := c.WaitEnd(within)
	if err != nil {
		return err
	}
	if strconv.Itoa(ended.Code) != code {
		return fmt.Errorf("%s: %v, want %s", c.Name, ended, code)
	}
	if len(a.rest) > 0 {
		reason, _ := a.next("the reason")
		if ended.Closing == nil || ended.Closing.Reason != reason || ended.Closing.CodeText() != code {
			return fmt.Errorf("%s: %v, want a closing frame with %s and %s", c.Name, ended, code, reason)
		}
	}
	if by != "" {
		other := s.clients[by]
		if other == nil {
			return fmt.Errorf("nobody is called %s", by)
		}
		if f := ended.Closing; f == nil || f.By != other.ConnID() || time.Since(time.UnixMilli(f.Since)).Abs() > time.Minute {
			return fmt.Errorf("%s: %v, want it replaced by %s a moment ago", c.Name, ended, other.ConnID())
		}
	}
	return a.done()
}

// connected alice bob [for 10s]: these connections are open, and stay so.
func (s *scene) connected(a *args) error {
	during, err := a.duration("for", 0)
	if err != nil {
		return err
	}
	end := time.NewTimer(during)
	defer end.Stop()
	var clients []*Client
	for len(a.rest) > 0 {
		c, err := s.client(a)
		if err != nil {
			return err
		}
		clients = append(clients, c)
	}
	<-end.C
	for _, c := range clients {
		if ended := c.Ended(); ended != nil {
			return fmt.Errorf("%s: %v", c.Name, ended)
		}
	}
	return nil
}
