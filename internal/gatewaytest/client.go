package gatewaytest

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Deadline is how long a test waits for what should come at once. It is generous: only failures wait it out.
const Deadline = 10 * time.Second

// Client is a scripted chat client. A goroutine reads everything that comes; the test takes from it what it expects, type
// by type: an ack doesn't hide behind a message. It writes down what it sent, what was acknowledged and what arrived, so
// that a checker can compare afterwards.
//
// All methods may be called from any goroutine. They return errors; a test in a hurry wraps them (Connect).
type Client struct {
	// Immutable after Dial.
	Name string
	conn *websocket.Conn
	done chan struct{} // closed when the reader has ended

	// The writing side.
	writeMu sync.Mutex

	mu      sync.Mutex // guards the rest
	user    string
	changed chan struct{} // closed and replaced whenever anything below changes
	all     []Frame
	queues  map[string][]int // by type, the frames not taken yet: indexes into all
	sent    []Sent
	nextID  uint64
	thawed  chan struct{} // not nil: the reader waits for it
	ended   *Ended
}

// Sent is a message as it left the client.
type Sent struct {
	ID, To, Room string
	Content      string
	At           time.Time
}

// Ended says how a connection ended.
type Ended struct {
	Code    int    // of the WebSocket close frame; 1006 when there was none
	Text    string // of the close frame
	Closing *Frame // the gateway's last words, when there were any
	Err     error
}

func (e *Ended) String() string {
	closing := "no closing frame"
	if e.Closing != nil {
		closing = e.Closing.String()
	}
	return fmt.Sprintf("ended with %d %q, %s (%v)", e.Code, e.Text, closing, e.Err)
}

// Notes is what a client did and saw, for a ledger.
type Notes struct {
	User     string
	Sent     []Sent
	Acked    []Frame
	Received []Frame // message frames in the order they came
	Gaps     []Frame
	Errors   []Frame
	Ended    *Ended
}

// Dial opens a WebSocket. It says nothing yet. A refusal before the upgrade is a *Refused.
func Dial(url string, header http.Header) (*Client, error) { return dial(url, header, 2*Deadline) }

func dial(url string, header http.Header, within time.Duration) (*Client, error) {
	dialer := websocket.Dialer{HandshakeTimeout: within, Subprotocols: []string{"chatgate.v1.json"}, ReadBufferSize: 1024, WriteBufferSize: 1024}
	conn, response, err := dialer.Dial(url, header)
	if err != nil {
		if response != nil {
			return nil, &Refused{Status: response.StatusCode, Header: response.Header}
		}
		return nil, err
	}
	return newClient(conn), nil
}

func newClient(conn *websocket.Conn) *Client {
	c := &Client{conn: conn, done: make(chan struct{}), changed: make(chan struct{}), queues: make(map[string][]int)}
	go c.read()
	return c
}

// Refused is an HTTP answer where an upgrade was asked for.
type Refused struct {
	Status int
	Header http.Header
}

func (r *Refused) Error() string { return fmt.Sprintf("refused with HTTP status %d", r.Status) }

// Connect opens and registers a client, and closes it at the end of the test.
func Connect(t testing.TB, url, user string, fields ...any) *Client {
	t.Helper()
	c := Open(t, url)
	if _, err := c.Register(user, fields...); err != nil {
		t.Fatalf("register %s: %v", user, err)
	}
	return c
}

// Open opens a client that has not registered, and closes it at the end of the test.
func Open(t testing.TB, url string) *Client {
	t.Helper()
	c, err := Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Cut)
	return c
}

