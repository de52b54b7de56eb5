package auth

import (
	"errors"
	"slices"
)

const numReasons = 13

// Stats counts what a Verifier did since New.
type Stats struct {
	Accepted, Unavailable uint64
	Refused               map[Reason]uint64 // every reason, also those at 0
	// Keys are those in use now, KeySets how many are configured; Fetched and FetchFailed count fetches of them.
	Keys, KeySets        int
	Fetched, FetchFailed uint64
}

// Stats reads the counters.
func (v *Verifier) Stats() Stats {
	s := Stats{
		Accepted: v.accepted.Load(), Unavailable: v.unsure.Load(), Refused: make(map[Reason]uint64, numReasons),
		Keys: len(*v.keys.Load()), KeySets: len(v.sets),
	}
	for i, reason := range Reasons() {
		s.Refused[reason] = v.refused[i].Load()
	}
	for _, set := range v.sets {
		s.Keys += set.size()
		s.Fetched += set.counts.fetched.Load()
		s.FetchFailed += set.counts.failed.Load()
	}
	return s
}

// CountRevoked counts a token that was good but for a revocation, which the caller has found.
func (v *Verifier) CountRevoked() { v.count(&Refusal{Reason: ReasonRevoked}) }

func (v *Verifier) count(err error) {
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		v.refused[slices.Index(Reasons(), refusal.Reason)].Add(1)
		return
	}
	v.unsure.Add(1)
}
