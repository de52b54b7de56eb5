package gateway

import (
	"context"
	"errors"
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

// Revoke makes tokens bad before their time, on all gateways that share this configuration's Redis and tokens. The error is
// ErrDependency when Redis can't be asked, else what is wrong with one of the list.
func Revoke(ctx context.Context, cfg Config, log *slog.Logger, list ...auth.Revocation) error {
	b, err := connect(ctx, cfg.Redis, log)
	if err != nil {
		return err
	}
	defer func() { _ = b.close() }()
	err = auth.NewRevocations(b.client, cfg.revocations(b.layout, log)).Revoke(ctx, list...)
	if errors.Is(err, auth.ErrUnavailable) {
		return fmt.Errorf("%w: %w", ErrDependency, err)
	}
	return err
}
