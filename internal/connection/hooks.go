package connection

// The states of Connection.hooks. Start hooks may still be running when the connection ends; then the goroutine that runs them goes on
// with the stop hooks. Each side moves the state with one atomic step, so exactly one of them does:
//
//	start finished first:  starting -> started by the hook goroutine, then started -> ended by finish, which stops
//	the end came first:    starting -> ended by finish, then the hook goroutine fails to set started, and stops
const (
	hooksNone uint32 = iota
	hooksStarting
	hooksStarted
	hooksEnded
)

// start runs the OnStart hooks off the caller's path. Manager.Add calls it.
func (c *Connection) start() {
	if len(c.cfg.OnStart) == 0 {
		return
	}
	c.hooks.Store(hooksStarting)
	go func() {
		for _, hook := range c.cfg.OnStart {
			hook(c)
		}
		if !c.hooks.CompareAndSwap(hooksStarting, hooksStarted) {
			c.runStop(*c.cause.Load())
		}
	}()
}

// stop runs the OnStop hooks, after the OnStart ones, then releases the bound values. It waits for neither; without hooks everything is
// released when it returns.
func (c *Connection) stop(cause Cause) {
	switch {
	case c.hooks.Swap(hooksEnded) == hooksStarting:
	case len(c.cfg.OnStop) > 0:
		go c.runStop(cause)
	default:
		c.runStop(cause)
	}
}

func (c *Connection) runStop(cause Cause) {
	for _, hook := range c.cfg.OnStop {
		hook(c, cause)
	}
	c.release()
	c.manager.leave()
}
