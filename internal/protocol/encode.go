package protocol

import (
	"strconv"
	"unicode/utf8"
)

// The encoders append one complete JSON frame to dst and return the longer slice, as append does; none allocates when dst has room.
// Fields stand in a fixed order, and optional ones are left out where they say nothing.

// Registered answers register.
type Registered struct {
	UserID              UserID
	ConnID              ConnID
	GatewayID           GatewayID
	Epoch               string
	Offset              uint64 // before the next message this client will get
	First               uint64 // the oldest kept
	Top                 uint64 // the newest
	Recovered           bool   // nothing is missing between the asked and the given position
	HeartbeatIntervalMs int64
	PresenceTTLMs       int64
	MaxFrameBytes       int64
	ServerTime          int64 // ms since 1970
	ExpiresAt           int64 // ms since 1970, of the token; 0: never
}

// AppendRegistered encodes a registered frame.
func AppendRegistered(dst []byte, r *Registered) []byte {
	dst = append(dst, `{"type":"registered","userId":`...)
	dst = appendString(dst, r.UserID)
	dst = append(dst, `,"connId":`...)
	dst = appendString(dst, r.ConnID)
	dst = append(dst, `,"gatewayId":`...)
	dst = appendString(dst, r.GatewayID)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, r.Epoch)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendUint(dst, r.Offset, 10)
	dst = append(dst, `,"first":`...)
	dst = strconv.AppendUint(dst, r.First, 10)
	dst = append(dst, `,"top":`...)
	dst = strconv.AppendUint(dst, r.Top, 10)
	dst = append(dst, `,"recovered":`...)
	dst = strconv.AppendBool(dst, r.Recovered)
	dst = append(dst, `,"heartbeatIntervalMs":`...)
	dst = strconv.AppendInt(dst, r.HeartbeatIntervalMs, 10)
	dst = append(dst, `,"presenceTtlMs":`...)
	dst = strconv.AppendInt(dst, r.PresenceTTLMs, 10)
	dst = append(dst, `,"maxFrameBytes":`...)
	dst = strconv.AppendInt(dst, r.MaxFrameBytes, 10)
	dst = append(dst, `,"serverTime":`...)
	dst = strconv.AppendInt(dst, r.ServerTime, 10)
	dst = appendOptional(dst, `,"expiresAt":`, r.ExpiresAt)
	return append(dst, '}')
}

// AppendRefreshed encodes the answer to refresh. expiresAt is in ms since 1970.
func AppendRefreshed(dst, id []byte, expiresAt int64) []byte {
	dst = append(dst, `{"type":"refreshed"`...)
	if id != nil {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, id)
	}
	dst = append(dst, `,"expiresAt":`...)
	dst = strconv.AppendInt(dst, expiresAt, 10)
	return append(dst, '}')
}

// AppendHeartbeat encodes the answer to a heartbeat. Degraded: the gateway answers from memory, what it needs is away.
func AppendHeartbeat(dst []byte, serverTime int64, degraded bool) []byte {
	dst = append(dst, `{"type":"heartbeat","serverTime":`...)
	dst = strconv.AppendInt(dst, serverTime, 10)
	if degraded {
		dst = append(dst, `,"degraded":true`...)
	}
	return append(dst, '}')
}

// Status is what is known of a message when it is acknowledged.
type Status string

// The values of Status.
const (
	StatusRouted  Status = "routed"  // handed to live gateways that hold connections of the receiver
	StatusStored  Status = "stored"  // kept; nobody is there now
	StatusDropped Status = "dropped" // ephemeral, and nobody is there
)

// Ack answers message.
type Ack struct {
	ID         []byte
	Status     Status
	Epoch      string // empty: the message is in no log, and Offset means nothing
	Offset     uint64
	Devices    int // connections of the receiver on the gateways it was handed to
	HasDevices bool
	Ts         int64 // ms since 1970
}

// AppendAck encodes an ack frame.
func AppendAck(dst []byte, a *Ack) []byte {
	dst = append(dst, `{"type":"ack","id":`...)
	dst = appendString(dst, a.ID)
	dst = append(dst, `,"status":`...)
	dst = appendString(dst, a.Status)
	dst = appendPosition(dst, a.Epoch, a.Offset)
	if a.HasDevices {
		dst = append(dst, `,"devices":`...)
		dst = strconv.AppendInt(dst, int64(a.Devices), 10)
	}
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendInt(dst, a.Ts, 10)
	return append(dst, '}')
}

// AppendError encodes an error frame.
func AppendError(dst []byte, e *ReplyError) []byte {
	dst = append(dst, `{"type":"error"`...)
	if e.ID != "" {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, e.ID)
	}
	dst = append(dst, `,"code":`...)
	dst = appendString(dst, e.Code)
	dst = append(dst, `,"message":`...)
	dst = appendString(dst, e.Message)
	if e.Limit != "" {
		dst = append(dst, `,"limit":`...)
		dst = appendString(dst, e.Limit)
	}
	if len(e.Rooms) > 0 {
		dst = appendNames(append(dst, `,"rooms":`...), e.Rooms)
	}
	dst = appendOptional(dst, `,"retryAfterMs":`, e.RetryAfterMs)
	return append(dst, '}')
}

