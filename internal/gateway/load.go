package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"chatgate/internal/connection"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// An operator may have a gateway close connections without ending it: all, with
// drain, or those it has above the others, with shed. One of them goes on at a time.

// loads is what this gateway does about its connections on command.
type loads struct {
	mu       sync.Mutex
	state    protocol.LoadState // guarded by mu; empty: serving
	shedding int                // guarded by mu; how many are still to be closed
	last     *doing             // guarded by mu; what goes on, or went on last; nil: nothing yet
}

// doing is one drain, or one shed. Whoever ends it knows it by this from the next one, which may have begun before he looks.
type doing struct {
	stop context.CancelFunc
	over chan struct{} // closed when it has come to its end
}

// load is what an asker is told.
func (g *Gateway) load() protocol.Load {
	g.loads.mu.Lock()
	defer g.loads.mu.Unlock()
	return g.loadLocked()
}

// loadLocked is load with loads.mu held.
func (g *Gateway) loadLocked() protocol.Load {
	l := protocol.Load{Connections: g.manager.Count(), State: cmp.Or(g.loads.state, protocol.LoadServing), Shedding: g.loads.shedding}
	if l.State == protocol.LoadDraining && l.Connections == 0 && g.admission.Draining() && g.admission.Open() == 0 {
		l.State = protocol.LoadDrained
	}
	return l
}

// begin starts something beside everything else, unless the gateway is doing
// anything but serve.
func (g *Gateway) begin(state protocol.LoadState, do func(context.Context)) bool {
	x := &g.loads
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.state != "" {
		return false
	}
	ctx, stop := context.WithCancel(context.Background())
	d := &doing{stop: stop, over: make(chan struct{})}
	x.state, x.last = state, d
	if state == protocol.LoadDraining {
		g.draining.Store(true)
	}
	go func() {
		defer close(d.over)
		do(ctx)
	}()
	return true
}

