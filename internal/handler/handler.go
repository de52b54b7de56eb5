package handler

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	"chatgate/internal/auth"
	"chatgate/internal/connection"
	"chatgate/internal/history"
	"chatgate/internal/hook"
	"chatgate/internal/presence"
	"chatgate/internal/problem"
	"chatgate/internal/protocol"
	"chatgate/internal/router"
)

// Config is what a Handler needs to know.
type Config struct {
	// Gateway is this gateway: configured name and random boot id.
	Gateway protocol.GatewayID
	Log     *slog.Logger

	// Anonymous lets users in who show no token. Where a proxy has left its headers on
	// the handshake, or another host than this machine was asked for, they are not,
	// unless AnonymousForwarded: behind it may be anybody.
	Anonymous, AnonymousForwarded bool
	// Tokens says whose a token is. nil: none are taken.
	Tokens *auth.Verifier
	// Revocations knows which of them are revoked; nil only with Tokens.
	Revocations *auth.Revocations
	// Decider asks the customer's backend who registers, who may join and what may be
	// sent; nil: nobody is asked. AskedHeaders of the handshake it is told at register.
	Decider      *hook.Decider
	AskedHeaders []string
	Origins      Origins
	// StampMeta puts the meta of a connection on its messages.
	StampMeta bool
	// MessageEvents says that stored messages have events, which tell where they came in.
	MessageEvents bool

	// HeartbeatInterval and PresenceTTL are told to clients; a frame of any kind
	// refreshes presence when the last refresh is older than the interval.
	HeartbeatInterval, PresenceTTL time.Duration
	// MaxFrameBytes is told to clients.
	MaxFrameBytes int64
	// Limits are those of one connection; Reload changes them.
	Limits
	// Classes are the classes of devices a client must choose from when it registers,
	// sorted; empty: it may name any, or none.
	Classes []string
	// MaxBadFrames in a row end a connection.
	MaxBadFrames int
	// ReapedSpread is the time over which connections are closed that were reaped
	// while this gateway was away.
	ReapedSpread time.Duration
	// RegisterWait bounds how long a register waits for Redis.
	RegisterWait time.Duration
	// CursorWindow is for how long what devices confirm is collected into one call.
	CursorWindow time.Duration
	// History reads the logs.
	History *history.Reader
}

// Handler serves /ws.
type Handler struct {
	// Immutable after New.
	cfg       Config
	conns     *connection.Config
	manager   *connection.Manager
	registry  *presence.Registry
	router    *router.Router
	admission *Admission
	history   *history.Reader
	cursors   cursors
	upgrader  websocket.Upgrader

	// Any goroutine.
	limits    atomic.Pointer[Limits]
	arriving  registering
	newcomers atomic.Pointer[bucketTable[protocol.UserID]] // the addresses that users were the first to; nil: no limit
	sessions  sync.WaitGroup
	counts    counts
}

// New returns a Handler. conns must be what manager was made with.
func New(cfg Config, conns *connection.Config, manager *connection.Manager, registry *presence.Registry, r *router.Router, admission *Admission) *Handler {
	h := &Handler{
		cfg: cfg, conns: conns, manager: manager, registry: registry, router: r, admission: admission,
		history: cfg.History,
		upgrader: websocket.Upgrader{
			HandshakeTimeout: 5 * time.Second,
			Subprotocols:     []string{protocol.Subprotocol},
			CheckOrigin:      func(*http.Request) bool { return true }, // done before, by Origins
			Error:            refuseUpgrade,
		},
	}
	h.Reload(cfg.Limits)
	return h
}

// ServeHTTP admits and upgrades one connection, and returns: the session goes on
// without net/http's buffers.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !r.ProtoAtLeast(1, 1) { // RFC 6455 §4.1
		h.counts.failedUpgrades.Add(1)
		problem.Problem{Status: http.StatusHTTPVersionNotSupported, Detail: "WebSocket needs HTTP/1.1"}.Write(w)
		return
	}
	if x := h.cfg.Origins.Check(r); x != nil {
		h.counts.foreignOrigins.Add(1)
		x.Write(w)
		return
	}
	ticket, x := h.admission.Admit(r, time.Now())
	if x != nil {
		x.Write(w)
		return
	}
	id, err := uuid.NewV7()
	if err != nil {
		ticket.Release()
		problem.Problem{Status: http.StatusInternalServerError, Detail: "no entropy"}.Write(w)
		return
	}
	c, err := connection.Upgrade(w, r, &h.upgrader, protocol.ConnID(id.String()), h.conns)
	if err != nil {
		ticket.Release()
		h.counts.failedUpgrades.Add(1)
		return
	}
	h.sessions.Add(1)
	s := &session{handler: h, conn: c, anonymous: h.cfg.Anonymous && (h.cfg.AnonymousForwarded || (r.Host == "" || IsLocalHost(r.Host)) && !forwarded(r))}
	if h.cfg.Decider.Asks(hook.AskRegister) {
		s.arrival = arrivalOf(r, ticket.Addr, h.cfg.AskedHeaders)
	}
	if err := h.manager.Add(c); err != nil {
		c.Close(connection.Cause{Kind: connection.KindDraining})
	}
	go s.serve(ticket)
}

