package handler

import (
	"context"
	"sync"
	"testing"

	"chatgate/internal/connection"
	"chatgate/internal/gatewaytest"
)

// Messages for everyone go out while clients come: the first frame that anybody gets is his `registered` all the same.
func TestNobodyIsToldBeforeHeIsRegistered(t *testing.T) {
	t.Parallel()
	g := newGateway(t, gatewaytest.Shared(t, gatewaytest.Embedded))
	ctx, cancel := context.WithCancel(context.Background())
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel()
	told := make(map[*connection.Connection]bool)
	telling.Go(func() {
		for ctx.Err() == nil {
			Registered(g.manager)(func(c *connection.Connection) bool {
				if !told[c] {
					told[c] = c.Send([]byte(`{"type":"message","id":"news"}`))
				}
				return true
			})
		}
	})
	for range 200 {
		c := g.open()
		c.say(`{"type":"register","userId":"alice"}`)
		if news, first := c.next("message"), c.next("registered"); news.At.Before(first.At) {
			t.Fatalf("%s came before %s", news, first)
		}
		c.Cut()
	}
}
