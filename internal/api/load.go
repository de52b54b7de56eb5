package api

import (
	"cmp"
	"context"
	"slices"

	"chatgate/internal/protocol"
)

// GatewayRequest names a gateway.
type GatewayRequest struct {
	ID protocol.GatewayID `path:"id" doc:"Its id, from the list of gateways." example:"a-k3v9x2mq"`
}

// GatewayAnswer is what a gateway does about its connections.
type GatewayAnswer struct {
	ID          protocol.GatewayID `json:"id" doc:"Of the gateway." example:"a-k3v9x2mq"`
	State       protocol.LoadState `json:"state" doc:"serving; shedding: serving, and closing what it has above the others; draining: closing what it has, and taking nobody; drained: nobody is left; stopping: the process is about to end." example:"draining"`
	Connections int                `json:"connections" doc:"Sockets it has now." example:"120"`
	Shedding    int                `json:"shedding,omitempty" doc:"How many of them it is about to close."`
}

var drainGateway = on(operation{
	Name: "drainGateway", Method: "POST", Path: "/gateways/{id}/drain", Scope: ScopeControl,
	Summary: "Drain a gateway",
	Description: "What SIGTERM does, and the process stays: it turns unready, waits for the balancer (drain.delay), refuses, and closes what it has over the window (drain.window) with 4000. " +
		"Then it takes nobody until it is told to resume, or is stopped. It answers at once; ask again to see how far it is.",
	Codes: []Code{CodeNotFound, CodeUnavailable, CodeUnknown},
}, func(a *API, ctx context.Context, q *GatewayRequest) (*GatewayAnswer, error) {
	return a.steer(ctx, q.ID, protocol.VerbDrain)
})

var resumeGateway = on(operation{
	Name: "resumeGateway", Method: "POST", Path: "/gateways/{id}/resume", Scope: ScopeControl,
	Summary:     "Have a drained gateway take clients again",
	Description: "Also in the middle of a drain: those it has not closed stay.",
	Codes:       []Code{CodeNotFound, CodeUnavailable, CodeUnknown},
}, func(a *API, ctx context.Context, q *GatewayRequest) (*GatewayAnswer, error) {
	return a.steer(ctx, q.ID, protocol.VerbResume)
})

// steer tells one gateway what to do.
func (a *API) steer(ctx context.Context, id protocol.GatewayID, verb protocol.Verb) (*GatewayAnswer, error) {
	if !a.cfg.Registry.AnswersOfGateways() {
		return nil, unavailable()
	}
	living, dead, err := a.cfg.Registry.Gateways(ctx)
	switch {
	case err != nil:
		return nil, err
	case slices.Contains(dead, id):
		return nil, isDead(id)
	case !slices.Contains(living, id):
		return nil, refuse(CodeNotFound, "there is no such gateway")
	}
	x, err := a.askOne(ctx, verb, &protocol.LoadQuestion{}, id)
	if err != nil {
		return nil, err
	}
	l, ok := told[protocol.Load](x)
	if !ok {
		return nil, otherVersion()
	}
	return &GatewayAnswer{ID: id, State: l.State, Connections: l.Connections, Shedding: l.Shedding}, nil
}

// RebalanceRequest says how connections are to be spread.
type RebalanceRequest struct {
	Tolerance int  `json:"tolerance,omitempty" min:"0" max:"100" default:"10" doc:"A gateway within so many percent above the mean is left alone."`
	Rate      int  `json:"rate,omitempty" min:"1" max:"10000" default:"50" doc:"Connections a second that each gateway closes."`
	Floor     int  `json:"floor,omitempty" min:"0" max:"10000000" default:"20" doc:"No gateway is brought below so many connections: a handful is not worth moving."`
	DryRun    bool `json:"dryRun,omitempty" doc:"Only say what would be done."`
}

// RebalanceAnswer is the plan, which gateways carry out after the answer.
type RebalanceAnswer struct {
	Mean     int         `json:"mean" doc:"Connections of all gateways by the number of those that take clients, rounded up." example:"100"`
	Shed     int         `json:"shed" doc:"Connections that are closed in all: what was above the mean where it was more than the tolerance." example:"50"`
	Gateways []Balancing `json:"gateways" doc:"All that answered, by id."`
	Unheard
}

