package connection

import (
	"context"
	"sync"
)

// carried is what a connection carries for others: values with their deleters, and a context. It is made when first asked for.
type carried struct {
	mu     sync.Mutex
	values []bound // few, so a list
	ctx    context.Context
	cancel context.CancelCauseFunc
	ended  *Cause // set at the end of Run: nothing can be bound any more
}

type bound struct {
	key     string
	value   any
	release func(any)
}

// carry returns what the connection carries, made on first use.
func (c *Connection) carry() *carried {
	if k := c.carried.Load(); k != nil {
		return k
	}
	c.carried.CompareAndSwap(nil, new(carried))
	return c.carried.Load()
}

// Bind ties a value to the connection. release, if not nil, is called with it exactly once: when the connection has ended and its stop
// hooks have run, or when another value is bound to the key. When the connection has ended before, release is called at once, and Bind
// returns false.
func (c *Connection) Bind(key string, value any, release func(any)) bool {
	k := c.carry()
	b := bound{key, value, release}
	var old bound
	k.mu.Lock()
	taken := k.ended == nil
	if taken {
		old = k.put(b)
	} else {
		old = b
	}
	k.mu.Unlock()
	if old.release != nil {
		old.release(old.value)
	}
	return taken
}

// put returns the value that b replaces, if any. mu is held.
func (k *carried) put(b bound) bound {
	for i := range k.values {
		if k.values[i].key == b.key {
			old := k.values[i]
			k.values[i] = b
			return old
		}
	}
	k.values = append(k.values, b)
	return bound{}
}

// Value is what was bound to the key; false: nothing, or it was released.
func (c *Connection) Value(key string) (any, bool) {
	k := c.carried.Load()
	if k == nil {
		return nil, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.values {
		if k.values[i].key == key {
			return k.values[i].value, true
		}
	}
	return nil, false
}

// Context lasts as long as the connection: it is cancelled at the end of Run, with the Cause as its cause.
func (c *Connection) Context() context.Context {
	k := c.carry()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ctx == nil {
		k.ctx, k.cancel = context.WithCancelCause(context.Background())
		if k.ended != nil {
			k.cancel(*k.ended)
		}
	}
	return k.ctx
}

// endContext cancels the context and lets nothing more be bound. What is bound stays readable until release.
func (c *Connection) endContext(cause *Cause) {
	k := c.carry()
	k.mu.Lock()
	k.ended = cause
	cancel := k.cancel
	k.mu.Unlock()
	if cancel != nil {
		cancel(*cause)
	}
}

// release gives the bound values back, the last one bound first.
func (c *Connection) release() {
	k := c.carry()
	k.mu.Lock()
	values := k.values
	k.values = nil
	k.mu.Unlock()
	for i := len(values) - 1; i >= 0; i-- {
		if b := values[i]; b.release != nil {
			b.release(b.value)
		}
	}
}
