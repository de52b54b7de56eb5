package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// call is one run of the send script. Its slices are reused.
type call struct {
	keys      []string
	args      []any
	addresses map[protocol.Address]int
	command   []any // the whole of it, as it goes out
}

// once is a command that the client library doesn't repeat by itself, which it
// does on Cluster: a repeat that was refused would hide that the first one may
// have been executed.
type once struct{ *redis.Cmd }

// NoRetry keeps the library from repeating; it still follows MOVED and ASK.
func (once) NoRetry() bool { return true }

// run runs the script once.
func (c *call) run(ctx context.Context, r *Router) (any, error) {
	cmd := c.eval(ctx, "evalsha", r.sendScript.Hash())
	err := r.lanes.client.Process(ctx, once{cmd})
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		cmd = c.eval(ctx, "eval", r.sendText)
		err = r.lanes.client.Process(ctx, once{cmd})
	}
	return cmd.Val(), err
}

// runAndWait runs the script once, and reports whether enough replicas confirmed
// what it wrote.
func (c *call) runAndWait(ctx context.Context, r *Router, g keyspace.Group) (reply any, confirmed bool, err error) {
	reply, confirmed, err = c.evalAndWait(ctx, r, "evalsha", r.sendScript.Hash(), g)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		return c.evalAndWait(ctx, r, "eval", r.sendText, g)
	}
	return reply, confirmed, err
}

// eval is the command of the call.
func (c *call) eval(ctx context.Context, name, script string) *redis.Cmd {
	c.command = append(c.command[:0], name, script, len(c.keys))
	for _, k := range c.keys {
		c.command = append(c.command, k)
	}
	c.command = append(c.command, c.args...)
	cmd := redis.NewCmd(ctx, c.command...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

// build writes KEYS and ARGV for a batch, as lua/send.lua says. The call does
// nothing when Redis tells another history than line; an empty one is any.
func (c *call) build(l *lane, batch []*Message, line string) {
	cfg := &l.router.cfg
	c.keys = append(c.keys[:0], keyspace.Leases(l.group), keyspace.Line(l.group), keyspace.Numbers(l.group))
	c.args = append(c.args[:0], protocol.NewEpoch(), cfg.Kept, cfg.Retention.Milliseconds(), cfg.LogTTL.Milliseconds(),
		keyspace.ChannelPrefix(l.group), line, cfg.EventsKept, cfg.EventContent)
	if c.addresses == nil {
		c.addresses = make(map[protocol.Address]int)
	}
	clear(c.addresses)
	for _, m := range batch {
		if _, ok := c.addresses[m.To]; ok {
			continue
		}
		c.addresses[m.To] = len(c.addresses) + 1
		c.keys = append(c.keys, keyspace.Holders(m.To), keyspace.Log(m.To), keyspace.Stream(m.To))
	}
	if cfg.EventsKept > 0 {
		c.keys = append(c.keys, keyspace.MessageEvents(l.group))
	}
	for _, m := range batch {
		m.prepare(c.addresses[m.To])
		c.args = append(c.args, m.head, m.Frame)
		if cfg.EventsKept > 0 {
			c.args = append(c.args, m.Origin)
		}
	}
}

// errAnotherLine says that Redis tells another history than the lane knows: a
// restart or a failover may have lost what was acknowledged last.
var errAnotherLine = errors.New("router: redis tells another history")

// read takes the script's answer apart into the results of the batch, and returns
// Redis' history line. errAnotherLine comes with the new line.
func (c *call) read(batch []*Message, expected string, reply any) (line string, err error) {
	text, ok := reply.(string)
	if !ok {
		return "", fmt.Errorf("router: send answered %T", reply)
	}
	line, text, _ = strings.Cut(text, "\n")
	if expected != "" && line != expected {
		return line, errAnotherLine
	}
	for i, m := range batch {
		answer, rest, more := strings.Cut(text, "\n")
		if more != (i < len(batch)-1) {
			return line, fmt.Errorf("router: send answered another number of lines than %d", len(batch))
		}
		text, m.lacks = rest, answer == "n"
		switch {
		case m.lacks:
			continue
		case answer == "c":
			m.fail(protocol.CodeConflict, "id was used for another content", 0)
			continue
		}
		if err := m.Result.parse(answer); err != nil {
			return line, err
		}
	}
	return line, nil
}

func (r *Result) parse(line string) error {
	status, rest, _ := strings.Cut(line, " ")
	epoch, rest, _ := strings.Cut(rest, " ")
	offset, rest, _ := strings.Cut(rest, " ")
	devices, ts, _ := strings.Cut(rest, " ")
	o, err1 := strconv.ParseUint(offset, 10, 64)
	d, err2 := strconv.Atoi(devices)
	t, err3 := strconv.ParseInt(ts, 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("router: send answered %q: %w", line, err)
	}
	*r = Result{Status: protocol.StatusStored, Epoch: epoch, Offset: o, Ts: t}
	if status == "r" {
		r.Status, r.Devices = protocol.StatusRouted, d
	}
	return nil
}

// notExecuted reports whether the script certainly did not run: the connection
// could not be made, or Redis refused before running anything.
func notExecuted(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return true
	}
	if errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted) || errors.Is(err, errUnrouted) {
		return true
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	return hasPrefix(reply.Error(), "LOADING", "READONLY", "OOM", "CLUSTERDOWN", "MASTERDOWN", "NOAUTH", "NOPERM",
		"MISCONF", "TRYAGAIN", "MOVED", "ASK", "NOREPLICAS", "BUSY", "NOSCRIPT", "WRONGPASS", "UNBLOCKED")
}

// transient reports whether the same call may succeed in a moment.
func transient(err error) bool {
	if errors.Is(err, io.EOF) {
		return true
	}
	var reply redis.Error
	return !errors.As(err, &reply) || hasPrefix(reply.Error(), "TRYAGAIN", "MOVED", "ASK", "CLUSTERDOWN")
}

func hasPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
