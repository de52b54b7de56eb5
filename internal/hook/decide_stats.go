package hook

import (
	"sync/atomic"
	"time"
)

// outcome is how a question ended.
type outcome int

const (
	allowed outcome = iota
	denied
	failed  // no answer in time, or none that is one
	skipped // not asked: the last ones all failed
	crowded // too many others were asked, and nothing was left of its time
	numOutcomes
)

// outcomeNames are the labels of DecisionStats.Outcomes.
var outcomeNames = [numOutcomes]string{"allowed", "denied", "failed", "skipped", "crowded"}

// decisionBuckets are the upper bounds of DecisionStats.Buckets, seconds.
var decisionBuckets = [...]float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// decisions counts how questions ended, and how long that took.
type decisions struct {
	outcomes [numOutcomes]atomic.Uint64
	buckets  [len(decisionBuckets)]atomic.Uint64
	sum      atomic.Int64 // ns
}

func (c *decisions) note(o outcome, took time.Duration) {
	c.outcomes[o].Add(1)
	c.sum.Add(int64(took))
	for i, most := range decisionBuckets {
		if took.Seconds() <= most {
			c.buckets[i].Add(1)
			return
		}
	}
}

// DecisionStats is one question as this gateway sees it. Counters only grow.
type DecisionStats struct {
	Question Question          `json:"question"`
	Open     bool              `json:"open"` // nobody is asked at the moment: the last ones all failed
	Waiting  int               `json:"waiting"`
	Outcomes map[string]uint64 `json:"outcomes"`
	Seconds  float64           `json:"seconds"` // waited in all

	Buckets map[float64]uint64 `json:"-"` // by upper bound: as many took no longer
}

// Stats returns the figures of each question that is asked.
func (d *Decider) Stats() []DecisionStats {
	all := []DecisionStats{}
	if d == nil {
		return all
	}
	for _, q := range Questions {
		a := d.asked[q]
		if a == nil {
			continue
		}
		s := DecisionStats{
			Question: q, Open: a.breaker.isOpen(), Waiting: len(a.slots), Outcomes: make(map[string]uint64),
			Seconds: time.Duration(a.counts.sum.Load()).Seconds(), Buckets: make(map[float64]uint64),
		}
		for o, name := range outcomeNames {
			s.Outcomes[name] = a.counts.outcomes[o].Load()
		}
		var n uint64
		for i, most := range decisionBuckets {
			n += a.counts.buckets[i].Load()
			s.Buckets[most] = n
		}
		all = append(all, s)
	}
	return all
}
