package gatewaytest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// Write sends any value as one JSON text frame.
func (c *Client) Write(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.WriteFrame(websocket.TextMessage, raw)
}

// WriteFrame sends one WebSocket message as it is, however wrong.
func (c *Client) WriteFrame(messageType int, raw []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.conn.WriteMessage(messageType, raw)
}

// object makes a JSON object of a type and pairs of field and value.
func object(kind string, fields []any) map[string]any {
	o := map[string]any{"type": kind}
	for i := 0; i+1 < len(fields); i += 2 {
		o[fields[i].(string)] = fields[i+1]
	}
	return o
}

// Register says who the client is and waits for the answer. The fields are pairs: "deviceId", "phone", "meta", …
func (c *Client) Register(user string, fields ...any) (Frame, error) {
	c.mu.Lock()
	c.user = user
	if c.Name == "" {
		c.Name = user
	}
	c.mu.Unlock()
	if err := c.Write(object("register", append([]any{"userId", user}, fields...))); err != nil {
		return Frame{}, err
	}
	return c.Next("registered", Deadline)
}

// ConnID is the id the gateway gave this connection; empty before it is registered.
func (c *Client) ConnID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.all {
		if c.all[i].Type == "registered" {
			return c.all[i].ConnID
		}
	}
	return ""
}

// Position is where the client goes on when it comes back: behind the last message, or where the last gap or registered said.
func (c *Client) Position() (epoch string, offset uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var in inbox
	for i := range c.all {
		if h, ok := hear(&c.all[i], 1); ok && h.Room == "" {
			in.take(&h)
		}
	}
	return in.at.Epoch, in.at.Offset
}

// Send sends a message to a user, or to a room as room:NAME, and doesn't wait. An empty id is replaced by one that is unique for
// this client.
func (c *Client) Send(to string, content any, id string, fields ...any) (string, error) {
	raw, ok := content.(json.RawMessage)
	if !ok {
		var err error
		if raw, err = json.Marshal(content); err != nil {
			return "", err
		}
	}
	c.mu.Lock()
	if id == "" {
		c.nextID++
		id = c.user + "-" + strconv.FormatUint(c.nextID, 10)
		if len(id) > 64 {
			id = id[len(id)-64:]
		}
	}
	m := Sent{ID: id, Content: string(raw), At: time.Now()}
	if room, ok := strings.CutPrefix(to, "room:"); ok {
		m.Room = room
	} else {
		m.To = to
	}
	c.sent = append(c.sent, m)
	c.mu.Unlock()
	return id, c.Write(object("message", append(m.fields(), fields...)))
}

// fields are those of the frame a message is sent by.
func (m Sent) fields() []any {
	if m.Room != "" {
		return []any{"id", m.ID, "room", m.Room, "content", json.RawMessage(m.Content)}
	}
	return []any{"id", m.ID, "to", m.To, "content", json.RawMessage(m.Content)}
}

// Ack takes the answer to a message, an ack or an error, whatever came before and after it.
func (c *Client) Ack(id string, within time.Duration) (Frame, error) {
	var found Frame
	err := c.wait(within, "ack of "+id, func() bool {
		for _, kind := range []string{"ack", "error"} {
			for i, at := range c.queues[kind] {
				if c.all[at].ID == id {
					found = c.all[at]
					c.queues[kind] = append(append([]int{}, c.queues[kind][:i]...), c.queues[kind][i+1:]...)
					return true
				}
			}
		}
		return false
	})
	return found, err
}

// Settle takes the answer to a message that was sent, and repeats the message with its id, as a client should, for as long
// as the answer asks for that.
func (c *Client) Settle(id string, within time.Duration) (Frame, error) {
	deadline := time.Now().Add(within)
	for {
		answer, err := c.Ack(id, time.Until(deadline))
		if err != nil {
			return answer, err
		}
		if answer.Type == "ack" || !slices.Contains([]string{"overloaded", "unavailable", "unknown"}, answer.CodeText()) {
			return answer, nil
		}
		time.Sleep(time.Duration(answer.Retry) * time.Millisecond)
		if err := c.Repeat(id); err != nil {
			return answer, err
		}
	}
}

// Repeat sends a message again that was sent before, and doesn't wait.
func (c *Client) Repeat(id string) error {
	c.mu.Lock()
	i := slices.IndexFunc(c.sent, func(m Sent) bool { return m.ID == id })
	if i < 0 {
		c.mu.Unlock()
		return fmt.Errorf("%s: %s was never sent", c.Name, id)
	}
	m := c.sent[i]
	c.mu.Unlock()
	return c.Write(object("message", m.fields()))
}

