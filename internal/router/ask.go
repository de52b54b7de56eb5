package router

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"chatgate/internal/protocol"
)

// Question asks gateways for what only they know or can do.
type Question struct {
	Verb protocol.Verb
	Body []byte
	// To are the gateways asked; nil: all that live, and those whose lease ended are
	// named as missing.
	To []protocol.GatewayID
	// Within is how long an answer may take, beside the way to Redis.
	Within time.Duration
	// Part is given each part of an answer that others follow, one at a time, and how
	// many before it were lost. May be nil.
	Part func(a protocol.Answer, lost uint64)
}

// Replies is what came of a question: each gateway asked is in one of the lists.
type Replies struct {
	Answers []protocol.Answer // the last part of each
	Missing []Missing
}

// Missing is a gateway that did not answer, and why.
type Missing struct {
	Gateway protocol.GatewayID `json:"gatewayId"`
	Reason  MissingReason      `json:"reason"`
}

// MissingReason says why a gateway did not answer. Only of one that is dead or
// was not reached is it certain that it did nothing.
type MissingReason string

// The reasons.
const (
	MissingDead      MissingReason = "dead"      // its lease ended
	MissingUnreached MissingReason = "unreached" // nobody listens on its channel: just killed, most likely
	MissingSilent    MissingReason = "silent"    // it was reached, and did not answer in time
	MissingUnknown   MissingReason = "unknown"   // Redis did not say whether it was reached
)

// asks are the questions of this gateway that wait for answers.
type asks struct {
	mu      sync.Mutex
	last    uint64                          // guarded by mu
	waiting map[uint64]chan protocol.Answer // guarded by mu; the channels are never closed
}

// answersKept is how many parts may wait for whoever asked. What comes then is
// dropped, which its number tells.
const answersKept = 1024

// Ask asks gateways, and returns when all have answered or are known not to, or
// their time is over. Nothing is repeated: who asks again asks twice, so verbs must
// stand that. The error is that of Redis, and then nobody was asked, or of ctx.
func (r *Router) Ask(ctx context.Context, q Question) (Replies, error) {
	var out Replies
	to := q.To
	if to == nil {
		living, dead, err := r.registry.Gateways(ctx)
		if err != nil {
			return out, err
		}
		to = living
		for _, gw := range dead {
			out.Missing = append(out.Missing, Missing{gw, MissingDead})
		}
	}
	id, answers := r.asks.begin()
	defer r.asks.end(id)
	p := &poll{router: r, question: &q, id: id, answers: answers, open: make(map[protocol.GatewayID]uint64), out: &out}
	trip := p.publish(ctx, to)
	err := p.collect(ctx, q.Within+trip)
	slices.SortFunc(out.Answers, func(a, b protocol.Answer) int { return cmp.Compare(a.Gateway, b.Gateway) })
	slices.SortFunc(out.Missing, func(a, b Missing) int { return cmp.Compare(a.Gateway, b.Gateway) })
	return out, err
}

// poll is a question on its way. It belongs to the goroutine that asks.
type poll struct {
	router   *Router
	question *Question
	id       uint64
	answers  <-chan protocol.Answer
	open     map[protocol.GatewayID]uint64 // who may answer yet -> parts that came or were lost
	out      *Replies
}

// publish hands the question to all who are asked, and returns how long Redis took.
func (p *poll) publish(ctx context.Context, to []protocol.GatewayID) time.Duration {
	r := p.router
	question := protocol.Question{ID: p.id, Asker: r.cfg.Gateway, Within: p.question.Within.Milliseconds(), Verb: p.question.Verb, Body: string(p.question.Body)}
	envelope := protocol.AppendQuestion(nil, &question)
	parcels := make([]*parcel, 0, len(to))
	for _, gw := range to {
		switch {
		case gw == r.cfg.Gateway:
			// Without Redis, so that it can be asked even when it hears nothing.
			if p.open[gw] = 0; !r.questions.take(question) {
				p.miss(gw, MissingUnreached)
			}
		case r.registry.IsDead(gw):
			p.miss(gw, MissingDead)
		default:
			p.open[gw] = 0
			parcels = append(parcels, &parcel{group: r.controlGroup(gw), gateway: gw, payload: envelope})
		}
	}
	if len(parcels) == 0 {
		return 0
	}
	began := time.Now()
	_ = r.publish(ctx, parcels) // each parcel says what became of it
	for _, x := range parcels {
		switch {
		case x.lost:
			p.miss(x.gateway, MissingUnknown)
		case x.receivers == 0:
			p.miss(x.gateway, MissingUnreached)
		}
	}
	return time.Since(began)
}