// Closing is the last frame before a close by the gateway. Its field reconnect follows from Code.
type Closing struct {
	Code     CloseCode
	Reason   string // for people; empty: the name of the code
	AfterMs  int64  // come back no sooner, ms; 0: not said
	WindowMs int64  // and spread over this long, ms; 0: not said
	By       string // who or what ended it; empty: not said
	At       int64  // when, ms since 1970; 0: not said
}

// AppendClosing encodes a closing frame.
func AppendClosing(dst []byte, c *Closing) []byte {
	reason := c.Reason
	if reason == "" {
		reason = c.Code.Name()
	}
	dst = append(dst, `{"type":"closing","code":`...)
	dst = strconv.AppendUint(dst, uint64(c.Code), 10)
	dst = append(dst, `,"reason":`...)
	dst = appendString(dst, reason)
	dst = append(dst, `,"reconnect":`...)
	dst = strconv.AppendBool(dst, c.Code.Reconnect())
	dst = appendOptional(dst, `,"afterMs":`, c.AfterMs)
	dst = appendOptional(dst, `,"windowMs":`, c.WindowMs)
	if c.By != "" {
		dst = append(dst, `,"by":`...)
		dst = appendString(dst, c.By)
	}
	dst = appendOptional(dst, `,"at":`, c.At)
	return append(dst, '}')
}

// PresenceState is what is known of a user.
type PresenceState string

// The values of PresenceState.
const (
	StateOnline  PresenceState = "online"
	StateOffline PresenceState = "offline"
	StateUnknown PresenceState = "unknown" // can't be found out now; never a guess
)

// UserPresence is one user in a presence frame.
type UserPresence struct {
	User     UserID
	State    PresenceState
	Version  string // orders the states of one user; empty: not known
	Devices  int    // connections; 0: not said
	LastSeen int64  // ms since 1970; 0: not said
}

// AppendPresence encodes a presence frame; id is nil in a push. Each user stands in users at most once.
func AppendPresence(dst []byte, id []byte, users []UserPresence) []byte {
	dst = append(dst, `{"type":"presence"`...)
	if id != nil {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, id)
	}
	dst = append(dst, `,"users":{`...)
	for i := range users {
		u := &users[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, u.User)
		dst = append(dst, `:{"state":`...)
		dst = appendString(dst, u.State)
		if u.Version != "" {
			dst = append(dst, `,"version":`...)
			dst = appendString(dst, u.Version)
		}
		dst = appendOptional(dst, `,"devices":`, int64(u.Devices))
		dst = appendOptional(dst, `,"lastSeen":`, u.LastSeen)
		dst = append(dst, '}')
	}
	return append(dst, `}}`...)
}

// MessageHead is what the sender's gateway knows of a message. It is encoded once; each receiver's gateway only adds the position.
type MessageHead struct {
	ID        []byte
	From      UserID
	Meta      string // what the sender's connection registered with, a JSON object as written; "": not told
	To        []byte // nil: a message to Room
	Room      []byte
	Content   []byte // exactly one complete JSON value, as Decode returns it: copied without another look
	Ts        int64  // ms since 1970
	Ephemeral bool
	Own       bool // the receiver sent it, from this or another connection
}

// AppendMessageHead encodes a message frame without its position and closing brace: AppendMessageTail ends it. This is also how a
// message stands in the log.
func AppendMessageHead(dst []byte, m *MessageHead) []byte {
	dst = append(dst, `{"type":"message","id":`...)
	dst = appendString(dst, m.ID)
	dst = append(dst, `,"from":`...)
	dst = appendString(dst, m.From)
	if m.Meta != "" {
		dst = append(dst, `,"meta":`...)
		dst = append(dst, m.Meta...)
	}
	if m.To != nil {
		dst = append(dst, `,"to":`...)
		dst = appendString(dst, m.To)
	} else if m.Room != nil {
		dst = append(dst, `,"room":`...)
		dst = appendString(dst, m.Room)
	}
	dst = append(dst, `,"content":`...)
	dst = append(dst, m.Content...)
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendInt(dst, m.Ts, 10)
	if m.Ephemeral {
		dst = append(dst, `,"ephemeral":true`...)
	}
	if m.Own {
		dst = append(dst, `,"own":true`...)
	}
	return dst
}

// AppendMessageTail ends a message frame: with its position, or without one when epoch is empty.
func AppendMessageTail(dst []byte, epoch string, offset uint64) []byte {
	return append(appendPosition(dst, epoch, offset), '}')
}

func appendPosition(dst []byte, epoch string, offset uint64) []byte {
	if epoch == "" {
		return dst
	}
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, epoch)
	dst = append(dst, `,"offset":`...)
	return strconv.AppendUint(dst, offset, 10)
}

