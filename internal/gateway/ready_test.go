package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

// A gateway hears its channels a moment before it lets clients in. Until it does, it doesn't say that it is ready: a balancer would send it
// clients that it refuses.
func TestAGatewayIsReadyWhenItLetsClientsIn(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Listen, cfg.InternalListen = "127.0.0.1:0", ""
	g, err := New(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	status := func(serve http.HandlerFunc) int {
		w := httptest.NewRecorder()
		serve(w, httptest.NewRequest(http.MethodGet, "/", nil))
		return w.Code
	}
	ready := func() error {
		if s := status(g.serveReady); s != http.StatusOK {
			return fmt.Errorf("/readyz answers %d", s)
		}
		return nil
	}
	if err := gatewaytest.Poll(30*time.Second, ready); err != nil {
		t.Fatal(err)
	}
	g.open.Store(false) // as it was a moment ago
	if a, b := status(g.serveWS), status(g.serveReady); a != http.StatusServiceUnavailable || b != a {
		t.Errorf("/ws answers %d, and /readyz %d", a, b)
	}
	g.open.Store(true)
	if err := gatewaytest.Poll(30*time.Second, ready); err != nil {
		t.Error(err)
	}
}
