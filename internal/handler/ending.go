package handler

import (
	"chatgate/internal/connection"
	"chatgate/internal/presence"
)

// EndOf is what the registry is told of a connection's end, for its disconnect event.
func EndOf(c connection.Cause) presence.End {
	code := c.Code
	if code == 0 {
		code = c.Kind.Code()
	}
	return presence.End{Cause: c.Kind.String(), Kind: string(c.Ending()), Code: int(code)}
}
