package api

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// A backend that speaks no HTTP puts its calls into a stream of Redis, and the gateways take them from there, each command one of them, by the
// same operations: docs/api-control.md has the fields.

//go:embed lua/take.lua
var takeSource string

//go:embed lua/done.lua
var doneSource string

const (
	commandsAtATime = 64                    // in the hand of one gateway
	commandsPoll    = 50 * time.Millisecond // between looks at a stream that had nothing
	commandsPause   = 500 * time.Millisecond
	// commandBytes is about how much is taken at a time: what can't be had within a call's timeout would never be had.
	commandBytes = 4 << 20
	// commandTries is how often a command is handed out that could not be done, or whose gateway died of it, before it is given up.
	commandTries = 5
	// commandsCaller stands where a key's name does.
	commandsCaller = "stream"

	repliesKept, repliesFor = 10_000, time.Hour
	deadKept, deadFor       = 1000, 7 * 24 * time.Hour
)

// CommandsConfig is what taking commands needs to know. Every duration must be positive.
type CommandsConfig struct {
	Gateway protocol.GatewayID
	Layout  keyspace.Layout
	Log     *slog.Logger

	// Scopes are what commands may do; without any, none are taken. Whoever may write to the stream has them all.
	Scopes []Scope
	// Takeover is how long a command may be in the hand of one gateway before another takes it over. At least three times the API's
	// Deadline, or commands would be taken from gateways that are about to be done with them.
	Takeover time.Duration
	// Timeout bounds one call to Redis.
	Timeout time.Duration
	// Resting reports whether this gateway leaves new commands to the others. May be nil.
	Resting func() bool
}

// Commands takes commands from the stream. Run is its life; Stats may be called from any goroutine.
type Commands struct {
	// Immutable after NewCommands.
	cfg        CommandsConfig
	api        *API
	client     redis.UniversalClient
	take, done *redis.Script

	// Owned by Run.
	looked time.Time // when it last looked for commands to take over

	// Any goroutine.
	hands  chan struct{} // holds one for each command in hand
	busy   atomic.Int64  // commands in hand, and one more while new ones are taken
	counts commandCounts
}

// NewCommands prepares taking commands. The client should not repeat calls by itself.
func NewCommands(client redis.UniversalClient, a *API, cfg CommandsConfig) *Commands {
	return &Commands{
		cfg: cfg, api: a, client: client, hands: make(chan struct{}, commandsAtATime),
		take: redis.NewScript(cfg.Layout.Script(takeSource)), done: redis.NewScript(cfg.Layout.Script(doneSource)),
	}
}

// Run takes commands until ctx ends. What is in hand then is left to the other gateways where it isn't done by itself.
func (c *Commands) Run(ctx context.Context) error {
	if len(c.cfg.Scopes) == 0 {
		<-ctx.Done()
		return nil
	}
	var working sync.WaitGroup
	defer working.Wait()
	for ctx.Err() == nil {
		free, ok := c.reach(ctx)
		if !ok {
			break
		}
		wait := commandsPoll
		var got []*command
		c.busy.Add(1)
		if c.cfg.Resting == nil || !c.cfg.Resting() {
			var err error
			if got, err = c.next(ctx, free); err != nil && ctx.Err() == nil {
				c.counts.failedCalls.Add(1)
				c.cfg.Log.Debug("taking commands: redis", "err", err)
				wait = commandsPause
			}
		}
		for range free - len(got) {
			<-c.hands
		}
		c.busy.Add(int64(len(got)) - 1)
		for _, x := range got {
			working.Go(func() {
				defer func() { <-c.hands }()
				defer c.busy.Add(-1)
				c.handle(ctx, x)
			})
		}
		if len(got) < free {
			pause(ctx, wait)
		}
	}
	return nil
}

// Finish waits until the commands in hand are done, or ctx ends. The gateway must be resting, or there are always more. What is not done
// by then is taken over by another gateway in its time.
func (c *Commands) Finish(ctx context.Context) {
	for c.busy.Load() > 0 && ctx.Err() == nil {
		pause(ctx, finishLook)
	}
}

// reach waits for a free hand, and returns how many are free, all of them held from then on.
func (c *Commands) reach(ctx context.Context) (free int, ok bool) {
	select {
	case c.hands <- struct{}{}:
	case <-ctx.Done():
		return 0, false
	}
	for free = 1; ; free++ {
		select {
		case c.hands <- struct{}{}:
		default:
			return free, true
		}
	}
}

// next asks the stream for commands.
func (c *Commands) next(ctx context.Context, most int) ([]*command, error) {
	var stale time.Duration
	if time.Since(c.looked) >= c.cfg.Takeover/4 {
		stale, c.looked = c.cfg.Takeover, time.Now()
	}
	taken := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	gone := 10 * c.cfg.Takeover
	answer, err := c.take.Run(ctx, c.client, []string{keyspace.Commands()},
		string(c.cfg.Gateway), most, stale.Milliseconds(), gone.Milliseconds(), commandBytes, maxBody+1).Slice()
	if err != nil {
		return nil, err
	}
	if len(answer) != 4 {
		return nil, fmt.Errorf("take answered %d values", len(answer))
	}
	c.counts.length.Store(asInt(answer[0]))
	c.counts.inHand.Store(asInt(answer[1]))
	c.counts.oldest.Store(asInt(answer[2]))
	entries, _ := answer[3].([]any)
	got := make([]*command, 0, len(entries))
	for _, e := range entries {
		one, _ := e.([]any)
		if len(one) != 3 {
			return nil, fmt.Errorf("an entry of %d values", len(one))
		}
		x := &command{tries: asInt(one[1]), again: asInt(one[1]) > 1, taken: taken, fields: make(map[string]string)}
		x.id, _ = one[0].(string)
		pairs, _ := one[2].([]any)
		for i := 0; i+1 < len(pairs); i += 2 {
			name, _ := pairs[i].(string)
			_, before := x.fields[name]
			x.twice = x.twice || before
			x.fields[name], _ = pairs[i+1].(string)
		}
		if x.tries > 1 {
			c.counts.takenOver.Add(1)
		}
		got = append(got, x)
	}
	return got, nil
}

