package gateway

import (
	"context"
	"net/http"
	"strings"
	"time"

	"chatgate/internal/api"
	"chatgate/internal/protocol"
)

// newAPI makes the server API. Without keys it is open to whoever is on this machine, as long as nobody else reaches the listener: there
// localHosts keeps pages away that call it by a name of theirs.
func (g *Gateway) newAPI() (err error) {
	ac := api.DefaultConfig()
	ac.Gateway, ac.Log, ac.Keys = g.id, g.log, g.cfg.API.Keys
	ac.Open = onLoopback(g.cfg.InternalListen)
	ac.MessageEvents = g.cfg.Events.messagesWritten(1) > 0
	ac.From, ac.MaxFrameBytes, ac.Deadline = protocol.UserID(g.cfg.API.From), g.cfg.Limits.FrameBytes, g.cfg.API.Deadline
	ac.Registry, ac.History, ac.Router, ac.Revocations = g.registry, g.history, g.router, g.revoked
	ac.Snapshot = g.snapshot
	if g.api, err = api.New(ac); err != nil {
		return err
	}
	scopes, err := api.ParseScopes(g.cfg.API.Commands)
	if err != nil {
		return err
	}
	g.commands = api.NewCommands(g.backend.hooks, g.api, api.CommandsConfig{
		Gateway: g.id, Layout: g.backend.layout, Log: g.log, Scopes: scopes,
		Takeover: g.cfg.API.Takeover, Timeout: g.cfg.Redis.Timeout, Resting: g.draining.Load,
	})
	return nil
}

// finishCalls waits for the calls and the commands that this gateway has in hand, for as long as one may take, and leaves time to leave.
func (g *Gateway) finishCalls(ctx context.Context) {
	within := g.cfg.API.Deadline + time.Second
	if end, ok := ctx.Deadline(); ok {
		within = min(within, time.Until(end)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	g.api.Finish(ctx)
	g.commands.Finish(ctx)
}

// withAPI answers what is below /api/ itself. It stands before the mux, which would clean a path: there may be a user called "..".
func (g *Gateway) withAPI(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/api/") {
			g.api.ServeHTTP(w, r)
			return
		}
		if r.Body != http.NoBody {
			w.Header().Set("Connection", "close") // nothing else here takes one, and net/http would wait for it before it answers
		}
		next.ServeHTTP(w, r)
	})
}
