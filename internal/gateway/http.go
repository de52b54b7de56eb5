package gateway

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"chatgate/internal/console"
)

// publicMux serves clients and the balancer.
func (g *Gateway) publicMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ws", g.serveWS)
	mux.HandleFunc("GET /stats", g.serveStats)
	mux.HandleFunc("GET /healthz", serveHealth)
	mux.HandleFunc("GET /readyz", g.serveReady)
	if g.cfg.PageOn() {
		mux.Handle("GET /", console.Handler())
	}
	return mux
}

// serveWS refuses clients until this gateway could deliver to them.
func (g *Gateway) serveWS(w http.ResponseWriter, r *http.Request) {
	if !g.open.Load() {
		w.Header().Set("Retry-After", "1")
		writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "unready", "reason": "not subscribed"})
		return
	}
	g.handler.ServeHTTP(w, r)
}

// internalMux serves operators.
func (g *Gateway) internalMux() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /stats", g.serveStats)
	mux.HandleFunc("GET /healthz", serveHealth)
	mux.HandleFunc("GET /readyz", g.serveReady)
	mux.HandleFunc("GET /debug/check", g.serveCheck)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// serveHealth says that the process lives. It never depends on Redis: a restart
// would not bring Redis back, and would drop every connection.
func serveHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// serveReady says whether new connections should come here.
func (g *Gateway) serveReady(w http.ResponseWriter, _ *http.Request) {
	reason := ""
	switch {
	case g.draining.Load():
		reason = "draining"
	case !g.registry.Reachable():
		reason = "redis does not answer"
	case !g.router.Subscribed():
		reason = "not subscribed"
	}
	if reason != "" {
		writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "unready", "reason": reason})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
}

// serveCheck verifies the invariants of the local indexes.
func (g *Gateway) serveCheck(w http.ResponseWriter, _ *http.Request) {
	if err := g.manager.Check(); err != nil {
		writeJSON(w, http.StatusInternalServerError, map[string]string{"status": "broken", "reason": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client may be gone
}