// refuseUpgrade answers a handshake that is none: 426 says what to speak (RFC 9110 section 15.5.22) and in which version (RFC 6455 section
// 4.4), where that is all there is to say.
func refuseUpgrade(w http.ResponseWriter, r *http.Request, status int, reason error) {
	header := w.Header()
	header.Set("Connection", "close")
	switch {
	case !websocket.IsWebSocketUpgrade(r):
		status = http.StatusUpgradeRequired
		header.Set("Connection", "close, Upgrade")
		header.Set("Upgrade", "websocket")
	case !slices.Equal(r.Header["Sec-Websocket-Version"], []string{"13"}):
		status = http.StatusUpgradeRequired
		header.Set("Sec-WebSocket-Version", "13")
	}
	problem.Problem{Status: status, Detail: reason.Error()}.Write(w)
}

// serve is a connection's life. Its goroutine is what waits when nothing comes, with all that its calls have on the stack: so it does
// little else, and entering the connection has been done before.
func (s *session) serve(ticket *Ticket) {
	defer s.handler.sessions.Done()
	defer ticket.Release()
	defer s.handler.manager.Remove(s.conn)
	s.end(s.conn.Run(s.handle, s.toll))
}

// Wait returns when every session has ended.
func (h *Handler) Wait() { h.sessions.Wait() }

// Each calls yield with the registry entry of every registered connection, until
// it returns false.
func Each(m *connection.Manager) func(yield func(*presence.Entry) bool) {
	return func(yield func(*presence.Entry) bool) {
		m.ForEach(func(c *connection.Connection) bool {
			if e := entryOf(c); e != nil {
				return yield(e)
			}
			return true
		})
	}
}

// Registered calls yield with every connection that is registered.
func Registered(m *connection.Manager) func(yield func(*connection.Connection) bool) {
	return func(yield func(*connection.Connection) bool) {
		m.ForEach(func(c *connection.Connection) bool { return entryOf(c) == nil || yield(c) })
	}
}

func entryOf(c *connection.Connection) *presence.Entry {
	if s := sessionOf(c); s != nil {
		return s.entry // it doesn't change once the connection is identified
	}
	return nil
}

// sessionOf is the session of a connection that is registered; nil: it is not.
func sessionOf(c *connection.Connection) *session {
	id, _ := c.Identity()
	s, _ := id.Entry.(*session)
	return s
}

// Kicked closes a local connection that was marked in the registry. A kick for
// another life of the connection is ignored.
func Kicked(m *connection.Manager, k protocol.Kick) {
	c := m.ByConn(k.Conn)
	if c == nil {
		return
	}
	if e := entryOf(c); e != nil && e.Fence() != 0 && e.Fence() != k.Fence {
		return
	}
	c.Close(causeOf(k.Code, k.Reason, k.By, k.At))
}

// Judged closes a local connection that the registry gave up. Those of a gateway
// that was taken for dead come back elsewhere, so they are told to spread.
func Judged(m *connection.Manager, v presence.Verdict, spread time.Duration) {
	c := m.ByConn(v.Conn)
	if c == nil {
		return
	}
	if !v.Reaped {
		c.Close(causeOf(v.Code, v.Reason, v.By, v.At))
		return
	}
	// They are spread here already; the client's own jitter comes on top.
	cause := connection.Cause{Kind: connection.KindSuperseded, WindowMs: time.Second.Milliseconds()}
	time.AfterFunc(rand.N(max(spread, 1)), func() { c.Close(cause) })
}

func causeOf(code protocol.CloseCode, reason, by string, at int64) connection.Cause {
	cause := connection.Cause{Kind: connection.KindKicked, Code: code, Reason: reason, By: by, At: at}
	for _, k := range connection.Kinds() {
		if k.Code() == code {
			cause.Kind = k
		}
	}
	return cause
}
