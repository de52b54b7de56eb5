package router

import (
	"context"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A tap sits on the line to Redis: it counts what goes over it, and can hold, delay and lose calls of scripts.
type tap struct {
	mu      sync.Mutex
	calls   map[string]int                             // guarded by mu; commands by lower-case name
	held    chan struct{}                              // guarded by mu; scripts wait until it is closed; nil: they don't
	before  func(redis.Cmder)                          // guarded by mu; called with each script
	refuse  func(context.Context, redis.Cmder) error   // guarded by mu; an error is the script's, which isn't sent
	after   func(redis.Cmder, error) error             // guarded by mu; may replace the answer of a script
	pipe    func(context.Context, []redis.Cmder) error // guarded by mu; an error is the pipeline's, which isn't sent
	entered chan struct{}                              // one token for each script that came to a hold; never closed
}

func newTap() *tap { return &tap{calls: make(map[string]int), entered: make(chan struct{}, 1024)} }

// hold keeps calls from being made until the function it returns is called.
func (x *tap) hold() (release func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	held := make(chan struct{})
	x.held = held
	return sync.OnceFunc(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.held == held {
			x.held = nil
		}
		close(held)
	})
}

// set changes what the tap does.
func (x *tap) set(f func(*tap)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f(x)
}

// count returns how often the commands went over the line.
func (x *tap) count(names ...string) (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, name := range names {
		n += x.calls[name]
	}
	return n
}

func (x *tap) DialHook(next redis.DialHook) redis.DialHook { return next }

func (x *tap) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		x.mu.Lock()
		x.calls[cmd.Name()]++
		held, before := x.held, x.before
		x.mu.Unlock()
		if n := cmd.Name(); n != "evalsha" && n != "eval" {
			return next(ctx, cmd) // a new connection introduces itself
		}
		if before != nil {
			before(cmd)
		}
		if held != nil {
			x.entered <- struct{}{}
			select {
			case <-held:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		x.mu.Lock()
		after, refuse := x.after, x.refuse // also those that were set while it was held
		x.mu.Unlock()
		if refuse != nil {
			if err := refuse(ctx, cmd); err != nil {
				return err
			}
		}
		err := next(ctx, cmd)
		if after != nil {
			err = after(cmd, err)
		}
		return err
	}
}

func (x *tap) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		x.mu.Lock()
		for _, cmd := range cmds {
			x.calls[cmd.Name()]++
		}
		pipe := x.pipe
		x.mu.Unlock()
		if len(cmds) > 0 && cmds[0].Name() == "client" {
			return next(ctx, cmds) // a new connection introduces itself
		}
		if pipe != nil {
			if err := pipe(ctx, cmds); err != nil {
				return err
			}
		}
		return next(ctx, cmds)
	}
}
