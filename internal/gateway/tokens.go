package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"chatgate/internal/auth"
	"chatgate/internal/handler"
	"chatgate/internal/keyspace"
)

// takeTokens makes what judges tokens, if any are taken.
func (g *Gateway) takeTokens() error {
	if !g.cfg.Auth.Enabled() {
		return nil
	}
	var err error
	if g.tokens, err = auth.New(g.cfg.Auth.Verification(g.log)); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	rc := g.cfg.revocations(g.backend.layout, g.log)
	rc.OnChange = func() { handler.Revoked(g.manager, g.revoked) }
	g.revoked = auth.NewRevocations(g.backend.client, rc)
	return nil
}

// revocations says how they are kept: as long as a token that was good at the time could live on.
func (c Config) revocations(layout keyspace.Layout, log *slog.Logger) auth.RevocationsConfig {
	rc := auth.DefaultRevocationsConfig()
	rc.Layout, rc.Timeout, rc.Log = layout, c.Redis.Timeout, log
	rc.Kept = c.Auth.MaxLifetime + c.Auth.Leeway + time.Minute
	return rc
}

// remindEvery is how often a choice that endangers is written to the log.
const remindEvery = time.Minute

// remind logs a warning until ctx ends. The first one is logged at the start, by who calls it.
func remind(ctx context.Context, log *slog.Logger, warning string) {
	tick := time.NewTicker(remindEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			log.Warn(warning)
		}
	}
}