// end stops what goes on and waits for it: if it is this, or whatever it is. then
// says what the gateway is doing afterwards, unless that was decided meanwhile.
func (g *Gateway) end(what protocol.LoadState, then func()) {
	x := &g.loads
	x.mu.Lock()
	d := x.last
	if what != "" && x.state != what {
		x.mu.Unlock()
		return
	}
	if what == "" {
		what = protocol.LoadStopping
		x.state = what // nothing begins any more
	}
	x.mu.Unlock()
	if d != nil {
		d.stop()
		<-d.over
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.state == what && x.last == d {
		x.shedding = 0
		then()
	}
}

// beginDrain starts a drain, unless one goes on. A shed is ended for it, and the next one too where another order was quicker.
func (g *Gateway) beginDrain(do func(context.Context)) {
	for !g.begin(protocol.LoadDraining, do) && g.load().State == protocol.LoadShedding {
		g.end(protocol.LoadShedding, func() { g.loads.state = "" })
	}
}

// stopLoads ends what goes on for good: the process is about to stop.
func (g *Gateway) stopLoads() { g.end("", func() {}) }

// drainOnCommand does what SIGTERM does, short of ending: unready, waiting for the
// balancer, refusing, closing over the window. The process stays, with its leases: it
// can be looked at, it carries events and answers other gateways, and whether it
// stops or takes clients again is the operator's to say. A service manager would
// start one that ended anew.
func (g *Gateway) drainOnCommand() {
	g.beginDrain(func(ctx context.Context) {
		g.log.Info("draining on command", "connections", g.manager.Count())
		if g.manager.Count() > 0 {
			pause(ctx, g.cfg.Drain.Delay)
		}
		if ctx.Err() != nil {
			return
		}
		g.admission.Drain()
		// Who was being admitted when the door was shut is closed in the next round, also where nobody else is left.
		for window := g.cfg.Drain.Window; ctx.Err() == nil && (g.admission.Open() > 0 || g.manager.Count() > 0); window = drainStep {
			conns := g.candidates(func(*connection.Connection) bool { return true })
			window = min(window, time.Duration(len(conns))*drainStep)
			cause := connection.Cause{Kind: connection.KindDraining, WindowMs: spreadByServer.Milliseconds()}
			closePaced(ctx, conns, cause, window, nil)
			pause(ctx, drainStep)
		}
		if ctx.Err() == nil {
			g.log.Info("drained on command")
		}
	})
}

// resume takes clients again.
func (g *Gateway) resume() {
	g.end(protocol.LoadDraining, func() {
		g.loads.state = ""
		g.admission.Resume()
		g.draining.Store(false)
		g.log.Info("taking clients again")
	})
}

// shed closes what is above keep, the oldest first: whoever was moved is among the
// youngest where he comes to, so however often a cluster is rebalanced, it doesn't
// pick on the same people, and who comes back here is not picked again. It stops when
// enough have gone by themselves.
func (g *Gateway) shed(keep, rate int) {
	many := g.manager.Count() - keep
	if many <= 0 || rate <= 0 {
		return
	}
	conns := g.candidates(func(c *connection.Connection) bool { return c.User() != "" })
	slices.SortFunc(conns, func(a, b *connection.Connection) int { return a.Since().Compare(b.Since()) })
	conns = conns[:min(many, len(conns))]
	began := g.begin(protocol.LoadShedding, func(ctx context.Context) {
		g.log.Info("shedding", "connections", len(conns), "keep", keep)
		window := time.Duration(len(conns)) * time.Second / time.Duration(rate)
		cause := connection.Cause{Kind: connection.KindRebalance, WindowMs: spreadByServer.Milliseconds()}
		n := closePaced(ctx, conns, cause, window, func(left int) bool {
			g.loads.mu.Lock()
			g.loads.shedding = left
			g.loads.mu.Unlock()
			return g.manager.Count() <= keep
		})
		g.log.Info("shed", "connections", n)
		g.loads.mu.Lock()
		defer g.loads.mu.Unlock()
		if g.loads.state == protocol.LoadShedding {
			g.loads.state, g.loads.shedding = "", 0
		}
	})
	if began {
		g.loads.mu.Lock()
		if g.loads.state == protocol.LoadShedding && g.loads.shedding == 0 {
			g.loads.shedding = len(conns)
		}
		g.loads.mu.Unlock()
	}
}

// candidates are the connections here that live and fit.
func (g *Gateway) candidates(fits func(*connection.Connection) bool) []*connection.Connection {
	var conns []*connection.Connection
	g.manager.ForEach(func(c *connection.Connection) bool {
		if _, ended := c.Cause(); !ended && fits(c) {
			conns = append(conns, c)
		}
		return true
	})
	return conns
}

// paceTick is how often closePaced looks who is due.
const paceTick = 10 * time.Millisecond

// closePaced closes connections, evenly over the window, until ctx ends or it is
// enough; enough is told how many are left. It returns how many it closed.
func closePaced(ctx context.Context, conns []*connection.Connection, cause connection.Cause, window time.Duration, enough func(left int) bool) int {
	ticker := time.NewTicker(paceTick)
	defer ticker.Stop()
	closed, at, began := 0, 0, time.Now()
	for at < len(conns) {
		due := len(conns)
		if window > 0 {
			due = int(float64(len(conns)) * min(1, float64(time.Since(began))/float64(window)))
		}
		for ; at < due; at++ {
			if enough != nil && enough(len(conns)-at) {
				return closed
			}
			if _, ended := conns[at].Cause(); ended {
				continue // went by itself
			}
			conns[at].Close(cause)
			closed++
		}
		if at == len(conns) {
			break
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return closed
		}
	}
	if enough != nil {
		enough(0)
	}
	return closed
}

// asked answers what another gateway asks of this one; false: its verb is not known.
func (g *Gateway) asked(ctx context.Context, a *router.Asked) bool {
	var q protocol.LoadQuestion
	switch a.Verb {
	case protocol.VerbDrain, protocol.VerbResume, protocol.VerbLoad, protocol.VerbShed:
		if err := json.Unmarshal([]byte(a.Body), &q); err != nil {
			_ = a.Answer(ctx, protocol.AnswerRefused, []byte("not the body of "+string(a.Verb)))
			return true
		}
	default:
		return g.handler.Asked(ctx, a)
	}
	switch a.Verb {
	case protocol.VerbDrain:
		g.drainOnCommand()
	case protocol.VerbResume:
		g.resume()
	case protocol.VerbShed:
		g.shed(q.Keep, q.Rate)
	}
	body, err := json.Marshal(g.load())
	if err != nil {
		_ = a.Answer(ctx, protocol.AnswerRefused, []byte(err.Error()))
		return true
	}
	_ = a.Answer(ctx, protocol.AnswerDone, body)
	return true
}
