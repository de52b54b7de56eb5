//go:build !secondpass

package gatewaytest

import (
	"fmt"
	"strings"
	"time"
)

// modelClient is a connection and where the model says it stands. Every message and gap that comes is held against the log, one after
// the other: nothing may come twice, out of order, or that the log doesn't have, and no hole without a gap.
type modelClient struct {
	*Client
	user    *modelUser
	gateway *modelGateway
	device  string
	seen    int        // frames of Client.all that were looked at
	opening []modelGap // what has to follow `registered` at once
	signals map[string]bool

	// The last position that was given.
	life, era int
	offset    uint64
}

// take looks at what has come since the last look.
func (c *modelClient) take() error {
	c.mu.Lock()
	frames := c.all[c.seen:]
	c.seen = len(c.all)
	c.mu.Unlock()
	for _, f := range frames {
		var err error
		switch {
		case f.Type == "message" && f.Ephemeral:
			err = c.signal(f)
		case f.Type == "message":
			err = c.message(f)
		case f.Type == "gap":
			err = c.gap(f)
		case strings.HasPrefix(f.Type, "broken"):
			err = fmt.Errorf("not JSON")
		}
		if err != nil {
			return failure{"what came: " + err.Error(), fmt.Sprintf("%s at %v/%d: %v", c.Name, c.epoch(), c.offset, f)}
		}
	}
	return nil
}

func (c *modelClient) epoch() string { return c.user.log.lives[c.life].eras[c.era].epoch }

// whole says that the client has everything there is.
func (c *modelClient) whole() bool {
	log := c.user.log
	life := log.now()
	return len(c.opening) == 0 && c.life == len(log.lives)-1 && c.era == len(life.eras)-1 && c.offset == life.top()
}

// message is the next one of the epoch the client is in, exactly as it was sent.
func (c *modelClient) message(f Frame) error {
	life := c.user.log.lives[c.life]
	switch {
	case len(c.opening) > 0:
		return fmt.Errorf("a message where a gap belongs")
	case f.Epoch != c.epoch():
		return fmt.Errorf("a message of another epoch without a gap")
	case f.Offset <= c.offset:
		return fmt.Errorf("a message twice")
	case f.Offset > c.offset+1:
		return fmt.Errorf("a hole")
	case f.Offset > life.reach(c.era):
		return fmt.Errorf("a message that nobody was told is stored")
	}
	c.offset++
	return sameMessage(f, c.user, life.messages[f.Offset-1])
}

// sameMessage compares a stored message with what was sent and acknowledged.
func sameMessage(f Frame, to *modelUser, m *modelMessage) error {
	switch {
	case f.Sender() != m.from || f.ID != m.id || text(f.To) != to.name || f.Room != "" || f.Own || f.Ephemeral:
		return fmt.Errorf("another message than was stored there")
	case string(f.Content) != m.content:
		return fmt.Errorf("another content than was sent")
	case m.ack.Ts != 0 && f.Ts != m.ack.Ts: // 0: it isn't acknowledged yet
		return fmt.Errorf("another time than the ack told")
	}
	return nil
}

// gap leads to the present epoch, or to one in between, and says exactly what is lost on the way.
func (c *modelClient) gap(f Frame) error {
	got, err := gapOf(f)
	if err != nil {
		return err
	}
	if len(c.opening) > 0 {
		if got != c.opening[0] {
			return fmt.Errorf("another gap than the position is worth")
		}
		c.opening = c.opening[1:]
		return nil
	}
	log := c.user.log
	now := log.now()
	if c.life == len(log.lives)-1 && c.era == len(now.eras)-1 {
		return fmt.Errorf("a gap and nothing is missing")
	}
	if err := log.learn(got.next.Epoch); err != nil {
		return fmt.Errorf("a gap that doesn't lead to the present")
	}
	start, want := now.resume(modelPosition{c.epoch(), c.offset})
	if len(want) == 0 || got != want[0] {
		return fmt.Errorf("another gap than what is missing")
	}
	c.opening = want[1:]
	c.life, c.era, c.offset = len(log.lives)-1, len(now.eras)-1, start
	return nil
}

// signal is an ephemeral message: at most once, as it was sent, without a position.
func (c *modelClient) signal(f Frame) error {
	m := c.user.signals[f.ID]
	switch {
	case m == nil || f.Epoch != "" || f.Offset != 0 || f.Sender() != m.from || string(f.Content) != m.content:
		return fmt.Errorf("an ephemeral message that nobody sent so")
	case c.signals[f.ID]:
		return fmt.Errorf("an ephemeral message twice")
	}
	c.signals[f.ID] = true
	return nil
}

// failure has a text that is the same when the same happens again, so that rapid can shrink it, and the particulars.
type failure struct{ what, particulars string }

func (f failure) Error() string { return f.what + ": " + f.particulars }

// await polls what is to become true, taking what comes meanwhile.
func (c *modelClient) await(within time.Duration, what string, done func() bool) error {
	return Poll(within, func() error {
		if err := c.take(); err != nil {
			return stop{err}
		}
		if !done() {
			return failure{what, fmt.Sprintf("%s stands at %s/%d; %s", c.Name, c.epoch(), c.offset, c.Story(6))}
		}
		return nil
	})
}
