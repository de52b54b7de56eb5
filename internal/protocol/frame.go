package protocol

// FrameType is the type of a client's frame.
type FrameType uint8

// The types a client may send.
const (
	TypeUnknown FrameType = iota
	TypeRegister
	TypeHeartbeat
	TypeMessage
	TypeReceived
	TypeJoin
	TypeLeave
	TypeHistory
	TypePresence
	TypeWatch
	TypeUnwatch
	TypeMembers
	TypeRefresh
	typeCount
)

var typeNames = [typeCount]string{
	"unknown", "register", "heartbeat", "message", "received", "join", "leave", "history",
	"presence", "watch", "unwatch", "members", "refresh",
}

// String is the name on the wire; it is bounded, so it may be a metric label.
func (t FrameType) String() string {
	if t >= typeCount {
		t = TypeUnknown
	}
	return typeNames[t]
}

func typeOf(name []byte) FrameType {
	switch string(name) {
	case "message":
		return TypeMessage
	case "heartbeat":
		return TypeHeartbeat
	case "received":
		return TypeReceived
	case "register":
		return TypeRegister
	case "join":
		return TypeJoin
	case "leave":
		return TypeLeave
	case "history":
		return TypeHistory
	case "presence":
		return TypePresence
	case "watch":
		return TypeWatch
	case "unwatch":
		return TypeUnwatch
	case "members":
		return TypeMembers
	case "refresh":
		return TypeRefresh
	}
	return TypeUnknown
}

// Frame is one decoded client frame. Only the fields of its type are set, and those are valid: required ones present, of the
// right kind, within their limits.
//
// Byte slices point into the decoded data, or into a buffer of the Frame where the JSON string had escapes. They are valid until
// the next Decode into the same Frame, or until the data is reused; nil means absent. Frames are for reuse: the zero value is
// ready, and one Frame for each reader decodes messages without allocating.
type Frame struct {
	Type FrameType

	// 1 to 64 bytes. register, heartbeat and received have no such field: there a bad one is ignored, and a good one is for errors.
	ID    []byte
	HasID bool

	UserID   []byte       // register; nil only with a token
	Token    []byte       // register, refresh; not an id: any non-empty string
	DeviceID []byte       // register
	Class    []byte       // register: deviceClass
	Meta     []byte       // register: a JSON object as written, at most MaxMetaBytes
	Resume   Resume       // register, join
	Rooms    []RoomResume // register; each room once

	To        []byte // message: a user. Exactly one of To and Room is set
	Room      []byte // message, received, join, leave, history, members
	Content   []byte // message: one complete JSON value, exactly the bytes that came, without the space around it
	Ephemeral bool   // message
	Copy      bool   // message; never with Ephemeral

	Users [][]byte // presence, watch, unwatch: 1 to MaxUsers, each once

	Epoch     []byte // received, history
	Offset    uint64 // received
	After     uint64 // history; at most one of After and Before is set
	Before    uint64 // history
	HasAfter  bool
	HasBefore bool
	Cursor    []byte // members: the field after, as an answer gave it in next
	Limit     int    // history, members: 1 to MaxLimit, DefaultLimit where the frame has none

	scratch []byte // unescaped strings of this frame
}

// Resume is where a client's knowledge of an address ends.
type Resume struct {
	Set      bool // false: the client asks for nothing earlier than now
	HasEpoch bool // false: in whatever epoch the log is in
	Epoch    []byte
	Offset   uint64
}

// RoomResume is one entry of the rooms a client registers with.
type RoomResume struct {
	Room   []byte
	Resume Resume
}

// keepEntries bounds what a reused Frame keeps of its slices: one big request must not stay with a connection for life.
const keepEntries = 256

// reset empties f and keeps its buffers.
func (f *Frame) reset() {
	rooms, users := f.Rooms, f.Users
	if cap(rooms) > keepEntries {
		rooms = nil
	}
	if cap(users) > keepEntries {
		users = nil
	}
	// The entries point into the data of the last frame, which may be big.
	clear(rooms)
	clear(users)
	*f = Frame{scratch: f.scratch[:0], Rooms: rooms[:0], Users: users[:0]}
}
