package gatewaytest

import (
	"slices"
	"strings"
	"time"
)

// judgePresence compares what an observer was told of people with where they were, on any device. Whoever was there while it asked
// is online; and a version may only change with a user who left, for longer than the grace.
func (v *Verdict) judgePresence(records []Record, seen map[string][]sighting, grace time.Duration) {
	for name, stays := range staysOf(records) {
		steady := len(absences(stays, grace)) == 0
		if !steady {
			v.Absent++
		}
		last := ""
		for _, s := range seen[name] {
			if len(stays) == 0 || s.asked.Before(stays[0].From) {
				continue
			}
			v.Sightings++
			there := slices.ContainsFunc(stays, func(x Stay) bool {
				from := x.From
				if s.version == "" {
					from = from.Add(renewal)
				}
				return from.Before(s.asked) && (x.To.IsZero() || x.To.After(s.told))
			})
			if s.state == "offline" && (there || s.version != "" && steady) {
				v.fault(FalseOffline, "%s was there, but offline at %s (%s)", name, clock(s.asked), s.version)
			}
			if s.version == "" || s.version == last {
				continue
			}
			if last != "" && steady {
				v.changed(name, last, &s)
			}
			last = s.version
		}
	}
}

// renewal is how long a gateway that stood still may take until it counts again, for those who waited and for those who come to it.
// Until then nobody is found there, which is no state that has a version.
const renewal = 2 * time.Second

// changed notes a change of the version of somebody who was there all the time.
func (v *Verdict) changed(name, last string, s *sighting) {
	epoch, _, _ := strings.Cut(s.version, ".")
	before, _, _ := strings.Cut(last, ".")
	if epoch == before {
		v.fault(FalseOffline, "%s was there, but changed from version %s to %s by %s", name, last, s.version, clock(s.told))
	} else {
		v.fault(PresenceForgotten, "%s was there, but has version %s after %s, by %s", name, s.version, last, clock(s.told))
	}
}

// judgeTold compares what somebody who watches people was told, unasked, with where they were. What is watched waits until the grace
// is over, so each absence that is longer may be told once, whenever; nobody else is ever told to be offline, not even by a Redis
// that lost everything. On one connection no version comes twice and none goes back.
func (v *Verdict) judgeTold(records []Record, words map[string][]word, grace time.Duration) {
	for name, stays := range staysOf(records) {
		if len(stays) == 0 {
			continue
		}
		away := absences(stays, grace)
		told := 0
		last := ""
		byWatch := make(map[int][]UserState)
		for _, w := range words[name] {
			if w.at.Before(stays[0].From) {
				continue
			}
			v.Words++
			byWatch[w.watch] = append(byWatch[w.watch], w.UserState)
			if epoch, n, ok := w.Position(); ok {
				before, m, known := UserState{Version: last}.Position()
				if known && epoch == before && n > m && w.State != "offline" && len(away) == 0 {
					v.fault(ToldOffline, "%s was there, but changed from version %s to %s by %s", name, last, w.Version, clock(w.at))
				}
				if w.Version == last {
					continue // another connection, the same state
				}
				last = w.Version
			}
			if w.State != "offline" || w.asked && w.Version == "" {
				continue // an answer without a version says only that nothing is known
			}
			if told++; told > len(away) {
				v.fault(ToldOffline, "%s was away %d times for longer than %v, and the watcher was told offline (%q) for the time %d at %s",
					name, len(away), grace, w.Version, told, clock(w.at))
			}
		}
		for _, states := range byWatch {
			if err := CheckTold(states); err != nil {
				v.fault(ToldOffline, "%s: %v", name, err)
			}
		}
	}
}

// staysOf joins the stays of all devices of each user.
func staysOf(records []Record) map[string][]Stay {
	all := make(map[string][]Stay)
	for i := range records {
		r := &records[i]
		all[r.Name] = append(all[r.Name], r.Stays...)
	}
	for name, stays := range all {
		slices.SortStableFunc(stays, func(a, b Stay) int { return a.From.Compare(b.From) })
		joined := stays[:0]
		for _, x := range stays {
			n := len(joined)
			if n == 0 || !joined[n-1].To.IsZero() && joined[n-1].To.Before(x.From) {
				joined = append(joined, x)
				continue
			}
			if last := &joined[n-1]; !last.To.IsZero() && (x.To.IsZero() || x.To.After(last.To)) {
				last.To = x.To
			}
		}
		all[name] = joined
	}
	return all
}

// absences are the times between stays that were no shorter than the grace.
func absences(stays []Stay, grace time.Duration) (long []time.Duration) {
	for i := range stays {
		if stays[i].To.IsZero() {
			continue
		}
		away := time.Since(stays[i].To)
		if i+1 < len(stays) {
			away = stays[i+1].From.Sub(stays[i].To)
		}
		if away >= grace {
			long = append(long, away)
		}
	}
	return long
}
