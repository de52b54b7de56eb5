package auth

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"

	"chatgate/internal/protocol"
)

// Grant is what a token allows. The zero value, which is also that of who shows none, allows all that the gateway's settings do: claims
// only take away.
type Grant struct {
	rooms, watch *patterns // nil: all

	// Each is one more than the claim; 0: there is none.
	messageRate, maxRooms, maxWatches int

	also *Grant // must allow it too; nil: nobody else is asked
}

// AllowsRoom reports whether the room may be joined, sent to and read.
func (g *Grant) AllowsRoom(r protocol.RoomID) bool {
	return g.rooms.match(string(r)) && (g.also == nil || g.also.AllowsRoom(r))
}

// AllowsWatch reports whether a user's presence may be asked for and watched.
func (g *Grant) AllowsWatch(u protocol.UserID) bool {
	return g.watch.match(string(u)) && (g.also == nil || g.also.AllowsWatch(u))
}

// MessageRate returns the lower of a setting, where 0 is no limit, and the claim; the second result is false when there is neither, and
// no frame at all is allowed when it is true and the first 0.
func (g *Grant) MessageRate(setting int) (int, bool) {
	return g.least(setting, func(g *Grant) int { return g.messageRate })
}

// MaxRooms does the same for the rooms a connection is in.
func (g *Grant) MaxRooms(setting int) (int, bool) {
	return g.least(setting, func(g *Grant) int { return g.maxRooms })
}

// MaxWatches does the same for the users a connection watches.
func (g *Grant) MaxWatches(setting int) (int, bool) {
	return g.least(setting, func(g *Grant) int { return g.maxWatches })
}

// least is the lowest of a setting and the claims of all who must allow it.
func (g *Grant) least(setting int, claim func(*Grant) int) (int, bool) {
	lowest := claim(g)
	for x := g.also; x != nil; x = x.also {
		if n := claim(x); n != 0 && (lowest == 0 || n < lowest) {
			lowest = n
		}
	}
	return lower(setting, lowest)
}

func lower(setting, claim int) (int, bool) {
	switch {
	case claim == 0:
		return setting, setting > 0
	case setting > 0:
		return min(setting, claim-1), true
	}
	return claim - 1, true
}

// patterns are names, and beginnings of names.
type patterns struct {
	exact  map[string]bool
	prefix []string
}

func (p *patterns) match(name string) bool {
	if p == nil || p.exact[name] {
		return true
	}
	for _, begin := range p.prefix {
		if strings.HasPrefix(name, begin) {
			return true
		}
	}
	return false
}

// patternsOf reads the list of a claim: each an id, or the beginning of ids and then a star. An empty list allows nothing.
func patternsOf(name string, raw json.RawMessage) (*patterns, error) {
	if raw == nil {
		return nil, nil
	}
	var list []*string
	if json.Unmarshal(raw, &list) != nil || list == nil || slices.Contains(list, nil) {
		return nil, refuse(ReasonClaims, "%s: not a list of texts", name)
	}
	p := &patterns{exact: make(map[string]bool)}
	for _, entry := range list {
		entry := *entry
		if !protocol.ValidID([]byte(entry), protocol.MaxIDBytes+1) || strings.ContainsRune(entry, utf8.RuneError) {
			return nil, refuse(ReasonClaims, "%s: an entry is no id", name)
		}
		if begin, ok := strings.CutSuffix(entry, "*"); ok {
			p.prefix = append(p.prefix, begin)
		} else {
			p.exact[entry] = true
		}
	}
	return p, nil
}

// grantOf reads the claims that allow less. One that can't be understood makes the token bad: whoever wrote it meant to forbid something.
func grantOf(t *claims) (g Grant, err error) {
	if g.rooms, err = patternsOf("rooms", t.Rooms); err != nil {
		return g, err
	}
	if g.watch, err = patternsOf("watch", t.Watch); err != nil {
		return g, err
	}
	if t.Limits == nil {
		return g, nil
	}
	var limits map[string]json.RawMessage
	if json.Unmarshal(t.Limits, &limits) != nil || limits == nil {
		return g, refuse(ReasonClaims, "limits: not an object of numbers")
	}
	for name, value := range limits {
		n, err := strconv.ParseInt(string(value), 10, 31) // room for one more
		if err != nil || n < 0 {
			return g, refuse(ReasonClaims, "limits: not a whole number from 0 on")
		}
		switch name {
		case "messageRate":
			g.messageRate = int(n) + 1
		case "rooms":
			g.maxRooms = int(n) + 1
		case "watches":
			g.maxWatches = int(n) + 1
		default:
			return g, refuse(ReasonClaims, "limits: a name that is not known here")
		}
	}
	return g, nil
}

// MarshalJSON writes what is allowed as the claims have it, for people to read. What is not limited is left out.
func (g *Grant) MarshalJSON() ([]byte, error) {
	limits := make(map[string]int)
	for name, n := range map[string]int{"messageRate": g.messageRate, "rooms": g.maxRooms, "watches": g.maxWatches} {
		if n > 0 {
			limits[name] = n - 1
		}
	}
	return json.Marshal(struct {
		Rooms  *[]string      `json:"rooms,omitempty"`
		Watch  *[]string      `json:"watch,omitempty"`
		Limits map[string]int `json:"limits,omitempty"`
	}{g.rooms.list(), g.watch.list(), limits})
}

// list is what the patterns were made from, sorted; nil for nil.
func (p *patterns) list() *[]string {
	if p == nil {
		return nil
	}
	list := slices.AppendSeq([]string{}, maps.Keys(p.exact))
	for _, begin := range p.prefix {
		list = append(list, begin+"*")
	}
	slices.Sort(list)
	return &list
}
