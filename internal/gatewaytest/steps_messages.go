package gatewaytest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// send alice bob "hi" [id=m1] [ephemeral=true] [copy=true] [ack routed] [devices 2] [offset 3] | [error CODE] | [unanswered]: alice's gateway answers so.
func (s *scene) send(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	to, content, err3 := a.two("the receiver", "the content")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	id, _ := a.option("id")
	var fields []any
	for _, name := range []string{"ephemeral", "copy"} {
		if value, ok := a.option(name); ok {
			fields = append(fields, name, json.RawMessage(value))
		}
	}
	status, refused, devices, offset := a.after("ack"), a.after("error"), a.after("devices"), a.after("offset")
	unanswered := a.word("unanswered")
	if err := a.done(); err != nil {
		return err
	}
	id, err := c.Send(to, json.RawMessage(content), id, fields...)
	if err != nil || unanswered {
		return err
	}
	answer, err := c.Ack(id, within)
	if err != nil {
		return err
	}
	got := func(what, is, want string) error {
		if want != "" && is != want {
			return fmt.Errorf("%s %s, want %s: %v", what, is, want, answer)
		}
		return nil
	}
	if refused != "" {
		return errors.Join(got("answer", answer.Type, "error"), got("code", answer.CodeText(), refused))
	}
	return errors.Join(
		got("answer", answer.Type, "ack"), got("status", answer.Status, status),
		got("devices", strconv.Itoa(answer.DeviceCount()), devices), got("offset", strconv.FormatUint(answer.Offset, 10), offset))
}

// expect bob "hi" [from alice] [offset 1] [room lobby] [within 3s]: this is the next message that bob gets.
func (s *scene) expect(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	content, err3 := a.next("the content")
	from, offset, room := a.after("from"), a.after("offset"), a.after("room")
	if err := errors.Join(err1, err2, err3, a.done()); err != nil {
		return err
	}
	f, err := c.Next("message", within)
	if err != nil {
		return err
	}
	if f.Room != room {
		return fmt.Errorf("%s got %v, want a message of room %q", c.Name, f, room)
	}
	if !sameJSON(f.Content, []byte(content)) {
		return fmt.Errorf("%s got %v, want the content %s", c.Name, f, content)
	}
	if from != "" && f.Sender() != from {
		return fmt.Errorf("%s got a message from %s, want %s: %v", c.Name, f.Sender(), from, f)
	}
	if offset != "" && strconv.FormatUint(f.Offset, 10) != offset {
		return fmt.Errorf("%s got offset %d, want %s: %v", c.Name, f.Offset, offset, f)
	}
	return nil
}

func sameJSON(x, y []byte) bool {
	var a, b bytes.Buffer
	return json.Compact(&a, x) == nil && json.Compact(&b, y) == nil && bytes.Equal(a.Bytes(), b.Bytes())
}

// nothing bob carol [for 1s]: no message comes.
func (s *scene) nothing(a *args) error {
	during, err := a.duration("for", quiet)
	if err != nil {
		return err
	}
	for len(a.rest) > 0 {
		c, err := s.client(a)
		if err != nil {
			return err
		}
		if err := c.None("message", during); err != nil {
			return err
		}
	}
	return nil
}

// heartbeat alice [degraded | healthy] [within 3s]: the answer, asked for again until it is so.
func (s *scene) heartbeat(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	degraded, healthy := a.word("degraded"), a.word("healthy")
	if err := errors.Join(err1, err2, a.done()); err != nil {
		return err
	}
	return Poll(within, func() error {
		f, err := c.Heartbeat(Deadline)
		if err != nil {
			return stop{err}
		}
		if (degraded && !f.Degraded) || (healthy && f.Degraded) {
			return fmt.Errorf("%s: %v", c.Name, f)
		}
		return nil
	})
}