// Next takes the next frame of a type that was not taken yet.
func (c *Client) Next(kind string, within time.Duration) (Frame, error) {
	return c.NextOf(kind, within, func(Frame) bool { return true })
}

// NextOf takes the next frame of a type that fits and was not taken yet; those before it stay.
func (c *Client) NextOf(kind string, within time.Duration, fits func(Frame) bool) (Frame, error) {
	var found Frame
	err := c.wait(within, kind, func() bool {
		for i, at := range c.queues[kind] {
			if fits(c.all[at]) {
				found = c.all[at]
				if rest := c.queues[kind][i+1:]; i == 0 {
					c.queues[kind] = rest
				} else {
					c.queues[kind] = slices.Concat(c.queues[kind][:i], rest)
				}
				return true
			}
		}
		return false
	})
	if err != nil {
		// An error frame that nobody waits for usually says why.
		if rest := c.Left("error"); len(rest) > 0 && kind != "error" {
			err = fmt.Errorf("%w; but %v", err, rest)
		}
	}
	return found, err
}

// None waits and complains when a frame of a type comes after all.
func (c *Client) None(kind string, during time.Duration) error {
	f, err := c.Next(kind, during)
	if err == nil {
		return fmt.Errorf("%s: got what should not come: %v", c.Name, f)
	}
	if ended := c.Ended(); ended != nil {
		return err
	}
	return nil
}

// WaitCount waits until so many frames of these types have come in all, taken or not.
func (c *Client) WaitCount(count int, within time.Duration, kinds ...string) error {
	seen, n := 0, 0
	return c.wait(within, fmt.Sprintf("%d of %v", count, kinds), func() bool {
		for ; seen < len(c.all); seen++ {
			if slices.Contains(kinds, c.all[seen].Type) {
				n++
			}
		}
		return n >= count
	})
}

// Left returns the frames of a type that nobody has taken.
func (c *Client) Left(kind string) []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	var left []Frame
	for _, at := range c.queues[kind] {
		left = append(left, c.all[at])
	}
	return left
}

// Presence asks for the state of users and returns the answer.
func (c *Client) Presence(users ...string) (map[string]UserState, error) {
	c.mu.Lock()
	c.nextID++
	id := "presence-" + strconv.FormatUint(c.nextID, 10)
	c.mu.Unlock()
	if err := c.Write(object("presence", []any{"id", id, "users", users})); err != nil {
		return nil, err
	}
	answer, err := c.answerTo(id)
	return answer.States(), err
}

// answerTo waits for the presence frame that answers a request. It stays in the queue.
func (c *Client) answerTo(id string) (answer Frame, err error) {
	err = c.wait(Deadline, "answer to "+id, func() bool {
		for _, kind := range []string{"presence", "error"} {
			for _, at := range c.queues[kind] {
				if c.all[at].ID == id {
					answer = c.all[at]
					return true
				}
			}
		}
		return false
	})
	if err == nil && answer.Type == "error" {
		err = fmt.Errorf("%s: %s was refused: %v", c.Name, id, answer)
	}
	return answer, err
}

// Members asks who is in a room, page by page, and returns all names and the last count.
func (c *Client) Members(room string, limit int) (names []string, count int, err error) {
	for after := ""; ; {
		c.mu.Lock()
		c.nextID++
		id := "members-" + strconv.FormatUint(c.nextID, 10)
		c.mu.Unlock()
		fields := []any{"id", id, "room", room, "limit", limit}
		if after != "" {
			fields = append(fields, "after", after)
		}
		if err := c.Write(object("members", fields)); err != nil {
			return nil, 0, err
		}
		answer, err := c.NextOf("members", Deadline, func(f Frame) bool { return f.ID == id })
		if err != nil {
			return nil, 0, err
		}
		names = append(names, answer.Names()...)
		if answer.Next == nil {
			return names, answer.Count, nil
		}
		after = text(answer.Next)
	}
}

// Heartbeat sends a heartbeat and returns the answer.
func (c *Client) Heartbeat(within time.Duration) (Frame, error) {
	if err := c.Write(object("heartbeat", nil)); err != nil {
		return Frame{}, err
	}
	return c.Next("heartbeat", within)
}
