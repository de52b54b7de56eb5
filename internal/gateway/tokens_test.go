package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A flag that was set to try something is still in the log when somebody looks, days later.
func TestInsecureIsRememberedEveryMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { remind(ctx, slog.New(slog.NewTextHandler(&out, nil)), warnInsecure) })
		time.Sleep(10*time.Minute + time.Second) // of the bubble's clock
		cancel()
		running.Wait()
		if n := strings.Count(out.String(), "level=WARN msg=\"insecure is set: "); n != 10 {
			t.Errorf("%d times in ten minutes:\n%s", n, &out)
		}
	})
}

// What a setting names must be there, and fit to prove anything.
func TestAGatewayWithBadKeysDoesNotStart(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "short": "secret", "public": "-----BEGIN PUBLIC KEY-----\n" + strings.Repeat("A", 64)} {
		cfg := DefaultConfig()
		withTokens(&cfg)
		cfg.Listen, cfg.InternalListen = "127.0.0.1:0", ""
		cfg.Auth.Secrets = []string{configFile(t, content)}
		g, err := New(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "auth.secrets: "+cfg.Auth.Secrets[0]) {
			t.Errorf("%s: %v", name, err)
		}
		if g != nil {
			g.closeFiles()
		}
	}
}
