package gateway

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"chatgate/internal/console"
	"chatgate/internal/problem"
)

// What a client may take its time for, before it is upgraded. After that its connection has the rules of package connection.
const (
	headerTimeout  = 5 * time.Second // from connecting to the end of the header, TLS included
	requestTimeout = 10 * time.Second
	answerTimeout  = 10 * time.Second
	idleTimeout    = time.Minute
	maxHeaderBytes = 16 << 10 // net/http takes 4 KB more, then answers 431
)

// listen opens the listeners, and takes the certificate there is.
func (g *Gateway) listen() error {
	if g.cfg.TLS.On() {
		take, err := g.reloadCertificate(&g.cfg)
		if err != nil {
			return err
		}
		take()
		// A WebSocket is upgraded from HTTP/1.1, so nothing else is offered.
		g.tls = &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.certificate.Load(), nil },
			MinVersion:     tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		}
	}
	g.local = onLoopback(g.cfg.Listen) && len(g.cfg.Origins) == 0
	public := net.ListenConfig{Control: boundSendBuffers}
	if g.conns.PingAfter > 0 && g.conns.PongWait > 0 {
		// A client that is gone is found by our pings. TCP's would cost four more system calls for each connection.
		public.KeepAlive = -1
	}
	listener, err := public.Listen(context.Background(), "tcp", g.cfg.Listen)
	if err != nil {
		return err
	}
	g.public = openDoor(listener, OpenFileLimit(), g.manager.Count, g.log)
	if g.cfg.InternalListen != "" {
		if g.internal, err = net.Listen("tcp", g.cfg.InternalListen); err != nil {
			return err
		}
	}
	return nil
}

// servePublic runs the public listener until ctx ends.
func (g *Gateway) servePublic(ctx context.Context) error {
	h := g.publicMux()
	if g.local {
		h = localHosts(h, &g.foreignHosts)
	}
	var l net.Listener = g.public
	if g.cfg.ProxyProtocol {
		l = newProxied(l, g.proxies, &g.headerless)
	}
	if g.tls != nil {
		l = tls.NewListener(l, g.tls)
	}
	// A body nobody asked for, or an answer nobody reads, would hold the connection for ever. Upgraded ones lose these deadlines.
	s := g.server(h)
	s.ReadTimeout, s.WriteTimeout, s.ConnState = requestTimeout, answerTimeout, g.public.state
	return serveHTTP(ctx, s, l)
}

// serveInternal runs the internal listener until ctx ends. Profiles are written for as long as they were asked for, so its answers have
// no deadline.
func (g *Gateway) serveInternal(ctx context.Context) error {
	h := g.withAPI(g.internalMux())
	if onLoopback(g.cfg.InternalListen) {
		h = localHosts(h, &g.foreignHosts)
	}
	return serveHTTP(ctx, g.server(timedBodies(h)), g.internal)
}

// timedBodies has a body end in time, on a listener whose requests have no deadline: also one that nobody reads.
func timedBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(requestTimeout))
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Gateway) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
}

func serveHTTP(ctx context.Context, s *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

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
	return problem.Mux(mux)
}

// serveWS refuses clients until this gateway could deliver to them.
func (g *Gateway) serveWS(w http.ResponseWriter, r *http.Request) {
	if !g.open.Load() {
		notReady("not_subscribed", "not subscribed").Write(w)
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
	return problem.Mux(mux)
}

// serveHealth says that the process lives. It never depends on Redis: a restart
// would not bring Redis back, and would drop every connection.
func serveHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// serveReady says whether new connections should come here.
func (g *Gateway) serveReady(w http.ResponseWriter, _ *http.Request) {
	switch {
	case g.draining.Load():
		notReady("draining", "draining").Write(w)
	case !g.registry.Reachable():
		notReady("redis_unreachable", "redis does not answer").Write(w)
	case !g.open.Load() || !g.router.Subscribed():
		notReady("not_subscribed", "not subscribed").Write(w)
	case g.public.paused.Load():
		notReady("no_open_files", "no open files to spare").Write(w)
	default:
		writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	}
}

// notReady is the answer of a gateway that takes nobody. Balancers judge by the status alone.
func notReady(code problem.Code, detail string) problem.Problem {
	return problem.Problem{Status: http.StatusServiceUnavailable, Code: code, Detail: detail}.After(time.Second)
}

// serveCheck verifies the invariants of the local indexes.
func (g *Gateway) serveCheck(w http.ResponseWriter, _ *http.Request) {
	if err := g.manager.Check(); err != nil {
		problem.Problem{Status: http.StatusInternalServerError, Code: "broken", Detail: err.Error()}.Write(w)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	problem.Guard(w.Header())
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client may be gone
}