func (c *Client) read() {
	defer close(c.done)
	var last *Frame
	for {
		c.mu.Lock()
		thawed := c.thawed
		c.mu.Unlock()
		if thawed != nil {
			<-thawed
		}
		_, raw, err := c.conn.ReadMessage()
		if err != nil {
			ended := &Ended{Code: websocket.CloseAbnormalClosure, Err: err}
			if closed, ok := errors.AsType[*websocket.CloseError](err); ok {
				ended.Code, ended.Text = closed.Code, closed.Text
			}
			if last != nil && last.Type == "closing" {
				ended.Closing = last
			}
			c.conn.Close()
			c.mu.Lock()
			c.ended = ended
			c.wake()
			c.mu.Unlock()
			return
		}
		f, err := parseFrame(raw)
		if err != nil {
			f.Type, f.Raw = "broken: "+err.Error(), raw
		}
		last = &f
		c.mu.Lock()
		c.queues[f.Type] = append(c.queues[f.Type], len(c.all))
		c.all = append(c.all, f)
		c.wake()
		c.mu.Unlock()
	}
}

// wake lets those who wait look again. The caller holds mu.
func (c *Client) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait calls look, under mu, until it is satisfied, the deadline passes, or nothing more can come.
func (c *Client) wait(within time.Duration, what string, look func() bool) error {
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		c.mu.Lock()
		found, changed, ended := look(), c.changed, c.ended
		c.mu.Unlock()
		if found {
			return nil
		}
		if ended != nil {
			return fmt.Errorf("%s: no %s, the connection %v", c.Name, what, ended)
		}
		select {
		case <-changed:
		case <-late.C:
			return fmt.Errorf("%s: no %s within %v", c.Name, what, within)
		}
	}
}

// WaitEnd waits for the end of the connection.
func (c *Client) WaitEnd(within time.Duration) (*Ended, error) {
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case <-c.done:
		return c.Ended(), nil
	case <-late.C:
		return nil, fmt.Errorf("%s: still connected after %v", c.Name, within)
	}
}

// Ended says how the connection ended; nil while it is open.
func (c *Client) Ended() *Ended {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// Freeze stops reading after the frame that is being read: the client looks alive and takes nothing. Thaw goes on.
func (c *Client) Freeze() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.thawed == nil {
		c.thawed = make(chan struct{})
	}
}

func (c *Client) Thaw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.thawed != nil {
		close(c.thawed)
		c.thawed = nil
	}
}

// Close says goodbye (1000) and waits until the gateway has hung up.
func (c *Client) Close() error {
	c.Thaw()
	message := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	if err := c.conn.WriteControl(websocket.CloseMessage, message, time.Now().Add(Deadline)); err != nil && c.Ended() == nil {
		c.Cut()
		return err
	}
	_, err := c.WaitEnd(Deadline)
	c.Cut()
	return err
}

// Cut ends the connection without a word, as a lost network would.
func (c *Client) Cut() {
	c.Thaw()
	c.conn.Close()
	<-c.done
}

// drain hands over the frames that came since the last call and forgets them: for who keeps a record of its own. Nothing
// more comes once ended is true; until then changed is closed when there is something new.
func (c *Client) drain() (frames []Frame, ended bool, changed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	frames, c.all = c.all, nil
	clear(c.queues)
	return frames, c.ended != nil, c.changed
}

// Notes returns what the client did and saw so far.
func (c *Client) Notes() Notes {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := Notes{User: c.user, Sent: append([]Sent(nil), c.sent...), Ended: c.ended}
	for _, f := range c.all {
		switch f.Type {
		case "ack":
			n.Acked = append(n.Acked, f)
		case "message":
			n.Received = append(n.Received, f)
		case "gap":
			n.Gaps = append(n.Gaps, f)
		case "error":
			n.Errors = append(n.Errors, f)
		}
	}
	return n
}

// Story tells the last frames the client got, for a failed test.
func (c *Client) Story(last int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%s got %d frames", c.Name, len(c.all))
	for _, f := range c.all[max(0, len(c.all)-last):] {
		fmt.Fprintf(&b, "\n    %s %s", f.At.Format("15:04:05.000"), f.Raw)
	}
	if c.ended != nil {
		fmt.Fprintf(&b, "\n    %v", c.ended)
	}
	return b.String()
}
