package connection

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"chatgate/internal/protocol"
)

// Identity is who a connection belongs to.
type Identity struct {
	User   protocol.UserID
	Device protocol.DeviceID
	Meta   []byte // the JSON object that is bound to it; nil: none
	Entry  any    // what the package that reads the frames keeps for it; not looked at here
	Token  any    // the same, about the token that was shown; nil: none was
}

// Connection is one WebSocket. Its methods may be called from any goroutine unless they say otherwise.
type Connection struct {
	// Immutable after Upgrade.
	id       protocol.ConnID
	remote   string
	cfg      *Config
	nc       net.Conn
	raw      syscall.RawConn // nil: not a bare socket (TLS, say), so only the writer goroutine may write
	ws       *websocket.Conn
	since    instant
	upgraded bool // the handshake is over, and every byte goes through the outbox

	// Immutable after Manager.Add. nil for a connection that was never added.
	manager *Manager
	tally   *tally

	// Owned by the reader.
	in        *input      // nil at rest
	frameLeft int64       // so much of the frame gorilla is reading was not given to it; only with in
	last      bool        // the data frame gorilla is reading is the last of its message
	rbuf      *readBuffer // nil at rest
	looked    bool        // arrived was asked since the reader came to rest
	inMessage bool        // a message has begun and is not complete: rbuf holds its beginning
	refused   bool        // what came was given up: nothing more can be read as WebSocket
	first     [1]byte     // what a reader that waits in gorilla has room for at rest
	toll      func()      // see Run
	came      Came        // since it was last asked for

	// Written by the reader before waiting is set, read by others after they saw waiting.
	wake chan struct{}

	// Any goroutine.
	identity atomic.Pointer[Identity]
	cause    atomic.Pointer[Cause] // nil: alive; the first to set it wins
	carried  atomic.Pointer[carried]
	touched  atomic.Pointer[Batch] // the Batch that has this connection in its list; see Batch
	inFlight atomic.Int32
	hooks    atomic.Uint32
	waiting  atomic.Bool // the reader is held, in Acquire, Hold or Aside
	busy     atomic.Bool // the reader is in its handle function: the client may be talking, and nobody listens

	// The clocks of the sweep. Any goroutine; instants.
	lastByte     atomic.Int64 // the last byte from the client
	lastPing     atomic.Int64 // the last text frame, a heartbeat if there was nothing else to say
	pingSent     atomic.Int64 // 0: no ping is unanswered
	messageBegan atomic.Int64 // the first byte of a message or of another frame that is not complete; 0: nothing is
	registerFrom atomic.Int64 // RegisterTimeout runs from here
	expires      atomic.Int64 // what was shown to be let in is good until here, ms since 1970; 0: for good

	// Guarded by mu: the outbox. A field of this group is never held across a write.
	mu        sync.Mutex
	pending   *chunk        // taken from the pool with the first frame; nil at rest
	current   *chunk        // what is being written, by one goroutine at a time; nil: nobody writes
	writer    chan struct{} // closed when the writer goroutine is done; nil: there is none, and the socket takes what it gets
	owedPong  string        // the answer to the latest ping, when another pong is still on its way
	owesPong  bool
	again     bool // a Flush came while current was being written: whoever writes goes on
	closed    bool // no more frames are taken
	aborted   bool // nothing more is written
	halfClose bool // when everything is written, the sending side of the socket is shut
	reset     bool // frames were thrown away: the kernel may throw away its part too

	// Added to under mu while not aborted, waited for by the reader after that.
	writers sync.WaitGroup

	// Guarded by Manager.mu.
	indexed bool // in userToConn
}

// ID is the connection's own id, given at Upgrade.
func (c *Connection) ID() protocol.ConnID { return c.id }

// RemoteAddr is the client's address as the HTTP request had it.
func (c *Connection) RemoteAddr() string { return c.remote }

// Since is when the connection was upgraded.
func (c *Connection) Since() time.Time { return timeOf(c.since) }

// Identify says who the connection belongs to. It is called before Manager.Identify, and again only when the same user shows a new
// token, or another meta is bound to it; by one goroutine at a time.
func (c *Connection) Identify(id Identity) { c.identity.Store(&id) }

// Identity is who the connection belongs to; false before Identify.
func (c *Connection) Identity() (Identity, bool) {
	if id := c.identity.Load(); id != nil {
		return *id, true
	}
	return Identity{}, false
}

// User is whom the connection belongs to; empty before Identify.
func (c *Connection) User() protocol.UserID {
	if id := c.identity.Load(); id != nil {
		return id.User
	}
	return ""
}

// Cause is why the connection ended, or is ending; false while it lives.
func (c *Connection) Cause() (Cause, bool) {
	if cause := c.cause.Load(); cause != nil {
		return *cause, true
	}
	return Cause{}, false
}

func (c *Connection) closing() bool { return c.cause.Load() != nil }

// ResetRegisterTimeout starts RegisterTimeout anew, for a register that was refused through no fault of the client.
func (c *Connection) ResetRegisterTimeout() { c.registerFrom.Store(c.cfg.now()) }

// ExpireAt has the connection closed (KindTokenExpired) by the first sweep after t, so within a second. What t means is decided by the
// wall clock: the monotonic one stands still while a machine is suspended, and the end of a token does not wait for it.
func (c *Connection) ExpireAt(t time.Time) { c.expires.Store(max(1, t.UnixMilli())) }

// expired reports whether that moment has come, as of a time in ms since 1970.
func (c *Connection) expired(wall int64) bool {
	at := c.expires.Load()
	return at != 0 && wall >= at
}

// LogValue names the connection in logs: never what it carries.
func (c *Connection) LogValue() slog.Value {
	attrs := make([]slog.Attr, 0, 5)
	attrs = append(attrs, slog.String("conn", string(c.id)), slog.String("remote", c.remote))
	if id := c.identity.Load(); id != nil {
		attrs = append(attrs, slog.String("user", string(id.User)))
		if id.Device != "" {
			attrs = append(attrs, slog.String("device", string(id.Device)))
		}
	}
	if cause := c.cause.Load(); cause != nil {
		attrs = append(attrs, slog.String("cause", cause.Kind.String()))
	}
	return slog.GroupValue(attrs...)
}
