package presence

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

//go:embed lua/kick.lua
var kickSource string

// Order says which connections of a user are told to go, and what they are told.
type Order struct {
	Conn   protocol.ConnID // one; empty: all
	Code   protocol.CloseCode
	Reason string
	By     string
	// Before, unless it is 0, spares those that registered later, ms since 1970 by the
	// clock of Redis: an order that is given again doesn't hit who came back meanwhile.
	Before int64
}

// Kicked says what Kick found.
type Kicked struct {
	Marked int // told to go by this call
	// Conns are all that have been told to go and are not gone yet.
	Conns []protocol.ConnID
	// Unsure says that Redis was away and may have forgotten some: they were not told.
	Unsure bool
}

// Kick asks the gateways that hold a user's connections to close them. A lost word
// is found by the connection's next refresh. Control characters in what they are told
// become spaces.
func (r *Registry) Kick(ctx context.Context, u protocol.UserID, o Order) (Kicked, error) {
	g := r.groupOf(u)
	before := ""
	if o.Before > 0 {
		before = strconv.FormatInt(o.Before, 10) + "999" // a fence counts microseconds
	}
	v, err := r.run(ctx, r.kick, []string{keyspace.Conns(u), keyspace.Line(g.name)},
		[]any{keyspace.ChannelPrefix(g.name), string(o.Conn), int(o.Code), protocol.PackReason(plain(o.Reason)), plain(o.By), before})
	if err != nil {
		return Kicked{}, err
	}
	f, ok := v.([]any)
	if !ok || len(f) < 2 {
		return Kicked{}, fmt.Errorf("%w: unexpected kick answer %T", ErrUnavailable, v)
	}
	return Kicked{Marked: int(number(f[0])), Unsure: number(f[1]) != 0, Conns: ids[protocol.ConnID](f[2:])}, nil
}

// plain replaces control characters by spaces.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
