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
	scratch   []byte
	line      []any // the whole command
}

// once is a command that the client library doesn't repeat by itself, which it
// does on Cluster: a repeat that was refused would hide that the first one may
// have been executed.
type once struct{ *redis.Cmd }

// NoRetry keeps the library from repeating; it still follows MOVED and ASK.
func (once) NoRetry() bool { return true }

// run runs the script once.
func (c *call) run(ctx context.Context, r *Router) (any, error) {
	reply, err := c.eval(ctx, r, "evalsha", r.sendScript.Hash())
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		return c.eval(ctx, r, "eval", r.sendText)
	}
	return reply, err
}

func (c *call) eval(ctx context.Context, r *Router, name, script string) (any, error) {
	c.line = append(c.line[:0], name, script, len(c.keys))
	for _, k := range c.keys {
		c.line = append(c.line, k)
	}
	c.line = append(c.line, c.args...)
	cmd := redis.NewCmd(ctx, c.line...)
	cmd.SetFirstKeyPos(3)
	err := r.lanes.client.Process(ctx, once{cmd})
	return cmd.Val(), err
}

// build writes KEYS and ARGV for the lane's batch, as lua/send.lua says.
func (c *call) build(l *lane) {
	cfg := &l.router.cfg
	c.keys = append(c.keys[:0], keyspace.Leases(l.group), keyspace.Line(l.group), keyspace.Numbers(l.group))
	c.args = append(c.args[:0], protocol.NewEpoch(), cfg.Kept, cfg.Retention.Milliseconds(), cfg.LogTTL.Milliseconds(),
		keyspace.ChannelPrefix(l.group), 0)
	if c.addresses == nil {
		c.addresses = make(map[protocol.Address]int)
	}
	clear(c.addresses)
	for _, m := range l.batch {
		if _, ok := c.addresses[m.To]; ok {
			continue
		}
		c.addresses[m.To] = len(c.addresses) + 1
		c.keys = append(c.keys, keyspace.Holders(m.To), keyspace.Log(m.To), keyspace.Stream(m.To))
	}
	c.args[5] = len(c.addresses)
	for _, m := range l.batch {
		c.scratch = m.prepare(c.scratch, c.addresses[m.To])
		c.args = append(c.args, m.head, m.Frame)
	}
}

// read takes the script's answer apart into the results of the batch.
func (c *call) read(l *lane, reply any) error {
	text, ok := reply.(string)
	if !ok {
		return fmt.Errorf("router: send answered %T", reply)
	}
	if len(l.batch) == 0 {
		return nil
	}
	for i, m := range l.batch {
		line, rest, more := strings.Cut(text, "\n")
		if more != (i < len(l.batch)-1) {
			return fmt.Errorf("router: send answered another number of lines than %d", len(l.batch))
		}
		if text = rest; line == "c" {
			m.fail(protocol.CodeConflict, "id was used for another content", 0)
			l.router.counts.conflicts.Add(1)
			continue
		}
		if err := m.Result.parse(line); err != nil {
			return err
		}
		if m.Result.Status == protocol.StatusRouted {
			l.router.counts.routed.Add(1)
		} else {
			l.router.counts.stored.Add(1)
		}
	}
	return nil
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
	if errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted) {
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