func asInt(v any) int64 {
	n, _ := v.(int64)
	return n
}

// handle has a command done, and says what became of it. One that could not be done now stays in hand, for whoever takes it over in a while.
func (c *Commands) handle(ctx context.Context, x *command) {
	if time.Since(x.taken) >= c.cfg.Takeover {
		c.counts.left.Add(1) // this gateway stood still, and another one may be about to do it
		return
	}
	var status int
	var answer any
	if x.tries > commandTries {
		status, answer = refused(refuse(CodeInternal, "given up: no gateway came to its end"))
	} else {
		status, answer = c.try(ctx, x)
	}
	f, _ := fateOf(answer)
	if f == fateLater && x.tries < commandTries {
		c.counts.left.Add(1)
		return
	}
	if f >= fateLater && ctx.Err() != nil {
		return // it is this gateway that ends
	}
	c.finish(ctx, x, f, status, answer)
}

// try does a command, again while it is refused for a moment, and for no longer than a call may take.
func (c *Commands) try(ctx context.Context, x *command) (status int, answer any) {
	until := time.Now().Add(c.api.cfg.Deadline)
	for {
		status, answer = c.do(ctx, x)
		x.again = true
		f, after := fateOf(answer)
		if f != fateLater || time.Now().Add(after).After(until) || ctx.Err() != nil {
			return status, answer
		}
		pause(ctx, after)
	}
}

// do does a command once. A panic ends the command and not the gateway, as with a call over HTTP.
func (c *Commands) do(ctx context.Context, x *command) (status int, answer any) {
	defer func() {
		if r := recover(); r != nil {
			c.cfg.Log.Error("a command panicked", "command", x.id, "err", r, "stack", string(debug.Stack()))
			status, answer = refused(refuse(CodeInternal, ourMistake))
		}
	}()
	body, p := x.check()
	if p != nil {
		return refused(p)
	}
	return c.api.command(ctx, x.fields[fieldOperation], body, func(o *operation, request any) *Problem {
		if !slices.Contains(c.cfg.Scopes, o.Scope) {
			return refuse(CodeForbidden, "commands lack the scope "+string(o.Scope))
		}
		x.once(request)
		if q, ok := request.(*SendRequest); ok {
			// What is handed out twice is the same message, and stored once.
			if q.IdempotencyKey = protocol.MessageID(x.fields[fieldKey]); q.IdempotencyKey == "" && q.ID == "" {
				q.ID = protocol.MessageID("cmd-" + x.id)
			}
		}
		return nil
	})
}

// finish takes a command out of the stream, and says what became of it to whoever wants to know. A lost word is no harm: the command is taken
// over, and done again to the same end.
func (c *Commands) finish(ctx context.Context, x *command, f fate, status int, answer any) {
	text, err := json.Marshal(answer)
	if err != nil {
		c.cfg.Log.Error("answer to a command not encoded", "command", x.id, "err", err)
		text = []byte("null")
	}
	keys, args := []string{keyspace.Commands()}, []any{x.id}
	tell := func(key string, kept int, ttl time.Duration, fields ...any) {
		keys = append(keys, key)
		args = append(append(args, kept, ttl.Milliseconds(), len(fields)), fields...)
	}
	if reply := x.fields[fieldReply]; reply != "" && protocol.IDFault(reply, protocol.MaxIDBytes) == "" {
		tell(keyspace.Replies(reply), repliesKept, repliesFor,
			fieldCommand, x.id, fieldKey, x.fields[fieldKey], fieldOperation, x.fields[fieldOperation], fieldStatus, status, fieldAnswer, string(text))
	}
	if f >= fateLater {
		tell(keyspace.DeadCommands(), deadKept, deadFor,
			fieldCommand, x.id, fieldKey, x.fields[fieldKey], fieldOperation, x.fields[fieldOperation], fieldBody, x.fields[fieldBody],
			fieldTries, x.tries, fieldStatus, status, fieldAnswer, string(text))
	}
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Timeout)
	defer cancel()
	first, err := c.done.Run(call, c.client, keys, args...).Int()
	switch {
	case err != nil:
		c.counts.failedCalls.Add(1)
		c.cfg.Log.Debug("a command's end: redis", "command", x.id, "err", err)
	case first == 0: // another gateway was quicker
	case f >= fateLater:
		c.counts.dead.Add(1)
		c.cfg.Log.Warn("a command was given up", "command", x.id, "op", x.fields[fieldOperation], "tries", x.tries, "status", status)
	case f == fateRefused:
		c.counts.refused.Add(1)
		c.cfg.Log.Debug("command refused", "command", x.id, "op", x.fields[fieldOperation], "status", status)
	default:
		c.counts.done.Add(1)
	}
}