// presence alice bob online [devices 1] [version same | other] [within 3s [calm] | for 3s]: what alice is told of bob, asked
// until it is so, or held to be so at every answer for as long as said. Calm: the time doesn't run in quiet time, in which
// nobody is judged; a machine that is too busy for a pulse every 1.5 s has such times.
func (s *scene) presence(a *args) error {
	within, err1 := a.duration("within", Deadline)
	during, err2 := a.duration("for", 0)
	c, err3 := s.client(a)
	user, want, err4 := a.two("the user", "the state")
	devices, version, calm := a.after("devices"), a.after("version"), a.word("calm")
	if !slices.Contains([]string{"", "same", "other"}, version) {
		return fmt.Errorf("a version can be the same or other than at the last step, not %s", version)
	}
	before := s.versions[user]
	if err := errors.Join(err1, err2, err3, err4, a.done()); err != nil {
		return err
	}
	look := func() error {
		states, err := c.Presence(user)
		if err != nil {
			return err
		}
		got := states[user]
		if got.State != want || (devices != "" && strconv.Itoa(got.Devices) != devices) {
			return fmt.Errorf("%s is told of %s: %+v", c.Name, user, got)
		}
		if version == "other" && got.Version == before {
			return fmt.Errorf("the version is still %s", before)
		}
		if version == "same" && got.Version != before {
			return stop{fmt.Errorf("%s was gone in between: the version is %s, it was %s", user, got.Version, before)}
		}
		s.versions[user] = got.Version
		return nil
	}
	if during == 0 {
		return s.whenCalm(calm, within, look)
	}
	end := time.Now().Add(during)
	for {
		if err := look(); err != nil {
			return fmt.Errorf("%v before the end of %v: %w", time.Until(end).Round(time.Millisecond), during, err)
		}
		if !time.Now().Before(end) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// whenCalm polls; with calm the time begins again at the end of each quiet time there was.
func (s *scene) whenCalm(calm bool, within time.Duration, look func() error) error {
	began := time.Now()
	for {
		err := Poll(time.Until(began)+within, look)
		if err == nil || !calm {
			return err
		}
		quiet, quietErr := s.redis.quietUntil()
		if quietErr != nil || !quiet.After(began) {
			return errors.Join(err, quietErr)
		}
		began = quiet
	}
}

// raw alice {"type":"…"}: any text, as one frame.
func (s *scene) raw(a *args) error {
	c, err := s.client(a)
	if err != nil {
		return err
	}
	text := strings.Join(a.rest, " ")
	return c.WriteFrame(websocket.TextMessage, []byte(text))
}

// error alice bad_request [id=m1] [within 3s]: the next error frame.
func (s *scene) error(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	code, err3 := a.next("the error code")
	id, _ := a.option("id")
	if err := errors.Join(err1, err2, err3, a.done()); err != nil {
		return err
	}
	f, err := c.Next("error", within)
	if err == nil && (f.CodeText() != code || (id != "" && f.ID != id)) {
		err = fmt.Errorf("%s got %v, want %s", c.Name, f, code)
	}
	return err
}

func wantError(c *Client, code string, within time.Duration) error {
	f, err := c.Next("error", within)
	if err == nil && f.CodeText() != code {
		err = fmt.Errorf("%s got %v, want the error %s", c.Name, f, code)
	}
	return err
}

// frame alice registered [recovered=false …] [within 3s]: the next frame of a type, with these fields. What is about a room, and what
// is not, come in no particular order: with room=lobby it is the next one of that room.
func (s *scene) frame(a *args) error {
	within, err1 := a.duration("within", Deadline)
	c, err2 := s.client(a)
	kind, err3 := a.next("the type")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	room, ofRoom := "", false
	for _, word := range a.rest {
		if name, ok := strings.CutPrefix(word, "room="); ok {
			room, ofRoom = name, true
		}
	}
	f, err := c.NextOf(kind, within, func(f Frame) bool { return !ofRoom || f.Room == room })
	if err != nil {
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(f.Raw, &fields); err != nil {
		return err
	}
	for _, word := range a.rest {
		key, want, _ := strings.Cut(word, "=")
		if got := text(fields[key]); got != text(json.RawMessage(want)) {
			return fmt.Errorf("%s: %s is %s, want %s: %v", c.Name, key, got, want, f)
		}
	}
	return nil
}