// appendOptional appends a number under its name, comma and colon included, unless it is 0.
func appendOptional(dst []byte, name string, n int64) []byte {
	if n == 0 {
		return dst
	}
	dst = append(dst, name...)
	return strconv.AppendInt(dst, n, 10)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string, byte for byte as encoding/json does without HTML escaping: invalid UTF-8 becomes U+FFFD,
// and U+2028 and U+2029 are escaped, because JavaScript once ended a line at them.
func appendString[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	start := 0 // of what is not copied yet
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			// A string of at most four bytes does not leave the stack.
			r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			switch {
			case r == utf8.RuneError && size == 1:
				dst = append(dst, s[start:i]...)
				dst = append(dst, `\ufffd`...)
				start = i + size
			case r == 0x2028 || r == 0x2029:
				dst = append(dst, s[start:i]...)
				dst = append(dst, `\u202`...)
				dst = append(dst, hexDigits[r&0xf])
				start = i + size
			}
			i += size
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, `\u00`...)
			dst = append(dst, hexDigits[c>>4], hexDigits[c&0xf])
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// Joined answers join, and each room of register.
type Joined struct {
	ID        []byte // nil: the room was named by register, or the join had none
	Room      RoomID
	Epoch     string
	Offset    uint64 // before the next message of the room this client will get
	First     uint64 // the oldest kept
	Top       uint64 // the newest
	Recovered bool   // nothing is missing between the asked and the given position
}

// AppendJoined encodes a joined frame.
func AppendJoined(dst []byte, j *Joined) []byte {
	dst = append(dst, `{"type":"joined"`...)
	if len(j.ID) > 0 {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, j.ID)
	}
	dst = append(dst, `,"room":`...)
	dst = appendString(dst, j.Room)
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, j.Epoch)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendUint(dst, j.Offset, 10)
	dst = append(dst, `,"first":`...)
	dst = strconv.AppendUint(dst, j.First, 10)
	dst = append(dst, `,"top":`...)
	dst = strconv.AppendUint(dst, j.Top, 10)
	dst = append(dst, `,"recovered":`...)
	dst = strconv.AppendBool(dst, j.Recovered)
	return append(dst, '}')
}

// AppendLeft encodes a left frame; id is nil when the leave had none.
func AppendLeft(dst []byte, id []byte, room RoomID) []byte {
	dst = append(dst, `{"type":"left"`...)
	if len(id) > 0 {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, id)
	}
	dst = append(dst, `,"room":`...)
	dst = appendString(dst, room)
	return append(dst, '}')
}

// GapReason says why a receiver will not get a stretch of messages.
type GapReason string

// The values of GapReason.
const (
	GapTrimmed GapReason = "trimmed" // older, or more, than the log keeps
	GapHistory GapReason = "history" // Redis' history changed: what the epoch had above from may be lost
	GapAhead   GapReason = "ahead"   // the receiver has more than the log reaches to
)

// Gap names a stretch that a receiver will not get. From that epoch and offset on, Next is where it goes on.
type Gap struct {
	Room   RoomID // empty: the own inbox
	Epoch  string
	From   uint64
	To     uint64 // 0: the end is not known
	Reason GapReason
	Next   Position // before the next message
}

// AppendGap encodes a gap frame.
func AppendGap(dst []byte, g *Gap) []byte {
	dst = append(dst, `{"type":"gap"`...)
	if g.Room != "" {
		dst = append(dst, `,"room":`...)
		dst = appendString(dst, g.Room)
	}
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, g.Epoch)
	dst = append(dst, `,"from":`...)
	dst = strconv.AppendUint(dst, g.From, 10)
	if g.To != 0 {
		dst = append(dst, `,"to":`...)
		dst = strconv.AppendUint(dst, g.To, 10)
	}
	dst = append(dst, `,"reason":`...)
	dst = appendString(dst, g.Reason)
	dst = append(dst, `,"next":{"epoch":`...)
	dst = appendString(dst, g.Next.Epoch)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendUint(dst, g.Next.Offset, 10)
	return append(dst, "}}"...)
}

// HistoryHead is what stands before the messages of a history frame.
type HistoryHead struct {
	ID    []byte
	Room  RoomID // empty: the own inbox
	Epoch string
	First uint64 // the oldest kept
	Top   uint64 // the newest
	More  bool   // the stretch goes on in the direction that was asked
}

// AppendHistoryHead encodes a history frame up to its messages. Each of them follows as AppendMessageHead and
// AppendMessageTail make it, with a comma between two, and AppendHistoryTail ends the frame.
func AppendHistoryHead(dst []byte, h *HistoryHead) []byte {
	dst = append(dst, `{"type":"history"`...)
	if len(h.ID) > 0 {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, h.ID)
	}
	if h.Room != "" {
		dst = append(dst, `,"room":`...)
		dst = appendString(dst, h.Room)
	}
	dst = append(dst, `,"epoch":`...)
	dst = appendString(dst, h.Epoch)
	dst = append(dst, `,"first":`...)
	dst = strconv.AppendUint(dst, h.First, 10)
	dst = append(dst, `,"top":`...)
	dst = strconv.AppendUint(dst, h.Top, 10)
	dst = append(dst, `,"more":`...)
	dst = strconv.AppendBool(dst, h.More)
	return append(dst, `,"messages":[`...)
}

// AppendHistoryTail ends a history frame.
func AppendHistoryTail(dst []byte) []byte { return append(dst, "]}"...) }