func (p *poll) miss(gw protocol.GatewayID, why MissingReason) {
	delete(p.open, gw)
	p.out.Missing = append(p.out.Missing, Missing{gw, why})
}

// lookEvery is how often an asker looks whether somebody's lease has ended.
const lookEvery = 100 * time.Millisecond

// collect takes answers until nobody is left, or the time is over.
func (p *poll) collect(ctx context.Context, within time.Duration) error {
	late := time.NewTimer(within)
	defer late.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for len(p.open) > 0 {
		select {
		case a := <-p.answers:
			p.take(a)
		case <-look.C:
			for gw := range p.open {
				if gw != p.router.cfg.Gateway && p.router.registry.IsDead(gw) {
					p.miss(gw, MissingDead)
				}
			}
		case <-late.C:
			p.giveUp()
			return nil
		case <-ctx.Done():
			p.callOff(ctx)
			p.giveUp()
			return context.Cause(ctx)
		case <-p.router.ctx.Done():
			p.giveUp()
			return context.Cause(p.router.ctx)
		}
	}
	return nil
}

// callOff tells those who would answer for long yet that nobody waits any more.
func (p *poll) callOff(ctx context.Context) {
	r := p.router
	if p.question.Verb != protocol.VerbTrace {
		return // anything else is answered in a moment
	}
	envelope := protocol.AppendQuestion(nil, &protocol.Question{ID: p.id, Asker: r.cfg.Gateway, Verb: protocol.VerbCallOff})
	var parcels []*parcel
	for gw := range p.open {
		if gw == r.cfg.Gateway {
			r.traces.callOff(traceID{gw, p.id})
		} else {
			parcels = append(parcels, &parcel{group: r.controlGroup(gw), gateway: gw, payload: envelope})
		}
	}
	if len(parcels) > 0 {
		_ = r.publish(context.WithoutCancel(ctx), parcels) // or they tell nobody to the end
	}
}

func (p *poll) giveUp() {
	for gw := range p.open {
		p.miss(gw, MissingSilent)
	}
}

// take notes an answer, or a part of one. Parts of one gateway come in order; what
// is missing between them was lost.
func (p *poll) take(a protocol.Answer) {
	before, open := p.open[a.Gateway]
	if !open || a.Number <= before {
		return // another time, or twice
	}
	p.open[a.Gateway] = a.Number
	if a.More {
		if p.question.Part != nil {
			p.question.Part(a, a.Number-before-1)
		}
		return
	}
	if lost := a.Number - before - 1; lost > 0 && p.question.Part != nil {
		p.question.Part(protocol.Answer{ID: a.ID, Gateway: a.Gateway, More: true, Status: a.Status}, lost)
	}
	delete(p.open, a.Gateway)
	p.out.Answers = append(p.out.Answers, a)
}

func (x *asks) begin() (id uint64, answers <-chan protocol.Answer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiting == nil {
		x.waiting = make(map[uint64]chan protocol.Answer)
	}
	x.last++
	c := make(chan protocol.Answer, answersKept)
	x.waiting[x.last] = c
	return x.last, c
}

func (x *asks) end(id uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.waiting, id)
}

// hear gives an answer to whoever asked, if he still waits. It never blocks.
func (x *asks) hear(a protocol.Answer) {
	x.mu.Lock()
	answers := x.waiting[a.ID]
	x.mu.Unlock()
	select {
	case answers <- a:
	default: // he waits no more, or there is no room
	}
}