// Balancing is what a gateway has, and gives up.
type Balancing struct {
	ID          protocol.GatewayID `json:"id" doc:"Of the gateway." example:"a-k3v9x2mq"`
	Connections int                `json:"connections" doc:"When it was asked." example:"150"`
	Shed        int                `json:"shed" doc:"How many it closes, with 4005." example:"50"`
	State       protocol.LoadState `json:"state" doc:"As it was when it was asked; one that was not serving is not touched." example:"serving"`
}

// httpStatus is 207 when a gateway did not answer.
func (a *RebalanceAnswer) httpStatus() int {
	if len(a.Missing) > 0 {
		return 207
	}
	return 200
}

var rebalance = on(operation{
	Name: "rebalance", Method: "POST", Path: "/rebalance", Scope: ScopeControl,
	Summary: "Spread connections over the gateways",
	Description: "Gateways that have more than the mean and the tolerance close what is above the mean, paced, the longest connected first, with 4005: these clients come back at once, through the balancer. " +
		"On a balanced cluster nobody is touched. Where the clients come to is the balancer's to say: it should prefer the gateway with the fewest connections. " +
		"The answer is the plan, and comes before it is carried out. Ask again when those that were closed are back: whoever is on the way is counted nowhere. A gateway that did not answer is left out of the mean, and is not touched.",
	Codes: []Code{CodeUnavailable},
}, (*API).rebalance)

func (a *API) rebalance(ctx context.Context, q *RebalanceRequest) (*RebalanceAnswer, error) {
	if !a.cfg.Registry.AnswersOfGateways() {
		return nil, unavailable()
	}
	replies, err := a.ask(ctx, protocol.VerbLoad, &protocol.LoadQuestion{}, nil)
	if err != nil {
		return nil, err
	}
	answer := &RebalanceAnswer{Gateways: []Balancing{}, Unheard: unheard(replies.Missing)}
	for i := range replies.Answers {
		x := &replies.Answers[i]
		if l, ok := told[protocol.Load](x); ok {
			answer.Gateways = append(answer.Gateways, Balancing{ID: x.Gateway, Connections: l.Connections, State: l.State})
		} else {
			answer.miss(x.Gateway, missingVersion)
		}
	}
	slices.SortFunc(answer.Gateways, func(a, b Balancing) int { return cmp.Compare(a.ID, b.ID) })
	keep := answer.plan(q)
	for i := range answer.Gateways {
		g := &answer.Gateways[i]
		if g.Shed == 0 || q.DryRun {
			continue
		}
		// One after the other is soon enough: each is told in a round trip.
		shed, err := a.ask(ctx, protocol.VerbShed, &protocol.LoadQuestion{Keep: keep, Rate: q.Rate}, []protocol.GatewayID{g.ID})
		if err != nil {
			return nil, err
		}
		answer.missAll(shed.Missing)
		if len(shed.Answers) == 0 {
			g.Shed = 0
		}
	}
	for i := range answer.Gateways {
		answer.Shed += answer.Gateways[i].Shed
	}
	return answer, nil
}

// plan computes the mean and what each gateway has to give up, and returns how many
// connections one that does keeps. Those of a gateway that takes no clients come to
// the others, so they count.
func (a *RebalanceAnswer) plan(q *RebalanceRequest) (keep int) {
	total, serving := 0, 0
	for i := range a.Gateways {
		g := &a.Gateways[i]
		total += g.Connections
		if g.State == protocol.LoadServing || g.State == protocol.LoadShedding {
			serving++
		}
	}
	if serving == 0 {
		return 0
	}
	a.Mean = (total + serving - 1) / serving
	keep = max(a.Mean, q.Floor)
	for i := range a.Gateways {
		g := &a.Gateways[i]
		if g.State == protocol.LoadServing && g.Connections > keep && 100*g.Connections > (100+q.Tolerance)*a.Mean {
			g.Shed = g.Connections - keep
		}
	}
	return keep
}
